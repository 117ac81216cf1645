"""Gradients as in Eq. 25, ablations, and exports whose codes and distances are the model's."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from faiss_dpq import IndexDPQ  # noqa: E402
from faiss_dpq.nn import DPQ, PQN, RPQN, TPQN, Encoder, ImageIndex, SmallCNN, TrainConfig, embed_dataset  # noqa: E402
from faiss_dpq.nn.config import LossWeights  # noqa: E402


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 255 / 16).astype(np.uint8))[:600, None]
    return torch.utils.data.TensorDataset(pixels, torch.from_numpy(digits.target[:600]).long())


@pytest.fixture
def batch(images):
    return images[:24]


def embeddings(d=12):
    return np.random.default_rng(0).standard_normal((10, d)).astype(np.float32)


def make(system, **arguments):
    torch.manual_seed(0)
    backbone = SmallCNN(1, width=4, out_features=16)
    if system is DPQ:
        arguments = {"label_embeddings": embeddings(), "M": 3, "nbits": 4, **arguments}
    else:
        arguments = {"d": 12, "nbits": 4, **arguments}
    return system(backbone, 10, **arguments)


def initialised(system, images, **arguments):
    model = make(system, **arguments).eval()
    x, _ = embed_dataset(model, images)
    model.quantizer.initialise(torch.from_numpy(x), seed=0)
    return model


def gradients(model, batch, weights, **phase):
    """Gradients of the network and of the codebooks, and the objective."""
    model.zero_grad()
    objective = model.objective(*batch, weights, **phase)
    objective.loss.backward()

    def of(parameters):
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    return of(model.network_parameters()), of(model.codebook_parameters()), objective


def is_zero(gradients):
    return not any(bool(g.any()) for g in gradients)


def test_only_this_subpackage_needs_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import faiss_dpq, faiss_dpq.cli, faiss_dpq.evaluation\n"
        "try: import faiss_dpq.nn\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "faiss_dpq.nn needs torch, which is not installed: pip install 'faiss-dpq[deep]'"


# ---- Eq. 24 and 25 ---------------------------------------------------------------------------------------------


def test_codebooks_follow_e_alone_and_the_backbone_all_three_losses(images, batch):
    model = initialised(DPQ, images)
    nothing = LossWeights(0, 0, 0, 1, 1, 0.1)
    theta_0, pi_e, _ = gradients(model, batch, nothing, quantize=True)
    theta_s, pi_s, _ = gradients(model, batch, nothing._replace(semantic=1.0), quantize=True)
    theta_c, pi_c, _ = gradients(model, batch, nothing._replace(classification=0.5), quantize=True)
    theta_e, pi_tau, _ = gradients(model, batch, nothing._replace(distortion=2.0), quantize=True)
    theta, pi, _ = gradients(model, batch, LossWeights(1.0, 0.5, 2.0, 1, 1, 0.1), quantize=True)
    assert is_zero(theta_0)
    assert not is_zero(pi_e)
    for codebooks in (pi_s, pi_c, pi_tau, pi):  # the same, whatever the other losses weigh, tau included
        torch.testing.assert_close(codebooks, pi_e)
    backbone = list(dict(model.backbone.named_parameters()))
    assert not any(is_zero(g[: len(backbone)]) for g in (theta_s, theta_c, theta_e))
    for whole, *parts in zip(theta, theta_s, theta_c, theta_e, strict=True):
        torch.testing.assert_close(whole, sum(parts), atol=1e-4, rtol=1e-3)


def test_tau_scales_the_backbone_s_part_of_e(images, batch):
    model = initialised(DPQ, images)
    one, pi_one, a = gradients(model, batch, LossWeights(0, 0, 1.0), quantize=True)
    three, pi_three, b = gradients(model, batch, LossWeights(0, 0, 3.0), quantize=True)
    torch.testing.assert_close(three, [3 * g for g in one], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(pi_one, pi_three)
    torch.testing.assert_close(a.loss, b.loss)


def test_the_loss_is_the_sum_of_its_weighted_parts(images, batch):
    model = initialised(DPQ, images, prefix_weights=[3, 2, 1])
    weights = LossWeights(2.0, 0.3, 1.0, 1.0, 0.7, 0.2)
    objective = model.objective(*batch, weights, quantize=True)
    names = ("semantic", "classification", "soft", "hard", "match")
    expected = sum(getattr(weights, name) * objective.parts[name] for name in names)
    torch.testing.assert_close(objective.loss.detach(), expected)


def test_the_first_phase_quantizes_nothing(images, batch):
    theta, pi, objective = gradients(make(DPQ), batch, LossWeights(), quantize=False)
    assert is_zero(pi) and not is_zero(theta)
    assert objective.codes is None and set(objective.parts) == {"semantic", "classification"}


def test_frozen_trains_the_codebooks_only(images, batch):
    for system in (DPQ, PQN):
        model = initialised(system, images)
        theta, pi, objective = gradients(model, batch, LossWeights(), quantize=True, frozen=True)
        assert is_zero(theta) and not is_zero(pi)
        assert not {"semantic", "classification"} & set(objective.parts)


@pytest.mark.parametrize(
    "ablation, expected",
    [
        ("E", {"soft", "hard", "match"}),
        ("E+LS", {"semantic", "soft", "hard", "match"}),
        ("E+LC", {"classification", "soft", "hard", "match"}),
        ("Two-Step", {"soft", "hard", "match"}),
        ("No-Soft", {"semantic", "classification", "hard"}),
        ("DPQ", {"semantic", "classification", "soft", "hard", "match"}),
    ],
)
def test_each_ablation_leaves_its_parts_out_of_the_loss(images, batch, ablation, expected):
    config = TrainConfig(ablation=ablation, epochs=4)
    model = initialised(DPQ, images)
    frozen = not config.parts.joint
    theta, _, objective = gradients(model, batch, config.weights, quantize=True, frozen=frozen)
    weights = config.weights._asdict()
    weighted = {name for name in objective.parts if weights[name]}
    assert weighted == expected
    torch.testing.assert_close(objective.loss.detach(), sum(weights[name] * objective.parts[name] for name in expected))
    assert is_zero(theta) == frozen
    assert config.first_joint_epoch == (0 if ablation == "E" else 2)


def test_l_s_without_label_embeddings_is_refused(batch):
    model = make(DPQ, label_embeddings=None, d=7)
    assert model.objective(*batch, TrainConfig(ablation="E+LC").weights, quantize=True).x.shape == (24, 7)
    with pytest.raises(ValueError, match="L_S needs label_embeddings"):
        model.objective(*batch, LossWeights(), quantize=True)


def test_unit_vectors_keep_e_from_shrinking_them(images, batch):
    free, unit = initialised(DPQ, images), initialised(DPQ, images, unit=True)
    v, u = free.embed(batch[0]).detach(), unit.embed(batch[0]).detach()
    torch.testing.assert_close(u, v / v.norm(dim=1, keepdim=True))
    a, b = (m.objective(*batch, LossWeights(), quantize=False).loss.detach() for m in (free, unit))
    torch.testing.assert_close(a, b)  # L_S and L_C are the same


def test_several_labels(images):
    pixels, labels = images[:24]
    multi_hot = torch.nn.functional.one_hot(labels, 10).float()
    multi_hot[:, 3] = 1
    for system in (DPQ, PQN):
        theta, _, objective = gradients(make(system), (pixels, multi_hot), LossWeights(), quantize=False)
        assert not is_zero(theta)
        assert bool(torch.isfinite(objective.loss))


def test_pqn_s_triplets_train_network_and_codebooks(images, batch):
    for system, arguments in ((PQN, {"M": 3}), (RPQN, {"M": 2, "depth": 2})):
        model = initialised(system, images, **arguments)
        theta, pi, _ = gradients(model, batch, LossWeights(classification=0), quantize=True)
        assert not is_zero(theta[: len(list(model.backbone.parameters()))])
        assert all(bool(g.any()) for g in pi)


def test_rpqn_s_codebooks_follow_the_error_of_every_depth_too(images, batch):
    model = initialised(RPQN, images, M=2, depth=2).eval()
    with_error, without = (
        gradients(model, batch, LossWeights(classification=0, hard=hard), quantize=True) for hard in (0.5, 0)
    )
    r = model.represent(model.features(batch[0])).detach()
    expected = 0
    for sub, part in zip(r.split(model.d // 2, dim=1), model.quantizer.subspaces, strict=True):
        codes = part.encode(sub)
        for depth in (1, 2):
            decoded = sum(part.codebooks[level][codes[:, level]] for level in range(depth))
            expected += (sub - decoded).square().sum(1).mean()
    torch.testing.assert_close(with_error[2].parts["hard"], expected)
    for theta, same in zip(with_error[0], without[0], strict=True):  # the network follows the triplets alone
        torch.testing.assert_close(theta, same)
    assert any(not torch.equal(pi, other) for pi, other in zip(with_error[1], without[1], strict=True))
    assert "hard" not in gradients(initialised(PQN, images, M=2), batch, LossWeights(), quantize=True)[2].parts


def test_any_module_is_a_backbone(batch):
    pixels, _ = batch
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9))
    with pytest.raises(ValueError, match="Sequential has no attribute out_features; pass feature_dim"):
        DPQ(backbone, 10, embeddings())
    model = DPQ(backbone, 10, embeddings(), feature_dim=9)
    assert model.embed(pixels).shape == (24, 12)
    v, scores, quantized = model(pixels)
    assert (v.shape, scores.shape, quantized.soft.shape) == ((24, 12), (24, 10), (4, 24, 12))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"label_embeddings": embeddings()[:9]}, r"label_embeddings has shape \(9, 12\), expected num_classes=10"),
        ({"label_embeddings": None}, "neither label_embeddings nor d"),
        ({"d": 5}, "d is 5, but label_embeddings have 12"),
        ({"prefix_weights": [1, 2]}, "expected M=3 numbers"),
    ],
)
def test_bad_arguments_of_dpq(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(DPQ, **arguments)


# ---- export ----------------------------------------------------------------------------------------------------


def unpacked(index, packed, nbits):
    reader = [faiss.BitstringReader(faiss.swig_ptr(row), row.size) for row in packed]
    n_codes = index.code_size * 8 // nbits
    return np.array([[r.read(nbits) for _ in range(n_codes)] for r in reader])


@pytest.mark.parametrize(
    "system, arguments, metric, kind",
    [
        (DPQ, {"M": 4}, faiss.METRIC_L2, IndexDPQ),
        (DPQ, {"M": 4}, faiss.METRIC_INNER_PRODUCT, IndexDPQ),
        (PQN, {"M": 4}, faiss.METRIC_INNER_PRODUCT, faiss.IndexPQ),
        (PQN, {"M": 4}, faiss.METRIC_L2, faiss.IndexPQ),
        (RPQN, {"M": 2, "depth": 2}, faiss.METRIC_INNER_PRODUCT, faiss.IndexProductResidualQuantizer),
        (RPQN, {"M": 2, "depth": 2}, faiss.METRIC_L2, faiss.IndexProductResidualQuantizer),
    ],
)
def test_the_index_has_the_model_s_codes_and_distances(images, system, arguments, metric, kind):
    model = initialised(system, images, **arguments)
    index = model.to_index(metric)
    assert isinstance(index, kind) and index.is_trained and index.ntotal == 0 and index.metric_type == metric
    assert index.sa_code_size() == 2
    x, _ = embed_dataset(model, images)
    codes = model.encode(images.tensors[0])
    np.testing.assert_array_equal(unpacked(index, index.sa_encode(x), 4), codes)
    reconstructions = model.quantizer.decode(codes).numpy()
    np.testing.assert_allclose(index.sa_decode(index.sa_encode(x)), reconstructions, atol=1e-5)

    index.add(x)
    D, I = index.search(x[:50], 10)
    found = reconstructions[I]
    if metric == faiss.METRIC_L2:
        expected = ((x[:50, None] - found) ** 2).sum(2)
        best = np.sort(((x[:50, None] - reconstructions) ** 2).sum(2), 1)[:, :10]
    else:
        expected = (x[:50, None] * found).sum(2)
        best = -np.sort(-(x[:50] @ reconstructions.T), 1)[:, :10]
    np.testing.assert_allclose(D, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(D, best, rtol=1e-4, atol=1e-5)


def test_default_metrics_are_the_papers(images):
    assert make(DPQ).to_index().metric_type == faiss.METRIC_L2
    assert make(PQN).to_index().metric_type == faiss.METRIC_INNER_PRODUCT
    assert make(RPQN).to_index().metric_type == faiss.METRIC_INNER_PRODUCT
    with pytest.raises(ValueError, match="expected METRIC_INNER_PRODUCT or METRIC_L2"):
        make(PQN).to_index(faiss.METRIC_L1)


def test_the_default_pqn_export_s_file_is_read_by_faiss(images, tmp_path):
    for system, arguments in ((DPQ, {}), (PQN, {"M": 4}), (RPQN, {})):
        model = initialised(system, images, **arguments)
        searched = ImageIndex(model)
        searched.add(images.tensors[0])
        faiss.write_index(searched.index, str(tmp_path / "index"))
        again = faiss.read_index(str(tmp_path / "index"))
        xq = searched.embed(images.tensors[0][:9])
        np.testing.assert_allclose(again.search(xq, 3)[0], searched.index.search(xq, 3)[0], rtol=1e-4, atol=1e-5)


def test_the_first_name_of_an_image_index_works():
    assert Encoder is ImageIndex


def test_an_image_index_searches_by_images(images):
    model = initialised(DPQ, images)
    pixels = images.tensors[0]
    searched = ImageIndex(model, batch_size=100)
    searched.add(pixels[:450])
    searched.add(pixels[450:].numpy())
    x, _ = embed_dataset(model, images)
    expected = model.to_index()
    expected.add(x)
    assert searched.ntotal == 600
    D, I = searched.search(pixels[:20], 5)
    D_expected, I_expected = expected.search(x[:20], 5)
    np.testing.assert_array_equal(I, I_expected)
    np.testing.assert_allclose(D, D_expected, atol=1e-5)
    np.testing.assert_array_equal(
        ImageIndex(model, searched.index).search(pixels[:20] / 255.0, 5, params=faiss.SearchParameters())[1], I
    )
    with pytest.raises(ValueError, match="index has d=3, the model's vectors have 12"):
        ImageIndex(model, faiss.IndexFlatL2(3))


# ---- videos ----------------------------------------------------------------------------------------------------


def test_a_video_is_one_vector_of_its_segments(images):
    model = make(TPQN, M=4, segments=2).eval()
    frames = images.tensors[0][:40].view(10, 4, 1, 8, 8)
    with torch.no_grad():
        r = model.embed(frames)
        features = model.backbone(model.preprocess(frames.flatten(0, 1))).view(10, 2, 2, -1).mean(2)
        expected = torch.cat([model.projection(features[:, 0]), model.projection(features[:, 1])], 1)
    expected = torch.nn.functional.normalize(expected.view(10, 4, 3), dim=2).flatten(1)
    torch.testing.assert_close(r, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(r.view(10, 4, 3).norm(dim=2), torch.ones(10, 4))
    swapped = model.embed(frames[:, [2, 3, 0, 1]])
    torch.testing.assert_close(swapped, r.view(10, 2, 6).flip(1).flatten(1), atol=1e-5, rtol=1e-4)


def test_videos_without_enough_frames_are_refused(images):
    with pytest.raises(ValueError, match="T >= 2 frames"):
        make(TPQN).embed(images.tensors[0][:3, None])
    with pytest.raises(ValueError, match="M is 4, expected a multiple of segments=3"):
        make(TPQN, segments=3)


def test_embedding_restores_the_training_mode(images):
    model = make(DPQ).train()
    x, labels = embed_dataset(model, images, batch_size=128)
    assert model.training
    assert (x.shape, x.dtype, labels.shape, labels.dtype) == ((600, 12), np.float32, (600,), np.int64)
    multi_hot = torch.nn.functional.one_hot(images.tensors[1], 10).float()
    _, labels = embed_dataset(model, torch.utils.data.TensorDataset(images.tensors[0], multi_hot))
    assert (labels.shape, labels.dtype) == ((600, 10), bool)
