"""Readers on files written here in the published formats, the split by class, and the data sets made of them."""

import gzip
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from naive import idx  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from faiss_dpq.nn import data, image_sets, readers  # noqa: E402


@pytest.fixture
def fashion(tmp_path):
    """A small Fashion-MNIST, half its files compressed; the folder, images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    labels = np.arange(50, dtype=np.uint8) % 10
    for part, rows in (("train", slice(0, 30)), ("t10k", slice(30, 50))):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[rows])))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))
    return tmp_path, images, labels


def test_fashion_mnist_is_read_from_idx_files(fashion):
    folder, images, labels = fashion
    found = readers.read_fashion_mnist(folder)
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images, images[:, None])
    np.testing.assert_array_equal(found.labels, labels)
    assert found.class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", idx(np.zeros(29, np.uint8)), "30 train images and 29 labels"),
        ("train-labels-idx1-ubyte", idx(np.full(30, 10, np.uint8)), "label 10, expected 0 to 9"),
        ("train-labels-idx1-ubyte", idx(np.zeros(30, np.uint8))[:-1], "has 29 bytes of items, its header says 30"),
        ("train-labels-idx1-ubyte", b"\x00\x00\x0d\x01" + bytes(34), "not an idx file of bytes"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 28, 27), np.uint8))), "28, 28"),
        ("t10k-images-idx3-ubyte.gz", b"plain", "not a complete gzip file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 28, 28), np.uint8)))[:30], "not a complete gzip"),
    ],
    ids=["fewer labels", "label 10", "cut", "not idx", "narrow images", "not gzip", "cut gzip"],
)
def test_a_damaged_idx_file_is_named(fashion, name, content, message):
    (fashion[0] / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        readers.read_fashion_mnist(fashion[0])


def test_a_missing_idx_file_is_named_with_its_package(fashion):
    (fashion[0] / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.*dataset-fashion-mnist"):
        readers.read_fashion_mnist(fashion[0])


@pytest.fixture
def cifar_batches():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4)) for _ in range(6)]


CIFAR_NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_cifar(folder, batches, version):
    folder.mkdir()
    for name, (pixels, labels) in zip(CIFAR_NAMES, batches, strict=True):
        if version == "python":
            batch = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
            # As Python 2 and numpy of its time wrote the published files.
            (folder / name).write_bytes(batch.replace(b"numpy._core", b"numpy.core"))
        else:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())


@pytest.mark.parametrize(
    ("version", "folder"),
    [("python", "cifar-10-batches-py"), ("binary", "cifar-10-batches-bin"), ("python", "here"), ("binary", "here")],
)
def test_both_versions_of_cifar10_are_read(tmp_path, cifar_batches, version, folder):
    write_cifar(tmp_path / folder, cifar_batches, version)
    found = readers.read_cifar10(tmp_path / folder if folder == "here" else tmp_path)
    assert found.images.shape == (24, 3, 32, 32)
    np.testing.assert_array_equal(found.images.reshape(24, -1), np.concatenate([x for x, _ in cifar_batches]))
    np.testing.assert_array_equal(found.labels, np.concatenate([labels for _, labels in cifar_batches]))


def test_a_cifar10_pickle_cannot_run_code(tmp_path, cifar_batches):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    write_cifar(tmp_path / "here", cifar_batches, "python")
    (tmp_path / "here" / "data_batch_3").write_bytes(pickle.dumps({b"data": Harm(), b"labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 is not a batch of CIFAR-10.*open"):
        readers.read_cifar10(tmp_path / "here")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("version", "name", "content", "message"),
    [
        ("python", "test_batch", b"", "test_batch is not a batch"),
        ("python", "test_batch", b"no pickle", "test_batch is not a batch"),
        ("python", "test_batch", pickle.dumps({b"data": 1}), "test_batch is not a batch"),
        (
            "python",
            "test_batch",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=2),
            r"shape \(2, 3072\) and type uint8 and 1 labels",
        ),
        ("binary", "test_batch.bin", bytes(3074), "3074 bytes, expected a multiple of 3073"),
        ("binary", "test_batch.bin", bytes([10]) + bytes(3072), "labels from 10 to 10"),
    ],
)
def test_a_damaged_cifar10_file_is_named(tmp_path, cifar_batches, version, name, content, message):
    write_cifar(tmp_path / "here", cifar_batches, version)
    (tmp_path / "here" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        readers.read_cifar10(tmp_path / "here")


def test_missing_cifar10_files_are_named(tmp_path, cifar_batches):
    with pytest.raises(FileNotFoundError, match="expected CIFAR-10's files"):
        readers.read_cifar10(tmp_path)
    write_cifar(tmp_path / "here", cifar_batches, "binary")
    (tmp_path / "here" / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin is missing"):
        readers.read_cifar10(tmp_path / "here")


# ---- image files -------------------------------------------------------------------------------------------------


def write_image(path, colour, size=(40, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_image_folder_classes_are_its_folders(tmp_path):
    write_image(tmp_path / "zebra/b.png", "red")
    write_image(tmp_path / "ant/deep/a.jpg", "blue")
    write_image(tmp_path / "ant/c.PNG", "blue")
    (tmp_path / "ant/notes.txt").write_text("not an image")
    found = readers.read_image_folder(tmp_path)
    assert found.class_names == ("ant", "zebra")
    assert [path.name for path in found.images] == ["c.PNG", "a.jpg", "b.png"]
    np.testing.assert_array_equal(found.labels, [0, 0, 1])


def test_image_folder_errors_name_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        readers.read_image_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no folders"):
        readers.read_image_folder(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(FileNotFoundError, match="ant has no images"):
        readers.read_image_folder(tmp_path)


def test_image_files_are_resized_and_cropped_at_the_centre(tmp_path):
    picture = np.zeros((70, 140, 3), np.uint8)
    picture[:, 36:104] = (255, 128, 0)  # the centre crop of 7/8 of the height, and a margin
    Image.fromarray(picture).save(tmp_path / "wide.png")
    Image.new("L", (16, 16), 7).save(tmp_path / "grey.png")
    images = image_sets.ImageFiles([tmp_path / "wide.png", tmp_path / "grey.png"], np.array([3, 1]), 28)
    image, label = images[0]
    assert (image.dtype, image.shape, label.dtype, int(label)) == (torch.uint8, (3, 28, 28), torch.int64, 3)
    assert (image.flatten(1) == torch.tensor([[255], [128], [0]])).all()
    assert (images[1][0] == 7).all()  # smaller than asked for, and without colours


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        image_sets.ImageFiles([tmp_path / "a.png"], np.array([0]), 8)[0]
    for name in ("cut.jpg", "cut.png"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name} is not an image that Pillow can read: .*truncated"):
            image_sets.ImageFiles([tmp_path / name], np.array([0]), 8)[0]


def write_lists(folder, **lines):
    for name, text in lines.items():
        for line in text:
            write_image(folder / line.split()[0], "red")
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")


def test_list_files_with_several_labels(tmp_path):
    write_lists(tmp_path, train=["a.png 1 0 1"], test=["b.png 0 1 0"], database=["a.png 1 0 1", "sub/c.png 1 1 0"])
    found = data.load_lists(tmp_path, tmp_path, size=8)
    assert found.multilabel
    assert [len(part) for part in (found.train, found.query, found.database)] == [1, 1, 2]
    assert found.query[0][0].shape == (3, 8, 8)
    labels = {
        path.name: label.tolist() for path, label in zip(found.database.files, found.database.labels, strict=True)
    }
    assert labels == {"a.png": [1, 0, 1], "c.png": [1, 1, 0]}
    assert found.database.labels.dtype == torch.float32


def test_the_database_of_lists_is_in_random_order(tmp_path):
    lines = [f"{i}.png {i // 10}" for i in range(20)]
    write_lists(tmp_path, train=lines, test=lines, database=lines)
    orders = [[path.name for path in data.load_lists(tmp_path, tmp_path, seed).database.files] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(line.split()[0] for line in lines)
    assert orders[0] != [line.split()[0] for line in lines]


@pytest.mark.parametrize("lines", [["a.png 0 0 1", "b.png 1 0 0"], ["a.png 2", "b.png 0"]])
def test_list_files_with_one_label_each(tmp_path, lines):
    write_lists(tmp_path, train=lines, test=lines[:1], database=lines)
    found = data.load_lists(tmp_path, tmp_path, size=8)
    assert not found.multilabel
    assert [int(found.train[i][1]) for i in range(2)] == [2, 0]
    assert len(found.class_names) == 3


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("gone.png 1 0", FileNotFoundError, r"gone\.png is missing: .*train\.txt, line 2"),
        ("a.png", ValueError, r"train\.txt, line 2: expected an image's path"),
        ("a.png 1 0 1", ValueError, r"train\.txt, line 2"),
        ("a.png 1 yes", ValueError, r"train\.txt, line 2"),
        ("a.png 2 0", ValueError, "label above 1"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, line, error, message):
    write_lists(tmp_path, train=["a.png 1 0"], test=["a.png 1 0"], database=["a.png 0 1"])
    with (tmp_path / "train.txt").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(error, match=message):
        data.load_lists(tmp_path, tmp_path)


def test_missing_empty_and_differing_lists_are_named(tmp_path):
    write_lists(tmp_path, train=["a.png 1 0"], test=["a.png 1 0"])
    with pytest.raises(FileNotFoundError, match=r"database\.txt is missing"):
        data.load_lists(tmp_path, tmp_path)
    (tmp_path / "database.txt").write_text("a.png 1 0 1\n")
    with pytest.raises(ValueError, match="different numbers of label columns"):
        data.load_lists(tmp_path, tmp_path)
    (tmp_path / "database.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"database\.txt is empty"):
        data.load_lists(tmp_path, tmp_path)


@pytest.fixture
def imagenet(tmp_path):
    for name in ("ant", "bee", "cow", "dog"):
        for i in range(5):
            write_image(tmp_path / f"train/{name}/{i}.png", "red")
        write_image(tmp_path / f"val/{name}/9.png", "red")
    return tmp_path


def test_imagenet_trains_on_a_part_of_the_database(imagenet):
    found = data.load_imagenet(imagenet, n_train=2, n_classes=3, seed=1, size=8)
    assert len(set(found.class_names)) == 3
    for part, size in ((found.train, 2), (found.query, 1), (found.database, 5)):
        drawn = Counter((path.parent.name, int(label)) for path, label in zip(part.files, part.labels, strict=True))
        assert drawn == {(name, number): size for number, name in enumerate(found.class_names)}
    assert set(found.train.files) <= set(found.database.files)
    assert {path.parent.parent.name for path in found.query.files} == {"val"}


def test_imagenet_errors_name_what_does_not_fit(imagenet):
    with pytest.raises(ValueError, match=r"n_classes is 5, .* has 4 classes"):
        data.load_imagenet(imagenet, n_classes=5)
    with pytest.raises(ValueError, match="has 5 training images, n_train is 6"):
        data.load_imagenet(imagenet, n_train=6, n_classes=0)
    (imagenet / "val/dog").rename(imagenet / "val/cat")
    with pytest.raises(ValueError, match="different classes, among them cat, dog"):
        data.load_imagenet(imagenet)


# ---- protocol ----------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered():
    """300 images that hold their own numbers, of 3 classes in sorted order."""
    images = np.zeros((300, 1, 4, 4), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(300) // 256, np.arange(300) % 256
    return images, np.repeat(np.arange(3), 100)


def ids_of(part):
    pixels = part.tensors[0].long()
    return (256 * pixels[:, 0, 0, 0] + pixels[:, 0, 0, 1]).tolist()


def test_protocol_splits_every_class_and_loses_nothing(numbered):
    images, labels = numbered
    found = data.retrieval_protocol(images, labels, n_train=20, n_query=10, seed=3, class_names="abc")
    parts = {part: ids_of(getattr(found, part)) for part in ("train", "query", "database")}
    assert sorted(itertools.chain(*parts.values())) == list(range(300))
    for part, size in (("train", 20), ("query", 10), ("database", 70)):
        assert Counter(labels[parts[part]]) == {0: size, 1: size, 2: size}
        held = getattr(found, part).tensors[1]
        assert held.dtype == torch.int64
        assert held.tolist() == labels[parts[part]].tolist()
        assert (np.diff(labels[parts[part]]) != 0).sum() > size / 2  # in random order, not by class
    assert found.class_names == ("a", "b", "c")
    assert not found.multilabel


def test_protocol_is_seeded_and_queries_do_not_depend_on_training(numbered):
    def queries(**changes):
        return ids_of(data.retrieval_protocol(*numbered, **{"n_train": 20, "n_query": 10, "seed": 3, **changes}).query)

    assert queries() == queries() == queries(n_train=5)
    assert queries() != queries(seed=4)


def test_protocol_takes_grey_images_tensors_and_files(numbered, tmp_path):
    images, labels = numbered
    sizes = {"n_train": 20, "n_query": 10}
    expected = ids_of(data.retrieval_protocol(images, labels, **sizes).train)
    assert ids_of(data.retrieval_protocol(images[:, 0], labels, **sizes).train) == expected
    assert ids_of(data.retrieval_protocol(torch.from_numpy(images), labels, **sizes).train) == expected
    files = [tmp_path / f"{i}.png" for i in range(300)]
    train = data.retrieval_protocol(files, labels, **sizes, size=8).train
    assert [int(path.stem) for path in train.files] == expected
    assert train.size == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train": 90}, r"class 0 has 100 images, expected more than n_query \+ n_train = 10 \+ 90"),
        ({"labels": np.zeros(299, int)}, r"labels has shape \(299,\)"),
        ({"labels": np.zeros((300, 3), int)}, r"labels has shape \(300, 3\)"),
        ({"labels": np.full(300, -1)}, "class number from 0 on"),
        ({"images": np.zeros((300, 1, 4, 4), np.float32)}, "images has shape .* float32"),
        ({"images": np.zeros((300, 4), np.uint8)}, r"images has shape \(300, 4\)"),
    ],
)
def test_protocol_names_what_does_not_fit(numbered, changes, message):
    images, labels = numbered
    arguments = {"images": images, "labels": labels, "n_train": 20, "n_query": 10, **changes}
    with pytest.raises(ValueError, match=message):
        data.retrieval_protocol(**arguments)


# ---- made data sets ----------------------------------------------------------------------------------------------


@pytest.fixture
def disc():
    """A bright disc in the middle of a dark image, twice."""
    y, x = np.mgrid[-15.5:16, -15.5:16]
    image = np.where(x**2 + y**2 < 36, 200, 0).astype(np.uint8)
    return TensorDataset(torch.from_numpy(np.stack([image, image])[:, None]), torch.tensor([4, 6]))


def centres(video):
    """Where the mass of each frame is: (T, 2)."""
    weights = video[:, 0].double()
    axis = torch.arange(video.shape[-1], dtype=torch.float64)
    total = weights.sum((1, 2))
    return torch.stack([(weights.sum(1) * axis).sum(1) / total, (weights.sum(2) * axis).sum(1) / total], dim=1)


def test_animated_images_move_along_a_path_of_their_own(disc):
    videos = image_sets.AnimatedImages(disc, frames=6, seed=1)
    (first, label), (second, _) = videos[0], videos[1]
    assert (len(videos), first.dtype, first.shape, int(label)) == (2, torch.uint8, (6, 1, 32, 32), 4)
    steps = centres(first).diff(dim=0)
    assert steps.norm(dim=1).min() > 0.05
    # In one direction all the way: a video, not six independent pictures.
    assert (torch.cosine_similarity(steps, steps.mean(0, keepdim=True)) > 0.8).all()
    assert not torch.equal(first, second)


def test_animated_images_are_the_same_every_time(disc):
    torch.testing.assert_close(
        image_sets.AnimatedImages(disc, 4, 7)[1], image_sets.AnimatedImages(disc, 4, 7)[1], rtol=0, atol=0
    )
    assert not torch.equal(image_sets.AnimatedImages(disc, 4, 7)[1][0], image_sets.AnimatedImages(disc, 4, 8)[1][0])
    with pytest.raises(ValueError, match="frames is 0"):
        image_sets.AnimatedImages(disc, 0)


# ---- configuration -----------------------------------------------------------------------------------------------


def test_load_reads_splits_and_animates(fashion):
    folder, _, _ = fashion
    config = data.DataConfig(path=str(folder), n_train=2, n_query=1, frames=3)
    found = data.load(config)
    assert [len(part) for part in (found.train, found.query, found.database)] == [20, 10, 20]
    assert found.train[0][0].shape == (3, 1, 28, 28)
    assert found.class_names == readers.FASHION_MNIST_CLASSES


def test_load_reads_the_other_kinds(tmp_path, cifar_batches, imagenet):
    write_cifar(tmp_path / "cifar", [(np.concatenate([x] * 5), np.arange(20) % 10) for x, _ in cifar_batches], "binary")
    cifar = data.load(data.DataConfig("cifar10", str(tmp_path / "cifar"), n_train=2, n_query=1))
    assert cifar.train[0][0].shape == (3, 32, 32)
    folder = data.load(data.DataConfig("image-folder", str(imagenet / "train"), n_train=2, n_query=1, size=8))
    assert folder.train[0][0].shape == (3, 8, 8)
    trees = data.load(data.DataConfig("imagenet", str(imagenet), n_train=2, n_classes=2, size=8))
    assert len(trees.database) == 10
    write_lists(tmp_path / "lists", train=["a.png 1 1"], test=["a.png 1 0"], database=["a.png 0 1"])
    assert data.load(data.DataConfig("lists", str(tmp_path / "lists"), str(tmp_path / "lists"))).query[0][0].shape == (
        3,
        224,
        224,
    )


def test_class_names_come_from_a_file(imagenet):
    names = imagenet / "names.txt"
    config = data.DataConfig("imagenet", str(imagenet), n_train=2, class_names=str(names))
    with pytest.raises(FileNotFoundError, match=r"names\.txt is missing: expected the names of 4 classes"):
        data.load(config)
    names.write_text("dog hound, dog\nyak yak, ox\nbee honey bee\ncow cattle\nant pismire\n")
    assert data.load(config).class_names == ("pismire", "honey bee", "cattle", "hound, dog")
    names.write_text("pismire\nhoney bee\ncattle\nhound\n")
    assert data.load(config).class_names == ("pismire", "honey bee", "cattle", "hound")
    names.write_text("pismire\n")
    with pytest.raises(ValueError, match="has 1 names, expected one for each of the 4"):
        data.load(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [(data.DataConfig("mnist"), "data.name is 'mnist', expected one of"), (data.DataConfig("cifar10"), "data.path")],
)
def test_load_names_what_is_wrong_in_the_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        data.load(config)
