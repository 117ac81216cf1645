"""Q-Blocks and losses equal their formulas, written in numpy; gradients go where Eq. 25 lets them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from faiss_dpq.nn import (  # noqa: E402
    ProductQuantization,
    ProgressiveQuantization,
    QBlock,
    losses,
)
from faiss_dpq.nn.qblock import Quantized  # noqa: E402


@pytest.fixture
def rng():
    torch.manual_seed(0)
    return np.random.default_rng(0)


def vectors(rng, n=40, d=6):
    return rng.standard_normal((n, d)).astype(np.float32)


def cosines(x, c):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T


def squared_distances(x, c):
    return ((x[:, None] - c) ** 2).sum(2)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("gamma", [0.5, 7.0])
def test_soft_value_is_equation_14(rng, similarity, gamma):
    block = QBlock(6, 8, gamma=gamma, similarity=similarity)
    x, c = vectors(rng), block.codewords.detach().numpy()
    d = -cosines(x, c) if similarity == "cosine" else squared_distances(x, c)
    weights = np.exp(-gamma * (d - d.min(1, keepdims=True)))
    weights /= weights.sum(1, keepdims=True)
    quantized = block(torch.from_numpy(x))
    np.testing.assert_allclose(quantized.soft.detach(), weights @ c, atol=1e-5)
    np.testing.assert_array_equal(quantized.codes, squared_distances(x, c).argmin(1))
    np.testing.assert_array_equal(quantized.hard.detach(), c[quantized.codes])


def test_large_gamma_is_the_nearest_codeword(rng):
    x = torch.from_numpy(vectors(rng))
    block = QBlock(6, 8, gamma=1e5, similarity="l2")
    quantized = block(x)
    np.testing.assert_allclose(quantized.soft.detach(), quantized.hard.detach(), atol=1e-5)
    block = QBlock(6, 8, gamma=1e5, similarity="cosine", assign="similarity")
    quantized = block(x)
    np.testing.assert_allclose(quantized.soft.detach(), quantized.hard.detach(), atol=1e-5)
    expected = cosines(x.numpy(), block.codewords.detach().numpy()).argmax(1)
    np.testing.assert_array_equal(quantized.codes, expected)
    assert (expected != QBlock.forward(_assigning_by_l2(block), x).codes.numpy()).any()


def _assigning_by_l2(block):
    block.assign = "l2"
    return block


def test_calibration_makes_gamma_independent_of_the_vectors_size(rng):
    x = torch.from_numpy(vectors(rng))
    block = QBlock(6, 8, gamma=3.0, similarity="l2")
    block.calibrate(x)
    before = block(x).soft.detach()
    with torch.no_grad():
        block.weight *= 100
    block.calibrate(100 * x)
    np.testing.assert_allclose(block(100 * x).soft.detach(), 100 * before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subtract", ["soft", "hard"])
def test_each_level_quantizes_what_the_last_left(rng, subtract):
    quantizer = ProgressiveQuantization(6, 3, 3, subtract=subtract)
    x = torch.from_numpy(vectors(rng))
    quantized = quantizer(x)
    residual = x
    for level, block in enumerate(quantizer.blocks):
        alone = block(residual)
        torch.testing.assert_close(quantized.soft[level], alone.soft)
        torch.testing.assert_close(quantized.hard[level], alone.hard)
        assert quantized.codes[:, level].equal(alone.codes)
        residual = residual - getattr(alone, subtract)


def test_retrieval_encodes_greedily_by_l2_whatever_training_does(rng):
    quantizer = ProgressiveQuantization(6, 3, 3, subtract="soft", assign="similarity")
    x = vectors(rng)
    codebooks = quantizer.codebooks.numpy()
    codes = quantizer.encode(torch.from_numpy(x))
    residual = x
    for level in range(3):
        expected = squared_distances(residual, codebooks[level]).argmin(1)
        np.testing.assert_array_equal(codes[:, level], expected)
        residual = residual - codebooks[level][expected]
    np.testing.assert_allclose(quantizer.decode(codes), x - residual, atol=1e-5)
    np.testing.assert_allclose(quantizer.decode(codes[:, :1]), codebooks[0][codes[:, 0]])


def test_initial_codebooks_are_residual_kmeans(rng):
    x = torch.from_numpy(vectors(rng, 300))
    quantizer = ProgressiveQuantization(6, 3, 3)

    def errors():
        codes = quantizer.encode(x)
        return [float((x - quantizer.decode(codes[:, : l + 1])).square().sum(1).mean()) for l in range(3)]

    random = errors()
    quantizer.initialise(x, seed=0)
    kmeans = errors()
    assert all(a < b for a, b in zip(kmeans, random, strict=True))
    assert kmeans[-1] < 0.5 * random[-1]
    assert kmeans == sorted(kmeans, reverse=True)
    with pytest.raises(RuntimeError, match="at least 2\\*\\*nbits = 8"):
        quantizer.initialise(x[:7], seed=0)


def test_dead_codewords_restart_where_vectors_are(rng):
    x = torch.from_numpy(vectors(rng, 200))
    quantizer = ProgressiveQuantization(6, 2, 3)
    quantizer.initialise(x, seed=0)
    with torch.no_grad():
        quantizer.blocks[0].weight[2:5] = 1e3
        quantizer.blocks[1].weight[7] = 1e3
    before = quantizer.codebooks
    codes = quantizer.encode(x)
    counts = torch.stack([torch.bincount(codes[:, l], minlength=8) for l in range(2)])
    error = (x - quantizer.decode(codes)).square().sum()
    dead = quantizer.restart_dead(x, counts, torch.Generator().manual_seed(0))
    assert [numbers.tolist() for numbers in dead] == [[2, 3, 4], [7]]
    codes = quantizer.encode(x)
    for level, numbers in enumerate(dead):
        assert set(numbers.tolist()) <= set(codes[:, level].tolist())
        kept = np.setdiff1d(np.arange(8), numbers)
        assert quantizer.codebooks[level][kept].equal(before[level][kept])
    assert (x - quantizer.decode(codes)).square().sum() < error


def test_product_quantization_is_pqn_s_formula(rng):
    quantizer = ProductQuantization(6, 3, 2, alpha=5.0)
    x = vectors(rng).reshape(-1, 3, 2)
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    codebooks = quantizer.codebooks.numpy()[:, 0]
    np.testing.assert_allclose(np.linalg.norm(codebooks, axis=2), 1, rtol=1e-5)
    products = np.einsum("nmi,mki->nmk", x, codebooks)
    weights = np.exp(5 * products) / np.exp(5 * products).sum(2, keepdims=True)
    quantized = quantizer(torch.from_numpy(x.reshape(-1, 6)))
    np.testing.assert_allclose(
        quantized.soft[0].detach(), np.einsum("nmk,mki->nmi", weights, codebooks).reshape(-1, 6), atol=1e-5
    )
    np.testing.assert_array_equal(quantized.codes, products.argmax(2))


def test_residual_product_quantization_sums_levels_inside_subspaces(rng):
    quantizer = ProductQuantization(6, 2, 2, depth=3)
    x = torch.from_numpy(vectors(rng, 100))
    x = torch.nn.functional.normalize(x.view(-1, 2, 3), dim=2).flatten(1)
    quantizer.initialise(x, seed=0)
    codes = quantizer.encode(x)
    assert codes.shape == (100, 6)
    codebooks = quantizer.codebooks
    halves = [sum(codebooks[m, t][codes[:, 3 * m + t]] for t in range(3)) for m in range(2)]
    torch.testing.assert_close(quantizer.decode(codes), torch.cat(halves, 1))
    shallow = ProductQuantization(6, 2, 2)
    shallow.initialise(x, seed=0)
    assert (x - quantizer.decode(codes)).square().sum() < 0.5 * (x - shallow.decode(shallow.encode(x))).square().sum()


# ---- losses ----------------------------------------------------------------------------------------------------


def quantized_of(rng, M=3, n=5, d=4):
    soft, hard = (torch.from_numpy(rng.standard_normal((M, n, d)).astype(np.float32)) for _ in range(2))
    return Quantized(soft, hard, torch.zeros(n, M, dtype=torch.int64))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_distortion_losses(rng, weights):
    x, q = vectors(rng, 5, 4), quantized_of(rng)
    w = [1.0, 1.0, 1.0] if weights is None else weights
    soft = sum(w[l] * ((x - q.soft[: l + 1].sum(0).numpy()) ** 2).sum(1).mean() for l in range(3))
    hard = sum(w[l] * ((x - q.hard[: l + 1].sum(0).numpy()) ** 2).sum(1).mean() for l in range(3))
    match = sum(w[l] * ((q.soft[l] - q.hard[l]).numpy() ** 2).sum(1).mean() for l in range(3))
    weights = None if weights is None else torch.tensor(weights)
    assert float(losses.soft_loss(torch.from_numpy(x), q, weights)) == pytest.approx(soft, rel=1e-5)
    assert float(losses.hard_loss(torch.from_numpy(x), q, weights)) == pytest.approx(hard, rel=1e-5)
    assert float(losses.match_loss(q, weights)) == pytest.approx(match, rel=1e-5)


def naive_margin(v, own_labels, z):
    cos = cosines(v, z)
    delta = 1 - cosines(z, z)
    total = 0.0
    for n, own in enumerate(own_labels):
        for i in own:
            for j in set(range(len(z))) - set(own):
                total += max(0.0, delta[i, j] - cos[n, i] + cos[n, j])
    return total / len(v)


def test_adaptive_margin_with_one_label_and_several(rng):
    v, z = vectors(rng, 6, 5), vectors(rng, 4, 5)
    labels = rng.integers(0, 4, 6)
    got = losses.adaptive_margin_loss(torch.from_numpy(v), torch.from_numpy(labels), torch.from_numpy(z))
    assert float(got) == pytest.approx(naive_margin(v, [[label] for label in labels], z), rel=1e-5)
    multi_hot = rng.random((6, 4)) < 0.5
    got = losses.adaptive_margin_loss(torch.from_numpy(v), torch.from_numpy(multi_hot).float(), torch.from_numpy(z))
    assert float(got) == pytest.approx(naive_margin(v, [np.flatnonzero(row) for row in multi_hot], z), rel=1e-5)


def test_the_margin_is_met_by_the_label_embeddings_themselves(rng):
    z = torch.from_numpy(vectors(rng, 4, 5))
    assert float(losses.adaptive_margin_loss(z, torch.arange(4), z)) == pytest.approx(0, abs=1e-5)


def test_classification_loss_with_one_label_and_several(rng):
    logits = vectors(rng, 6, 4)
    labels = rng.integers(0, 4, 6)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    got = losses.classification_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(got) == pytest.approx(-log_softmax[np.arange(6), labels].mean(), rel=1e-5)
    multi_hot = rng.random((6, 4)) < 0.5
    got = losses.classification_loss(torch.from_numpy(logits), torch.from_numpy(multi_hot).float())
    expected = (-logits * multi_hot + np.log(1 + np.exp(logits))).sum(1).mean()  # Eq. 4
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_asymmetric_triplet_loss(rng, several):
    r, s = vectors(rng, 7, 5), vectors(rng, 7, 5)
    labels = (rng.random((7, 4)) < 0.4).astype(np.float32) if several else rng.integers(0, 3, 7)
    similar = labels @ labels.T > 0 if several else labels[:, None] == labels
    terms = [
        1 / (1 + np.exp(r[a] @ s[p] - r[a] @ s[n]))
        for a in range(7)
        for p in range(7)
        for n in range(7)
        if p != a and similar[a, p] and not similar[a, n] and (n != a)
    ]
    got = losses.asymmetric_triplet_loss(torch.from_numpy(r), torch.from_numpy(s), torch.from_numpy(labels))
    assert float(got) == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_batch_without_triplets_has_no_loss(rng):
    r = torch.from_numpy(vectors(rng, 3, 5))
    assert float(losses.asymmetric_triplet_loss(r, r, torch.tensor([1, 1, 1]))) == 0
    assert float(losses.asymmetric_triplet_loss(r, r, torch.tensor([0, 1, 2]))) == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: QBlock(4, 8, similarity="dot"), "similarity is 'dot'"),
        (lambda: QBlock(4, 8, assign="soft"), "assign is 'soft'"),
        (lambda: QBlock(4, 8, gamma=0), "gamma is 0"),
        (lambda: ProgressiveQuantization(4, 0, 8), "M is 0"),
        (lambda: ProgressiveQuantization(4, 2, 13), "nbits is 13"),
        (lambda: ProgressiveQuantization(4, 2, 3, subtract="none"), "subtract is 'none'"),
        (lambda: ProgressiveQuantization(4, 2, 3).set_codebooks(torch.zeros(2, 8, 5)), r"shape \(2, 8, 5\)"),
        (lambda: ProductQuantization(7, 2, 3), "d is 7, expected a multiple of M=2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
