"""Training gives product codebooks where additive ones would find fewer neighbours, and only there."""

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import training
from faiss_dpq.codec import ProgressiveQuantizer
from faiss_dpq.training.product import product_codebooks


def structureless(n_train=1000, n=2000, nq=200, d=32):
    """The data of FAISS's own tests (get_dataset_2): sines of ten dimensions, far more turns than training vectors."""
    rng = np.random.RandomState(1338)
    total = n_train + n + nq
    x = rng.normal(size=(total, 10)) @ rng.rand(10, d)
    x = np.sin(x * (rng.rand(d) * 4 + 0.1)).astype(np.float32)
    return np.split(x, [n_train, n_train + n])


def hits(index, train, base, xq, **options):
    """How many of the ten nearest are among the ten found."""
    index.train(train, **options)
    index.add(base)
    nearest = faiss.IndexFlat(base.shape[1], index.metric_type)
    nearest.add(base)
    pairs = zip(index.search(xq, 10)[1], nearest.search(xq, 10)[1], strict=True)
    return sum(len(np.intersect1d(found, right)) for found, right in pairs)


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_recall_on_structureless_data_is_not_below_that_of_pq(metric):
    data = structureless()
    index = faiss_dpq.IndexDPQ(32, 4, 8, metric)
    ours, theirs = hits(index, *data), hits(faiss.IndexPQ(32, 4, 8, metric), *data)
    assert ours > 0.97 * theirs
    assert index.train_stats.structure == "product"


def test_given_weights_are_of_all_lengths():
    """Product codebooks would be good at full length only."""
    train, *_ = structureless()
    codebooks, stats = training.train_codebooks(train, 4, 6, weights=[4, 3, 2, 1], effort="fast")
    assert stats.structure == "additive"
    assert (codebooks[1:] != 0).all()


def test_real_vectors_and_short_ones_keep_additive_codebooks(digits):
    assert training.train_codebooks(digits, 4, 6, effort="fast")[1].structure == "additive"
    narrow = structureless()[0][:, :3]
    assert training.train_codebooks(narrow, 4, 4, effort="fast")[1].structure == "additive"  # more levels than columns


@pytest.mark.parametrize("M", [1, 3, 7])
def test_product_codebooks_have_blocks_of_their_own(M):
    x = 5 + np.random.default_rng(0).standard_normal((500, 7)).astype(np.float32)
    quantizer = ProgressiveQuantizer(product_codebooks(x, M, 16, 1234))
    blocks = quantizer.centred != 0
    assert (blocks.any(1).sum(0) == 1).all()  # every dimension belongs to one level
    np.testing.assert_allclose(quantizer.centre, 5, atol=0.5)
    codes = quantizer.encode(x)
    for level in range(M):
        own = blocks[level].any(0)
        distances = ((x[:, None, own] - quantizer.centre[own] - quantizer.centred[level][:, own]) ** 2).sum(2)
        least = np.take_along_axis(distances, codes[:, level : level + 1].astype(int), axis=1)
        np.testing.assert_allclose(least[:, 0], distances.min(1), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n, M, nbits", [(2, 1, 1), (8, 2, 1), (16, 2, 2), (19, 3, 1), (16, 17, 1)])
def test_a_few_vectors_train_without_a_warning(n, M, nbits):
    x = np.random.default_rng(0).standard_normal((n, 6)).astype(np.float32)
    codebooks, stats = training.train_codebooks(x, M, nbits)
    assert np.isfinite(codebooks).all() and np.isfinite(stats.mse).all() and np.isfinite(stats.history).all()
    assert stats.mse[-1] < ((x - x.mean(0)) ** 2).sum(1).mean()


@pytest.mark.parametrize("kind", ["flat", "lists"])
@pytest.mark.parametrize(("d", "M", "more"), [(64, 40, 0), (64, 40, 3), (384, 128, 0), (8, 20, 0), (8, 4, 0)])
def test_as_many_vectors_as_codewords_are_enough(d, M, more, kind):
    """None of them can be held out then, though every twentieth would be of more."""
    x = np.random.default_rng(0).standard_normal((64 + more, d), np.float32)
    index = faiss_dpq.index_factory(d, f"DPQ{M}x6" if kind == "flat" else f"IVF1,DPQ{M}x6")
    index.train(x)
    index.add(x)
    np.testing.assert_array_equal(index.search(x, 1)[1][:, 0], np.arange(len(x)))
