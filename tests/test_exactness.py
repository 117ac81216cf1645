"""A search finds what the plain loop finds, on data where the margins of its bounds decide.

Each kind of data drives one of the errors that scan_bound.h and scan_lists_impl.h allow for to what it can be at most:
with that error taken for 0 a neighbour is missed, which `python -m bench.mutations` shows.
"""

import functools
from dataclasses import dataclass

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq.codec import ProgressiveQuantizer
from faiss_dpq.search import flat as _scan
from faiss_dpq.search import lists as _lists
from faiss_dpq.search.centres import Centres
from faiss_dpq.search.near import limits_and_errors

L2, INNER_PRODUCT = faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT
METRICS = [L2, INNER_PRODUCT]
UNIT = 2.0**-24  # the relative error of a rounding in float32
N_SAMPLED = 17_000  # vectors of which the batch scan takes a sample, and bounds the others by bytes


@dataclass
class Data:
    """Codebooks (M, K, d), codes (n, M), queries (nq, d), and maybe lists, which the codes are dealt to in turn."""

    codebooks: np.ndarray
    codes: np.ndarray
    xq: np.ndarray
    centres: np.ndarray | None = None  # (nlist, d), of inverted lists
    filled: int = 0  # how many of the lists have vectors

    def __post_init__(self):
        self.codebooks = np.asarray(self.codebooks, np.float32)
        self.codes = np.asarray(self.codes, np.uint16)
        self.xq = np.asarray(self.xq, np.float32)

    @property
    def lists(self):
        return np.arange(len(self.codes)) % self.filled

    @property
    def nbits(self):
        return self.codebooks.shape[1].bit_length() - 1


# ---- data: one dimension where nothing else is said, for it is there that the bounds by geometry are tight ---------


def alike(rng, n, M, nbits, nq=30, far=10.0, spread=1e-3, offset=0.0):
    """All levels hold the same numbers: where rounding down takes much from one entry, it takes it from all."""
    codebook = offset + 1 + spread * rng.random((1, 1 << nbits, 1))
    return Data(
        np.repeat(codebook, M, axis=0),
        rng.integers(0, 1 << nbits, (n, M)),
        codebook.max() * M * far * (1 + rng.random((nq, 1))),
    )


def lost_additions(rng, n, M, nbits, nq=30, far=1e3):
    """Levels that add little more than one unit of the byte bounds, of which the float32 sum loses a part each time.

    A unit is 16 UNIT of the sum, hence the factor; rounding down must take next to nothing of it.
    """
    K = 1 << nbits
    codebooks = np.full((M, K, 1), -16.016 * UNIT)
    codebooks[:, -max(1, K // 8) :] = 0
    codebooks[0] = 0
    codebooks[1, :, 0] = 1 - 400 * UNIT * (np.arange(K) > K // 16)
    codes = rng.integers(0, K - max(1, K // 8), (n, M))
    codes[rng.random((n, M)) < 0.1] = K - 1
    return Data(codebooks, codes, 2.0 ** np.round(np.log2(far)) * (1.03 + 0.05 * rng.random((nq, 1))))


def most_lost(rng, times):
    """A number whose sum with itself, so many times, float32 rounds down the most."""
    candidates = (1 + rng.random(1000)).astype(np.float32)
    total = np.zeros_like(candidates)
    for _ in range(times):
        total += candidates
    return np.sqrt(candidates[np.argmin(total / candidates)] / 2)


def lost_terms(rng, n, M, nbits, nq=30):
    """The sums of cross terms, of so many equal ones, are rounded down over and over."""
    longest = most_lost(rng, (M - 1) * (M - 2) // 2)
    codebooks = longest * (1 - 1e-4 * rng.random((M, 1 << nbits, 1)))
    codebooks[0] = 0
    codebooks[1:, 0] = longest
    codes = rng.integers(1, 1 << nbits, (n, M))
    codes[rng.integers(0, n, 3)] = 0
    return Data(codebooks, codes, longest * (M - 1) * (1.003 + 0.05 * rng.random((nq, 1))))


def rounded_up_entries(rng, n, M=4, nbits=8, nq=60):
    """Of two levels, where the byte entries are rounded up by all that their products and differences can be.

    The numbers were found by a search: they leave the entries next to nothing for rounding down to take.
    """
    K = 1 << nbits
    codebooks = np.zeros((M, K, 1))
    codebooks[0, :, 0] = 16 * UNIT * 0.94398 * np.where(np.arange(K) < K // 2, -1, 1)
    codebooks[1, :, 0] = 1 - 16 * UNIT * 40 * rng.random(K)
    codebooks[1, 0] = 1
    codes = rng.integers(0, K // 2, (n, M))
    codes[:, 1] = rng.integers(0, K, n)
    return Data(codebooks, codes, 32.5 + 2 * rng.random((nq, 1)))


def near_ties(rng, n, M, nbits, d=3, nq=30, offset=0.0):
    """Codewords that differ by few units in the last place, far from the origin."""
    codebooks = rng.standard_normal((M, 1, d)) * (1 + 4 * UNIT * rng.integers(0, 8, (M, 1 << nbits, 1)))
    codebooks[0] += offset
    return Data(codebooks, rng.integers(0, 1 << nbits, (n, M)), offset + 3 * rng.standard_normal((nq, d)))


def one_far_codeword(rng, n, M, nbits, d=3, nq=30):
    data = Data(naive.random_codebooks(rng, M, 1 << nbits, d), rng.integers(0, 1 << nbits, (n, M)), np.zeros((nq, d)))
    data.codebooks[0, 0] += 1e4
    data.xq += 3 * rng.standard_normal((nq, d)).astype(np.float32)
    return data


def many_levels(rng, n, M, nbits, nq=13, d=3, zeros=True):
    """More levels than bytes have units for; rounding down takes from those of zeros, too."""
    codebooks = rng.standard_normal((M, 1 << nbits, d)) / np.sqrt(M)
    if zeros:
        codebooks[4:] = 0
        codebooks[:4] *= np.sqrt(M)
    return Data(codebooks, rng.integers(0, 1 << nbits, (n, M)), 2 * rng.standard_normal((nq, d)))


def in_lists(data, centres):
    """The same codes in lists with these centres, in every dimension."""
    data.centres = np.repeat(np.array(centres)[:, None], data.codebooks.shape[2], axis=1)
    data.filled = len(centres)
    return data


# ---- the plain loops -----------------------------------------------------------------------------------------------


def nearest(distances, members, k):
    """The k least of every row, ties in the order of `members`, and which of them these are."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), members[order]


def plain_loop(data, metric, k, levels, members):
    """D and I as FAISS gives them, from distances added in float32 in the order of dpq_scan.h.

    Those that search/near.py calls near are those of the reconstructions.
    """
    quantizer = ProgressiveQuantizer(data.codebooks)
    codes = np.ascontiguousarray(data.codes[members, :levels])
    tables, constants, norms = quantizer.tables(data.xq, levels, metric)
    total = np.zeros((len(data.xq), len(codes)), np.float32)
    if metric == L2:
        total += quantizer.cross_terms(codes)
    for level in range(levels):
        total += tables[:, level * quantizer.K + codes[:, level]]
    total += constants[:, None]
    if metric == L2:
        total = np.maximum(total, 0)
        limits, _ = limits_and_errors(quantizer, levels, norms)
        near_to, near = np.nonzero(total < limits[:, None])
        vectors, at = np.unique(near, return_inverse=True)
        decoded = quantizer.decode(codes[vectors]).astype(np.float64)
        total[near_to, near] = ((decoded[at] - data.xq[near_to]) ** 2).sum(axis=1)
    D, I = nearest(total, members, k)
    return (D if metric == L2 else -D), I


def assert_near_to_float64(D, data, metric, levels, members, moved=0.0):
    """D are the least distances, but for as many roundings as there are in the sums that they come from.

    moved : (n, d), what is added to the reconstructions: centres of lists.
    """
    codebooks, xq = data.codebooks.astype(np.float64), data.xq.astype(np.float64)
    x = (naive.decode(codebooks, data.codes[:, :levels]) + moved)[members]
    products, norms = xq @ x.T, (x**2).sum(1)
    exact = ((xq[:, None] - x[None]) ** 2).sum(2) if metric == L2 and x.shape[1] < 9 else -products
    if metric == L2 and x.shape[1] >= 9:
        exact = (xq**2).sum(1)[:, None] + norms - 2 * products
    exact = np.partition(exact, D.shape[1] - 1, axis=1)[:, : D.shape[1]]
    centre = codebooks[0].mean(0)
    codebooks[0] -= centre
    reach = np.linalg.norm(codebooks[:levels], axis=2).max(1).sum() + np.abs(moved).max() * np.sqrt(x.shape[1])
    lengths = np.linalg.norm(xq - centre * (metric == L2), axis=1) + np.linalg.norm(centre) * (metric != L2)
    roundings = levels**2 / 2 + 4 * levels + x.shape[1] + 8
    error = np.abs(np.sort(exact, axis=1) - (D if metric == L2 else -D))
    assert (error <= 2 * UNIT * roundings * (lengths[:, None] + reach) ** 2).all()


# ---- all codes -----------------------------------------------------------------------------------------------------

FLAT = {
    "alike": lambda rng: alike(rng, N_SAMPLED, 4, 8),
    "alike, 4 bits": lambda rng: alike(rng, N_SAMPLED, 8, 4),
    "alike, very far": lambda rng: alike(rng, N_SAMPLED, 17, 4, far=1e6),
    "alike, offset": lambda rng: alike(rng, N_SAMPLED, 4, 8, offset=1e4),
    "lost additions": lambda rng: lost_additions(rng, N_SAMPLED, 64, 8),
    "rounded up entries": lambda rng: rounded_up_entries(rng, N_SAMPLED),
    "lost terms": lambda rng: lost_terms(rng, N_SAMPLED, 128, 4, nq=16),
    "near ties": lambda rng: near_ties(rng, N_SAMPLED, 32, 4, offset=100.0),
    "one far codeword": lambda rng: one_far_codeword(rng, N_SAMPLED, 4, 8),
    "one bit": lambda rng: alike(rng, N_SAMPLED, 9, 1),
    "two bits": lambda rng: near_ties(rng, 2000, 254, 2, nq=13),
    **{
        f"{M} levels, {nbits} bits, zeros {zeros}": functools.partial(
            lambda rng, M, nbits, zeros: many_levels(rng, N_SAMPLED if M == 254 else 8200, M, nbits, zeros=zeros),
            M=M,
            nbits=nbits,
            zeros=zeros,
        )
        for M, nbits, zeros in [
            (64, 4, True),
            (128, 4, True),
            (129, 8, True),
            (254, 8, True),
            (255, 8, False),
            (1024, 4, True),
        ]
    },
}


def flat_index(data, metric):
    index = faiss_dpq.IndexDPQ.from_codebooks(data.codebooks, metric)
    index.add_sa_codes(naive.pack(data.codes, data.nbits))
    return index


@functools.cache
def flat_case(kind, metric):
    data = FLAT[kind](np.random.default_rng(0))
    return data, flat_index(data, metric)


def one_by_one(index, xq, k, **params):
    return tuple(np.concatenate(part) for part in zip(*(index.search(x[None], k, **params) for x in xq), strict=True))


def assert_equal(found, expected, k):
    np.testing.assert_array_equal(found[1], expected[1][:, :k])
    np.testing.assert_array_equal(found[0], expected[0][:, :k])


def assert_all_ways_find(index, xq, expected, ks, threads, **params):
    """One query and many, with one thread and several."""
    for k in ks:
        for n_threads in (1, 3):
            threads(n_threads)
            assert_equal(index.search(xq, k, **params), expected, k)
            assert_equal(one_by_one(index, xq, k, **params), expected, k)
        few = slice(0, 3)
        assert_equal(index.search(xq[few], k, **params), tuple(part[few] for part in expected), k)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [(kind, metric) for kind in FLAT for metric in METRICS if (kind, metric) != ("lost terms", INNER_PRODUCT)],
)
def test_all_codes(simd, kind, metric, threads, monkeypatch):
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 5000)
    data, index = flat_case(kind, metric)
    levels, everything = len(data.codebooks), np.arange(len(data.codes))
    expected = plain_loop(data, metric, 10, levels, everything)
    assert_near_to_float64(expected[0], data, metric, levels, everything)
    assert_all_ways_find(index, data.xq, expected, (1, 10), threads)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("kind", "levels"), [("alike", 1), ("alike", 3), ("lost additions", 3), ("rounded up entries", 2)]
)
@pytest.mark.parametrize("share", [1, 0.5, 0.01])
def test_prefixes_and_selections(simd, kind, levels, metric, share, threads):
    data, index = flat_case(kind, metric)
    members = np.flatnonzero(np.random.default_rng(1).random(len(data.codes)) < share)
    expected = plain_loop(data, metric, 10, levels, members)
    params = faiss_dpq.SearchParametersDPQ(levels=levels, sel=faiss.IDSelectorBatch(members) if share < 1 else None)
    assert_all_ways_find(index, data.xq, expected, (1, 10), threads, params=params)


KINDS = {"alike": alike, "lost additions": lost_additions, "near ties": near_ties, "one far codeword": one_far_codeword}


@settings(max_examples=12)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 400) | st.integers(8192, 9000),
    M=st.sampled_from([2, 3, 4, 8, 17, 32]),
    nbits=st.sampled_from([1, 2, 4, 5, 8]),
    metric=st.sampled_from(METRICS),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_any_codes(simd, kind, n, M, nbits, metric, k, seed):
    data = KINDS[kind](np.random.default_rng(seed), n, M, nbits, nq=13)
    index, everything, k = flat_index(data, metric), np.arange(n), min(k, n)
    expected = plain_loop(data, metric, k, M, everything)
    assert_near_to_float64(expected[0], data, metric, M, everything)
    assert_equal(index.search(data.xq, k), expected, k)
    assert_equal(one_by_one(index, data.xq, k), expected, k)


# ---- inverted lists ------------------------------------------------------------------------------------------------

LISTS = {
    "alike": lambda rng: in_lists(alike(rng, 3000, 4, 8), [0, 1e-4, -1e-4]),
    "alike, 4 bits": lambda rng: in_lists(alike(rng, 3000, 8, 4), [0, 1e-4, -1e-4]),
    "alike, very far": lambda rng: in_lists(alike(rng, 3000, 17, 4, far=1e6), [0, 1, 2]),
    "lost additions": lambda rng: in_lists(lost_additions(rng, 3000, 128, 4, far=64.0), [-1, -1 - 1e-5]),
    "near ties": lambda rng: in_lists(near_ties(rng, 3000, 32, 4, offset=100.0), [-99, -100, -101]),
    "one far codeword": lambda rng: in_lists(one_far_codeword(rng, 3000, 4, 8), [0, 1, -1]),
    "one bit": lambda rng: in_lists(alike(rng, 3000, 9, 1), [0, 1e-4]),
    "two bits": lambda rng: in_lists(near_ties(rng, 1500, 254, 2, nq=13), [0, 1]),
    "many near ties": lambda rng: in_lists(near_ties(rng, 1500, 48, 4, nq=70), [0, 1]),
    "128 levels": lambda rng: in_lists(many_levels(rng, 3000, 128, 4), [0, 0.1]),
    "254 levels": lambda rng: in_lists(many_levels(rng, 3000, 254, 8), [0, 0.1]),
    "1024 levels": lambda rng: in_lists(many_levels(rng, 3000, 1024, 4), [0, 0.1]),
}


def list_index(data, metric):
    coarse = faiss.IndexFlat(data.centres.shape[1], metric)
    coarse.add(data.centres.astype(np.float32))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, data.codebooks, metric)
    numbers = data.lists.astype(np.uint8)[:, None]
    index.add_sa_codes(np.concatenate([numbers, naive.pack(data.codes, data.nbits)], axis=1))
    index.nprobe = len(data.centres)
    return index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", LISTS)
def test_lists(simd, kind, metric, threads):
    """A search for all vectors has nothing to leave out: it is the plain loop of dpq_lists.h."""
    data = LISTS[kind](np.random.default_rng(0))
    index, levels, everything = list_index(data, metric), len(data.codebooks), np.arange(len(data.codes))
    expected = index.search(data.xq, index.ntotal)
    moved = data.centres[data.lists]
    assert_near_to_float64(expected[0][:, :10], data, metric, levels, everything, moved)
    assert_all_ways_find(index, data.xq, expected, (1, 10), threads)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [1, 0.3])
def test_prefixes_and_selections_in_lists(simd, metric, share, threads):
    rng = np.random.default_rng(1)
    data = LISTS["alike"](rng)
    index = list_index(data, metric)
    members = np.flatnonzero(rng.random(index.ntotal) < share)
    for levels in (1, 3):
        index.levels = levels
        params = faiss.SearchParametersIVF(nprobe=3, sel=faiss.IDSelectorBatch(members))
        expected = index.search(data.xq, index.ntotal, params=params)
        assert_all_ways_find(index, data.xq, expected, (10,), threads, params=params)


def test_rounded_up_entries_of_lists(simd):
    """Found by a search: of one level, one entry is rounded up to a whole unit, and its sum down, as far as can be.

    Empty lists on the other side of the origin keep the lists' centres where they are when the mean is taken off.
    """
    codebooks = np.full((4, 256, 1), -1.0171198763465719 / 255)
    codebooks[:, 0] = 1.0171198763465719
    w = [-0.019798666, -0.020118721, -0.019932097, -0.019890839, -0.020190928, -0.020024016, -0.01993035, -0.019748751]
    data = in_lists(Data(codebooks, np.zeros((8 * 600, 4)), np.full((5, 1), float.fromhex("0x1.fe78bep-1"))), w)
    data.centres = np.concatenate([data.centres, -data.centres])
    index = list_index(data, L2)
    index.levels = 1
    assert_equal(index.search(data.xq, 1), index.search(data.xq, index.ntotal), 1)


# ---- what the tables err by ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_tables_and_terms_of_lists_err_within_their_bounds(simd, metric):
    """Of equal summands, the chains that products are summed in are rounded the same way over and over."""
    rng, d, levels = np.random.default_rng(0), 4096, 2
    codebooks = np.repeat(rng.uniform(1, 2, (levels, 16, 1)), d, axis=2).astype(np.float32)
    codebooks[0] = 0
    quantizer = ProgressiveQuantizer(codebooks)
    x = np.repeat(rng.uniform(1, 2, (50, 1)), d, axis=1).astype(np.float32)

    def errors(metric):
        tables, _, norms = quantizer.tables(x, levels, metric)
        flat = codebooks.reshape(-1, d).astype(np.float64)
        exact = (flat**2).sum(1) - 2 * x @ flat.T if metric == L2 else -(x @ flat.T)
        each = np.abs(tables - exact).reshape(len(x), levels, -1)
        return each.max(2).sum(1), quantizer.table_errors(norms, levels)

    found, bounds = errors(metric)
    assert (found <= bounds).all()
    assert (found > bounds / 30).any()
    centres = Centres(np.concatenate([x, -x]), quantizer, metric)
    bounds = _lists.DerivedLists(quantizer, centres, levels).errors
    if metric == L2:  # terms hold 2 <w, c>; there are none for inner products
        assert (2 * errors(INNER_PRODUCT)[0] <= bounds[: len(x)]).all()
