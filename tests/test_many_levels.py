"""Codes of more than 16 levels are found as the plain loop finds them, on every path of the scans."""

import functools

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
N = 17_003  # enough for samples and 16-bit sums; the last chunks and columns are not full
D = 24
NQ = 21  # more than any instruction set's least batch
K = 10
CHECKED = np.array([0, 1, 9, 18, 19, 20])  # queries whose results are compared with the plain loop's


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def random(rng, M, nbits):
    return normal(rng, M, 1 << nbits, D) * 0.98 ** np.arange(M, dtype=np.float32)[:, None, None]


def structured(rng, M, nbits):
    """Large codewords of all dimensions first, then small ones, each of a third of the dimensions."""
    codebooks = 0.3 * random(rng, M, nbits)
    codebooks[:8] *= 10
    for level in range(8, M):
        block = level % 3 * (D // 3)
        codebooks[level, :, :block] = codebooks[level, :, block + D // 3 :] = 0
    return codebooks


def one_far_codeword(rng, M, nbits):
    codebooks = random(rng, M, nbits)
    codebooks[3, 1] += 300
    return codebooks


def far_codewords_that_cancel(rng, M, nbits):
    """Vectors that have both are near the others, but their cross terms are far below all."""
    codebooks = random(rng, M, nbits)
    codebooks[3, 1] += 30
    codebooks[5, 1] -= 30
    return codebooks


def zeros_behind(rng, M, nbits):
    codebooks = random(rng, M, nbits)
    codebooks[5:] = 0
    return codebooks


def near_ties(rng, M, nbits, offset=0.0):
    """Codewords that differ by few units in the last place: what sums lose by rounding decides."""
    wiggle = 1 + 4 * 2.0**-24 * rng.integers(0, 8, (M, 1 << nbits, 1))
    return (rng.standard_normal((M, 1, D)) * wiggle).astype(np.float32)


def shrinking(rng, M, nbits):
    """The first level alone has more than a byte's range."""
    return normal(rng, M, 1 << nbits, D) * 0.6 ** np.arange(M, dtype=np.float32)[:, None, None]


KINDS = {
    f.__name__: f
    for f in (random, structured, one_far_codeword, far_codewords_that_cancel, zeros_behind, near_ties, shrinking)
}


@functools.cache
def made(kind, M, nbits, metric):
    """An index, and queries near some of its vectors."""
    rng = np.random.default_rng(M)
    codebooks = KINDS[kind](rng, M, nbits)
    codes = rng.integers(0, 1 << nbits, (N, M)).astype(np.uint16)
    if kind == "one_far_codeword":  # few have it, and are outliers
        codes[codes[:, 3] == 1, 3] = 2
        codes[[5, 4000, 9000, N - 1], 3] = 1
    if kind == "far_codewords_that_cancel":
        codes[:, [3, 5]] = np.maximum(codes[:, [3, 5]], 2)
        codes[np.ix_([0, 9, 4000, 9000, N - 1], [3, 5])] = 1
    codes[8000:8040] = codes[:40]  # ties, which the lower id wins
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    index.add_sa_codes(naive.pack(codes, nbits))
    near = codes[np.r_[:18, 4000, 9000, N - 1]]
    x = naive.decode(codebooks, near)
    xq = (x + 0.3 * x.std() * rng.standard_normal(x.shape)).astype(np.float32)
    return index, xq


@functools.cache
def expected(kind, M, nbits, metric, simd):
    """The plain loop's k nearest to the queries that are checked; the last bits of tables differ between `simd`."""
    index, xq = made(kind, M, nbits, metric)
    return plain(index, unpacked(index, M), xq)


def plain(index, codes, xq, members=None, k=K):
    """The float32 loop of dpq_scan.h, for the queries that are checked."""
    quantizer, metric, levels = index.residual_quantizer, index.metric_type, codes.shape[1]
    tables, constants, _ = quantizer.tables(np.ascontiguousarray(xq[CHECKED]), levels, metric)
    l2 = metric == faiss.METRIC_L2
    ids = np.arange(len(codes)) if members is None else members
    codes = codes[ids]
    terms = quantizer.cross_terms(codes) if l2 else np.zeros(len(codes), np.float32)
    found, I = naive.scan(tables, constants, terms, codes, ids, k, quantizer.K, not l2)
    return found if l2 else -found, I


def unpacked(index, levels):
    return _kernels.unpack_codes(index._packed_codes(), levels, index._nbits)


def assert_in_batch(index, xq, expected, **params):
    D, I = index.search(xq, K, **params)
    np.testing.assert_array_equal(I[CHECKED], expected[1])
    np.testing.assert_array_equal(D[CHECKED], expected[0])


def assert_one_by_one(index, xq, expected, n=2, **params):
    """The first and the last n of the queries that are checked."""
    for i in [*range(n), *range(len(CHECKED) - n, len(CHECKED))]:
        D, I = index.search(xq[CHECKED[i]][None], K, **params)
        np.testing.assert_array_equal(I[0], expected[1][i])
        np.testing.assert_array_equal(D[0], expected[0][i])


SHAPES = [
    ("random", 17, 8),
    ("structured", 32, 8),
    ("random", 48, 8),
    ("structured", 48, 8),
    ("structured", 96, 8),
    ("random", 33, 4),
    ("structured", 254, 4),
    ("random", 1024, 4),
    ("random", 20, 6),
    ("one_far_codeword", 17, 8),
    ("far_codewords_that_cancel", 17, 8),
    ("zeros_behind", 17, 8),
    ("near_ties", 48, 8),
    ("shrinking", 32, 8),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("kind", "M", "nbits"), SHAPES)
def test_results_are_those_of_the_plain_loop(simd, kind, M, nbits, metric):
    index, xq = made(kind, M, nbits, metric)
    nearest = expected(kind, M, nbits, metric, simd)
    assert_in_batch(index, xq, nearest)
    assert_one_by_one(index, xq, nearest)


@pytest.mark.parametrize(("kind", "M"), [("random", 17), ("random", 96), ("structured", 48), ("shrinking", 32)])
@pytest.mark.parametrize("metric", METRICS)
def test_sums_of_16_bits_bound_almost_all(simd, kind, M, metric, threads):
    threads(1)
    index, xq = made(kind, M, 8, metric)
    for queries in (xq, xq[:1]):
        index.search(queries, 1)
        _kernels.reset_counters()
        index.search(queries, 1)
        counts, pairs = _kernels.counters(), len(queries) * index.ntotal
        assert (counts["bounded"], counts["floated"]) == (pairs, 0)
        assert counts["rescored"] < pairs / 50


def test_one_query_by_several_threads(simd, threads, worth_threads):
    index, xq = made("random", 48, 8, faiss.METRIC_L2)
    nearest = expected("random", 48, 8, faiss.METRIC_L2, simd)
    threads(2)
    assert_one_by_one(index, xq, nearest, 3)
    assert_in_batch(index, xq, nearest)


@pytest.mark.parametrize("levels", [12, 17, 31])
@pytest.mark.parametrize("metric", METRICS)
def test_prefixes(levels, metric):
    index, xq = made("structured", 48, 8, metric)
    params = faiss_dpq.SearchParametersDPQ(levels=levels)
    nearest = plain(index, unpacked(index, levels), xq)
    assert_in_batch(index, xq, nearest, params=params)
    assert_one_by_one(index, xq, nearest, params=params)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits", "coarse_levels"), [(48, 8, 12), (48, 8, 24), (254, 4, 9), (20, 6, 11)])
def test_coarse_to_fine(simd, M, nbits, coarse_levels, metric):
    """Candidates are those that a search of the prefix finds; sums of 16 bits bound short prefixes, too."""
    index, xq = made("structured", M, nbits, metric)
    _, candidates = plain(index, unpacked(index, coarse_levels), xq, k=30 * K)
    nearest = [plain(index, unpacked(index, M), xq, np.sort(some)) for some in candidates]
    nearest = [np.stack([found[part][q] for q, found in enumerate(nearest)]) for part in (0, 1)]
    params = faiss_dpq.SearchParametersDPQ(coarse_levels=coarse_levels, k_factor=30)
    assert_in_batch(index, xq, nearest, params=params)
    assert_one_by_one(index, xq, nearest, params=params)


def test_one_query_scans_a_prefix_by_the_columns_of_all_levels():
    index, xq = made("random", 33, 4, faiss.METRIC_L2)
    fresh = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
    fresh.add_sa_codes(index._packed_codes().copy())
    fresh.search(xq[:1], K)
    derived = fresh.memory_usage()["derived"]
    _kernels.reset_counters()
    fresh.search(xq[:1], K, params=faiss_dpq.SearchParametersDPQ(coarse_levels=8, k_factor=20))
    assert _kernels.counters()["bounded"] == N
    assert derived + 5 * N <= fresh.memory_usage()["derived"] < derived + 6 * N  # terms and their bins


def test_one_query_scans_a_prefix_in_an_order_in_the_end():
    index, xq = made("structured", 48, 8, faiss.METRIC_L2)
    fresh = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
    fresh.add_sa_codes(index._packed_codes().copy())
    fresh.derived_bytes_per_vector = 48 + 48  # room for the columns of all levels and the order of a prefix
    fresh.search(xq[:1], K)
    fresh.coarse_levels, fresh.k_factor = 12, 20
    _kernels.reset_counters()
    first = fresh.search(xq[:1], K)
    assert (_kernels.counters()["bounded"], _kernels.counters()["ordered"]) == (N, 0)
    for _ in range(20):
        fresh.search(xq[:1], K)
    _kernels.reset_counters()
    for found, before in zip(fresh.search(xq[:1], K), first, strict=True):
        np.testing.assert_array_equal(found, before)
    assert _kernels.counters()["ordered"] == N


@pytest.mark.parametrize(
    "members", [np.arange(301, 16_000), np.arange(0, N, 3), np.arange(7, N, 40)], ids=["range", "many", "few"]
)
@pytest.mark.parametrize("metric", METRICS)
def test_selectors(simd, members, metric):
    index, xq = made("random", 33, 4, metric)
    plain_range = len(members) == members[-1] - members[0] + 1
    selector = (
        faiss.IDSelectorRange(int(members[0]), int(members[-1]) + 1) if plain_range else faiss.IDSelectorBatch(members)
    )
    params = faiss_dpq.SearchParametersDPQ(sel=selector)
    nearest = plain(index, unpacked(index, 33), xq, members)
    assert_in_batch(index, xq, nearest, params=params)
    assert_one_by_one(index, xq, nearest, params=params)


def test_appended_codes_are_derived_by_themselves(monkeypatch):
    """Terms of new codes only; columns of the last, incomplete block anew."""
    index, xq = made("random", 33, 4, faiss.METRIC_L2)
    codes = index._packed_codes().copy()
    grown = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
    grown.add_sa_codes(codes[:9_000])
    grown.search(xq, K)
    grown.search(xq[:1], K)
    grown.add_sa_codes(codes[9_000:])
    computed = []
    cross_terms = faiss_dpq.ProgressiveQuantizer.cross_terms

    def counted(self, codes):
        computed.append(len(codes))
        return cross_terms(self, codes)

    monkeypatch.setattr(faiss_dpq.ProgressiveQuantizer, "cross_terms", counted)
    found = grown.search(xq[:1], K), grown.search(xq, K)
    assert sum(computed) == N - 9_000
    for D, I in found:
        np.testing.assert_array_equal(D, index.search(xq, K)[0][: len(D)])
        np.testing.assert_array_equal(I, index.search(xq, K)[1][: len(D)])


def test_memory_of_terms_and_columns_is_counted():
    index, xq = made("random", 17, 8, faiss.METRIC_L2)
    fresh = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
    fresh.add_sa_codes(index._packed_codes().copy())
    fresh.search(xq, K)
    of_terms = fresh.memory_usage()["derived"]
    assert 4 * N <= of_terms < 5 * N
    fresh.search(xq[:1], K)
    assert of_terms + 17 * N <= fresh.memory_usage()["derived"] < of_terms + 20 * N


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), [(17, 8), (48, 8), (254, 4)])
def test_lists(simd, M, nbits, metric):
    rng = np.random.default_rng(M)
    codebooks, centres = structured(rng, M, nbits), 5 * normal(rng, 8, D)
    codes = rng.integers(0, 1 << nbits, (6_000, M)).astype(np.uint16)
    numbers = rng.integers(0, 8, (len(codes), 1)).astype(np.uint8)
    coarse = faiss.IndexFlat(D, metric)
    coarse.add(centres)
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks, metric)
    index.add_sa_codes(np.concatenate([numbers, naive.pack(codes, nbits)], axis=1))
    index.nprobe = 8
    x = naive.decode(codebooks, codes) + centres[numbers[:, 0]]
    xq = (x[:NQ] + normal(rng, NQ, D)).astype(np.float32)
    all_D = -(xq @ x.T) if metric == faiss.METRIC_INNER_PRODUCT else ((xq[:, None] - x[None]) ** 2).sum(2)
    order = np.argsort(all_D, axis=1)[:, :K]
    nearest = np.take_along_axis(all_D, order, axis=1) * (-1 if metric == faiss.METRIC_INNER_PRODUCT else 1)
    for queries in (slice(None), slice(1)):
        found, I = index.search(xq[queries], K)
        np.testing.assert_allclose(found, nearest[queries], rtol=1e-4, atol=1e-3)
        assert (order[queries] == I).mean() > 0.99


@pytest.mark.parametrize("metric", METRICS)
def test_terms_are_derived_with_many_codes_that_are_added(metric):
    rng = np.random.default_rng(0)
    index = faiss_dpq.IndexDPQ.from_codebooks(structured(rng, 20, 4), metric)
    x = normal(rng, 4000, D)

    def n_derived():
        return max((each.sample.n for each in (index._derived or {}).values() if each.sample is not None), default=0)

    index.add(x[:10])
    assert n_derived() == 0  # few: the next search derives them
    index.add(x[:2000])
    assert n_derived() == 0  # nor all that were there before
    index.search(x[:1], 3)
    for n in (2000, 1500):
        index.add(x[:n])
        assert n_derived() == index.ntotal
    index.reset()
    index.add(x)
    assert n_derived() == 4000
    later = faiss_dpq.clone_index(index)  # derives with its first search
    for a, b in zip(index.search(x[:NQ], K), later.search(x[:NQ], K), strict=True):
        np.testing.assert_array_equal(a, b)
    index.reset()
    index.derived_bytes_per_vector = 0
    index.add(x)
    assert index.memory_usage()["derived"] == 0
