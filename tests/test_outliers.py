"""One far value costs at most its codeword, not the index: neither in codebooks that are taken over nor in training."""

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import training
from faiss_dpq.codec import ProgressiveQuantizer, centre_of

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


# ---- codebooks that are taken over ---------------------------------------------------------------------------------


def test_the_centre_is_the_mean_of_what_is_not_far():
    rng = np.random.default_rng(0)
    rows = (3 + rng.standard_normal((64, 8))).astype(np.float32)
    np.testing.assert_array_equal(centre_of(rows), rows.mean(0, dtype=np.float64).astype(np.float32))
    for far in (1e3, -1e5, 1e18):
        with_one = rows.copy()
        with_one[5] = far
        np.testing.assert_allclose(centre_of(with_one), np.delete(rows, 5, axis=0).mean(0), rtol=1e-6)
    with_many = rows.copy()
    with_many[:30] += 1e6
    np.testing.assert_allclose(centre_of(with_many), rows[30:].mean(0), rtol=1e-6)


def test_the_centre_of_few_rows():
    rows = np.array([[1, 2], [3, 6]], np.float32)
    np.testing.assert_array_equal(centre_of(rows), [2, 4])
    np.testing.assert_array_equal(centre_of(rows[:1]), [1, 2])
    same = np.ones((8, 2), np.float32)
    same[3] = 1e6
    np.testing.assert_array_equal(centre_of(same), [1, 1])


def assert_float64_distances(D, I, x, xq, metric):
    """As a loop in float64 finds them, but for the rounding of float32."""
    x, xq = x.astype(np.float64), xq.astype(np.float64)
    exact = ((xq[:, None] - x[None]) ** 2).sum(2) if metric == faiss.METRIC_L2 else xq @ x.T
    best = np.sort(exact if metric == faiss.METRIC_L2 else -exact, axis=1)[:, : I.shape[1]]
    np.testing.assert_allclose(D if metric == faiss.METRIC_L2 else -D, best, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, I, axis=1), D, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("far", [1e3, 1e5, 1e9])
@pytest.mark.parametrize("used", [False, True])
def test_a_far_codeword_leaves_other_distances_as_they_are(simd, metric, level, far, used):
    rng = np.random.default_rng(1)
    codebooks = naive.random_codebooks(rng, 4, 16, 12)
    codebooks[level, 3] = far
    codes = rng.integers(0, 16, (20_000, 4)).astype(np.uint16)
    codes[codes[:, level] == 3, level] = 4
    codes[-1, level] = 3 if used and metric == faiss.METRIC_L2 else 4  # the best of many products
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    index.add_sa_codes(naive.pack(codes, 4))
    xq = naive.normal(rng, 40, 12)
    x = naive.decode(codebooks, codes)
    for queries in (xq, xq[:1]):
        assert_float64_distances(*index.search(queries, 5), x, queries, metric)


def normal_with_one_far_row(n=4000, d=16):
    x = naive.normal(np.random.default_rng(0), n, d)
    x[5] = 1e5
    return x


def test_a_stock_index_with_an_outlier_finds_what_stock_finds():
    x = normal_with_one_far_row()
    stock = faiss.IndexResidualQuantizer(16, 4, 6)
    stock.train(x)
    stock.add(x[100:1100])
    D, I = stock.search(x[100:150], 1)
    ours = faiss_dpq.downcast_index(stock).search(x[100:150], 1)
    np.testing.assert_array_equal(ours[1], I)
    np.testing.assert_allclose(ours[0], D, rtol=2e-6)


@pytest.mark.parametrize("what", ["centre of a list", "codeword"])
def test_lists_with_an_outlier_find_what_float64_finds(simd, what):
    rng = np.random.default_rng(2)
    centres, codebooks = naive.normal(rng, 8, 12), naive.random_codebooks(rng, 4, 16, 12)
    if what == "codeword":
        codebooks[0, 3] = 1e5
    else:
        centres[5] = 1e5
    coarse = faiss.IndexFlatL2(12)
    coarse.add(centres)
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks)
    codes = rng.integers(4, 16, (4000, 4)).astype(np.uint16)
    lists = rng.integers(0, 8, 4000)
    index.add_sa_codes(np.concatenate([lists[:, None].astype(np.uint8), naive.pack(codes, 4)], axis=1))
    index.nprobe = 7  # all but the farthest
    xq = naive.normal(rng, 40, 12)
    _, keys = coarse.search(xq, 7)
    x = naive.decode(codebooks, codes) + centres[lists]
    for row in range(40):
        probed = np.flatnonzero(np.isin(lists, keys[row]))
        for D, I in (index.search(xq, 5), index.search(xq[row : row + 1], 5)):
            at = row if len(D) > 1 else 0
            numbers = np.searchsorted(probed, I[at : at + 1])
            assert_float64_distances(D[at : at + 1], numbers, x[probed], xq[row : row + 1], faiss.METRIC_L2)


@pytest.mark.parametrize("parallel_weight", [0.0, 1.0])
def test_a_far_codeword_leaves_codes_as_they_are(parallel_weight):
    rng = np.random.default_rng(3)
    codebooks, x = naive.random_codebooks(rng, 4, 16, 12), naive.normal(rng, 500, 12)
    for level in (0, 2):
        near, far = codebooks.copy(), codebooks.copy()
        far[level, 3], near[level, 3] = 1e6, near[level, 4]
        codes = [ProgressiveQuantizer(some).encode(x, parallel_weight=parallel_weight) for some in (near, far)]
        errors = [((x - naive.decode(near, some)) ** 2).sum() for some in codes]
        assert (codes[1][:, level] != 3).all()
        np.testing.assert_allclose(errors[1], errors[0], rtol=1e-2)


# ---- training ------------------------------------------------------------------------------------------------------


def unit_vectors(n):
    """Around 200 directions."""
    rng = np.random.default_rng(n)
    x = np.random.default_rng(5).standard_normal((200, 32))[rng.integers(0, 200, n)]
    x += 0.5 * rng.standard_normal(x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


OUTLIERS = {
    "none": lambda x: None,
    "one row": lambda x: x.__setitem__(5, -9999),
    "one farther row": lambda x: x.__setitem__(5, -99999),
    "one element": lambda x: x.__setitem__((7, 3), 1e6),
    "one row, very far": lambda x: x.__setitem__(9, 1e12),
    "a percent of the rows": lambda x: x.__setitem__(slice(None, None, 100), 1e4 * naive.normal(np.random, 40, 32)),
}


def recall_at_10(index, outlier):
    x, base, xq = unit_vectors(4000), unit_vectors(3000), unit_vectors(301)
    OUTLIERS[outlier](x)
    index.train(x, effort="fast")
    index.add(base)
    _, nearest = faiss.knn(xq, base, 1)
    return (index.search(xq, 10)[1] == nearest).any(1).mean()


def flat():
    return faiss_dpq.IndexDPQ(32, 4, 6)


def lists():
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(32), 32, 8, 4, 6)
    index.nprobe = 8
    return index


@pytest.mark.parametrize("make", [flat, lists])
def test_outliers_in_training_leave_recall_where_it_is(make):
    recalls = {outlier: recall_at_10(make(), outlier) for outlier in OUTLIERS}
    # The coarse quantizer is FAISS's own, and spends some of its lists on a percent of far rows.
    assert min(recalls.values()) > recalls["none"] - (0.05 if make is flat else 0.1), recalls


@pytest.mark.parametrize("make", [flat, lists])
@pytest.mark.parametrize("value", [1e19, -3e38, 1e18])
def test_values_whose_squares_overflow_are_refused(make, value):
    x = unit_vectors(1000)
    index = make()
    with pytest.raises(RuntimeError, match=r"train: x has .* overflow float32"):
        index.train((x * abs(value)).astype(np.float32) if abs(value) < 1e30 else np.full_like(x, value))
    assert not index.is_trained
    one = x.copy()
    one[7, 7] = 1e19
    with pytest.raises(RuntimeError, match=r"train: x has .* overflow float32"):
        index.train(one)
    assert not index.is_trained and (make is flat or index.quantizer.ntotal == 0)
    index.train(x, effort="fast")
    assert index.is_trained


def test_large_values_that_fit_are_trained_on():
    x = unit_vectors(1000)
    codebooks, _ = training.train_codebooks(x, 3, 4, effort="fast")
    scaled, _ = training.train_codebooks(x * np.float32(2.0**50), 3, 4, effort="fast")
    np.testing.assert_allclose(scaled, codebooks * 2.0**50, rtol=1e-3, atol=1e-3 * 2.0**50)


def test_outliers_have_codewords_of_their_own():
    x = unit_vectors(3000)
    far = 1e4 * naive.normal(np.random.default_rng(1), 4, 32)
    x[:4] = far
    codebooks, _ = training.train_codebooks(x, 3, 6, effort="fast")
    quantizer = ProgressiveQuantizer(codebooks)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(far)), far, rtol=0.1, atol=3)
    many = unit_vectors(3000)
    many[::10] += 1e4  # a tenth of the vectors are no outliers
    quantizer = ProgressiveQuantizer(training.train_codebooks(many, 3, 6, effort="fast")[0])
    errors = ((quantizer.decode(quantizer.encode(many)) - many) ** 2).sum(1)
    assert errors.max() < 2


# ---- few distinct rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distinct", [1, 2, 20])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_few_distinct_rows_are_found_at_distance_0(distinct, offset):
    rng = np.random.default_rng(0)
    x = (offset + rng.standard_normal((distinct, 16)))[rng.integers(0, distinct, 1500)].astype(np.float32)
    index = faiss_dpq.IndexDPQ(16, 4, 6)
    index.train(x, effort="fast")
    assert index.shrinkage == 1
    index.add(x)
    lims, _, I = index.range_search(x[:100], 0.01)
    for row, (begin, end) in enumerate(zip(lims[:-1].astype(int), lims[1:].astype(int), strict=True)):
        np.testing.assert_array_equal(np.sort(I[begin:end]), np.flatnonzero((x == x[row]).all(1)))
