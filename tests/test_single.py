"""A search of one query goes to the kernels at once: it finds what any other search finds, and never by what was."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq.codec import quantizer as quantizer_module
from faiss_dpq.search import flat as _scan
from faiss_dpq.search import lists as _lists

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
NLIST = 6


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def flat(rng, n=600, d=9, M=3, nbits=5, metric=faiss.METRIC_L2):
    """An IndexDPQ of random codebooks and codes."""
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, M, 1 << nbits, d), metric)
    index.add_sa_codes(naive.pack(rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16), nbits))
    return index


def inverted(rng, n=600, d=9, M=3, nbits=5, metric=faiss.METRIC_L2):
    """An IndexIVFDPQ of random centres, codebooks and codes."""
    centres = faiss.IndexFlat(d, metric)
    centres.add(2 * normal(rng, NLIST, d))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(centres, naive.random_codebooks(rng, M, 1 << nbits, d), metric)
    lists = rng.integers(0, NLIST, (n, 1)).astype(np.uint8)
    codes = naive.pack(rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16), nbits)
    index.add_sa_codes(np.concatenate([lists, codes], axis=1))
    index.nprobe = 3
    return index


KINDS = {"flat": flat, "inverted": inverted}


def one_by_one(index, xq, k):
    return tuple(np.concatenate(part) for part in zip(*(index.search(x[None], k) for x in xq), strict=True))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def is_short(index, x, monkeypatch):
    """Whether a search of x gets by without a look at the index from Python."""
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "_checked_vectors", lambda *_: pytest.fail("the long way"))
        try:
            index.search(x, 4)
        except pytest.fail.Exception:
            return False
        return True


# ---- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(
    metric=st.sampled_from(METRICS),
    n=st.integers(1, 900),
    d=st.integers(1, 40),
    M=st.integers(1, 9),
    nbits=st.sampled_from([2, 4, 5, 8]),
    levels=st.integers(0, 9),
    max_codes=st.sampled_from([0, 100]),
    k=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_one_query_finds_what_many_find(simd, kind, metric, n, d, M, nbits, levels, max_codes, k, seed):
    rng = np.random.default_rng(seed)
    index = KINDS[kind](rng, n, d, M, nbits, metric)
    if levels:
        index.levels = min(levels, M)
    if kind == "inverted":
        index.max_codes = max_codes
    xq = normal(rng, 4, d)
    xq[3, 0] = np.nan
    expected = index.search(xq, k)
    for _ in range(2):
        assert_equal(one_by_one(index, xq, k), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_one_query_of_many_vectors(simd, kind, metric, tables, monkeypatch):
    if tables == "no cross tables":
        monkeypatch.setattr(quantizer_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    index = KINDS[kind](rng, 40_000, 20, 4, 8, metric)  # beyond a block of hashes, and of what is scanned in bytes
    xq = normal(rng, 5, 20)
    for k in (1, 10, 300):
        expected = index.search(xq, k)
        for _ in range(2):
            assert_equal(one_by_one(index, xq, k), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_search_of_one_query_is_short(kind, monkeypatch):
    index, x = KINDS[kind](np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    assert not is_short(index, x, monkeypatch)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)
    index.levels = 2
    assert not is_short(index, x, monkeypatch)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)
    for longer in (np.zeros((2, 9), np.float32), x.astype(np.float64), x.astype(">f4"), np.zeros((1, 18), "f")[:, ::2]):
        assert not is_short(index, longer, monkeypatch)


def test_what_several_threads_search_is_short_too(threads, monkeypatch):
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 100)
    threads(3)
    index, x = flat(np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)


def test_the_second_search_of_a_prefix_is_short_too(monkeypatch):
    index, x = flat(np.random.default_rng(0)), np.ones((1, 9), np.float32)
    prefix = faiss_dpq.SearchParametersDPQ(levels=2)
    expected = index.search(np.repeat(x, 2, axis=0), 4, params=prefix)
    for _ in range(2):
        assert_equal(index.search(x, 4, params=prefix), (expected[0][:1], expected[1][:1]))
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "_checked_vectors", lambda *_: pytest.fail("the long way"))
        index.search(x, 4, params=prefix)
    everything = index.search(np.repeat(x, 2, axis=0), 4)
    assert_equal(index.search(x, 4), (everything[0][:1], everything[1][:1]))
    some = faiss_dpq.SearchParametersDPQ(levels=2, sel=faiss.IDSelectorRange(0, 1))
    assert index.search(x, 4, params=some)[1].tolist() == [[0, -1, -1, -1]]
    for levels in (-1, 4):
        with pytest.raises(ValueError, match="levels"):
            index.search(x, 4, params=faiss_dpq.SearchParametersDPQ(levels=levels))


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def worth_threads(monkeypatch):
    """Threads for indexes of some blocks of hashes."""
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 1000)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits", "levels"), [(4, 8, 4), (8, 8, 2), (5, 8, 5), (3, 6, 3)])
def test_threads_find_what_one_finds(simd, metric, M, nbits, levels, threads, worth_threads):
    rng = np.random.default_rng(0)
    index = flat(rng, 30_000, 12, M, nbits, metric)
    packed = faiss.vector_to_array(index.codes).reshape(index.ntotal, -1)
    faiss.copy_array_to_vector(packed[rng.integers(0, 3000, len(packed))].ravel(), index.codes)  # every code ten times
    index.levels = levels
    xq = normal(rng, 4, 12)
    xq[3, 0] = np.nan
    selectors = [None, *(faiss.IDSelectorBatch(np.flatnonzero(rng.random(30_000) < share)) for share in (0.6, 0.05))]
    for k in (1, 10, 100, 300, 3000):
        for sel in selectors:
            params = None if sel is None else faiss.SearchParameters(sel=sel)
            threads(1)
            expected = index.search(xq, k, params=params)
            for n_threads in (1, 2, 3):
                threads(n_threads)
                for x, D, I in zip(xq, *expected, strict=True):
                    assert_equal(index.search(x[None], k, params=params), (D[None], I[None]))


def test_threads_search_beside_each_other(threads, worth_threads):
    """One of them has the helpers, the others go on without."""
    rng = np.random.default_rng(1)
    index, xq = flat(rng, 30_000, 24, 4, 8), normal(rng, 200, 24)
    threads(1)
    expected = one_by_one(index, xq, 12)

    def search(x):
        faiss.omp_set_num_threads(3)
        return index.search(x[None], 12)

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(search, xq))
        assert_equal(tuple(map(np.concatenate, zip(*found, strict=True))), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(threads, worth_threads):
    rng = np.random.default_rng(1)
    index, xq = flat(rng, 30_000, 24, 4, 8), normal(rng, 20, 24)
    threads(3)
    expected = one_by_one(index, xq, 12)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert_equal(one_by_one(index, xq, 12), expected)
            status = 0
        finally:
            os._exit(status)
    assert_equal(one_by_one(index, xq, 12), expected)
    assert os.waitpid(child, 0)[1] == 0


_ENDS_WHILE_THREADS_SEARCH = """
import threading

import faiss
import numpy as np

import faiss_dpq

rng = np.random.default_rng(0)
index = faiss_dpq.IndexDPQ.from_codebooks(rng.standard_normal((4, 256, 8)).astype(np.float32))
index.add_sa_codes(rng.integers(0, 256, (400_000, 4)).astype(np.uint8))
searched = threading.Event()


def search_on():
    faiss.omp_set_num_threads(3)
    while True:
        index.search(np.zeros((1, 8), np.float32), 10)
        searched.set()


threading.Thread(target=search_on, daemon=True).start()
searched.wait()
"""


def test_an_interpreter_ends_while_threads_search():
    subprocess.run([sys.executable, "-c", _ENDS_WHILE_THREADS_SEARCH], check=True, timeout=300)


# ---- arguments, other threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_checked_as_ever(kind):
    index, x = KINDS[kind](np.random.default_rng(0)), np.ones((1, 9), np.float32)
    expected = index.search(x, 4)
    for same in (x.astype(np.float64), np.ones((1, 18), np.float32)[:, ::2], x.astype(">f4"), x.tolist()):
        assert_equal(index.search(same, 4), expected)
    assert_equal(index.search(x, np.int64(4)), expected)
    D, I = np.empty((1, 4), np.float32), np.empty((1, 4), np.int64)
    index.search(x, 4, D=D, I=I)
    assert_equal((D, I), expected)
    for bad, k, error in (
        (x[:, :8], 4, AssertionError),
        (x[0], 4, ValueError),
        (x, 0, AssertionError),
        (x, -1, AssertionError),
        (x.astype(str), 4, TypeError),
    ):
        with pytest.raises(error, match=r"search"):
            index.search(bad, k)
    assert_equal(index.search(x, 4), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_under_way_owns_what_it_reads(kind):
    """Another thread may meanwhile have put something else in place of what the index keeps."""
    rng = np.random.default_rng(1)
    index, xq = KINDS[kind](rng, 20_000, 24, 4, 8), normal(rng, 20, 24)
    expected = one_by_one(index, xq, 12)
    watched = index._watched
    index._derived_by_levels = None
    copies = [copy.deepcopy(index) for _ in range(5)]
    for other in copies:  # takes the memory that is no longer owned
        other.search(xq, 12)
    assert_equal(one_by_one(index, xq, 12), expected)
    assert index._watched is watched


@pytest.mark.parametrize("kind", KINDS)
def test_one_query_each_from_several_threads(kind):
    rng = np.random.default_rng(1)
    index = KINDS[kind](rng, 5000, 24, 4, 8)
    xq = normal(rng, 200, 24)
    expected = copy.deepcopy(index).search(xq, 12)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda x: index.search(x[None], 12), xq))
            assert_equal(tuple(map(np.concatenate, zip(*found, strict=True))), expected)
            index._derived_by_levels = index._watched = None
    finally:
        sys.setswitchinterval(interval)


# ---- nothing is ever stale -----------------------------------------------------------------------------------------


def new_array_lists(index):
    """Other lists, at another address, of the first half of each list's vectors."""
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    for number in range(index.nlist):
        n = index.invlists.list_size(number) // 2
        lists.add_entries(number, n, index.invlists.get_ids(number), index.invlists.get_codes(number))
    index.replace_invlists(lists, True)
    lists.this.disown()


def new_centres(index, rng):
    centres = faiss.IndexFlatL2(index.d)
    index.referenced_objects.append(centres)
    centres.add(2 * normal(rng, index.nlist, index.d))
    index.quantizer = centres


def codes_of(index):
    """The memory of the codes: of all, or of every list."""
    if hasattr(index, "codes"):
        return [faiss.rev_swig_ptr(index.codes.data(), index.codes.size())]
    lists, size = index.invlists, index.code_size
    return [faiss.rev_swig_ptr(lists.get_codes(i), lists.list_size(i) * size) for i in range(index.nlist)]


def write_codes(index, rng):
    for memory in codes_of(index):
        memory[:] = rng.integers(0, 256, len(memory))


def write_ids(index):
    for number in range(index.nlist):
        faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))[:] += 1000


def codebooks_of(index):
    return faiss.rev_swig_ptr(index.rq.codebooks.data(), index.rq.codebooks.size())


def write_last_codebook(index, rng):
    values = codebooks_of(index)
    last = len(values) // index.rq.M
    values[-last:] = normal(rng, last)
    index.rq.compute_codebook_tables()


def set_state_of_another(index, rng):
    index.__setstate__(KINDS["inverted" if hasattr(index, "nprobe") else "flat"](rng).__getstate__())


OF_BOTH = {
    "levels": lambda index, rng: setattr(index, "levels", 2),
    "add": lambda index, rng: index.add(normal(rng, 50, index.d)),
    "remove": lambda index, rng: index.remove_ids(np.arange(100)),
    "reset": lambda index, rng: index.reset(),
    "codes": write_codes,
    "codebooks": lambda index, rng: faiss.copy_array_to_vector(
        normal(rng, index.rq.codebooks.size()), index.rq.codebooks
    ),
    "last codebook": write_last_codebook,
    "state": set_state_of_another,
}
CHANGES = {
    "flat": OF_BOTH
    | {
        "permute": lambda index, rng: index.permute_entries(rng.permutation(index.ntotal)),
        "codes vector": lambda index, rng: faiss.copy_array_to_vector(
            rng.integers(0, 256, index.codes.size()).astype(np.uint8), index.codes
        ),
    },
    "inverted": OF_BOTH
    | {
        "nprobe": lambda index, rng: setattr(index, "nprobe", 1),
        "max_codes": lambda index, rng: setattr(index, "max_codes", 70),
        "by_residual": lambda index, rng: setattr(index, "by_residual", False),
        "metric": lambda index, rng: setattr(index, "metric_type", faiss.METRIC_INNER_PRODUCT),
        "lists": lambda index, rng: new_array_lists(index),
        "ids": lambda index, rng: write_ids(index),
        "coarse quantizer": new_centres,
        "centres": lambda index, rng: (index.quantizer.reset(), index.quantizer.add(normal(rng, NLIST, index.d))),
    },
}


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind in KINDS for change in CHANGES[kind]])
def test_the_next_search_of_one_query_sees_any_change(kind, change, monkeypatch):
    rng = np.random.default_rng(5)
    index, x = KINDS[kind](rng), normal(rng, 1, 9)
    for _ in range(2):
        before = index.search(x, 20)
    assert is_short(index, x, monkeypatch)
    CHANGES[kind][change](index, rng)
    fresh = copy.deepcopy(index)
    if kind == "inverted":
        fresh.max_codes = index.max_codes
    expected = fresh.search(np.repeat(x, 2, axis=0), 20)
    assert not np.array_equal(before[0], expected[0][:1]) or not np.array_equal(before[1], expected[1][:1])
    for _ in range(3):
        assert_equal(index.search(x, 20), (expected[0][:1], expected[1][:1]))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_codes_changed_and_changed_back(n_threads, threads, worth_threads, monkeypatch):
    """The bins of the codes in between are not taken for those of the first ones."""
    threads(n_threads)
    rng = np.random.default_rng(6)
    index, xq = flat(rng, 20_000, 9, 4, 8), normal(rng, 3, 9)
    expected = one_by_one(index, xq, 10)
    (memory,) = codes_of(index)
    codes = memory.copy()
    for _ in range(3):
        write_codes(index, rng)
        index.search(xq, 10)
        memory[:] = codes
        assert_equal(one_by_one(index, xq, 10), expected)
        assert is_short(index, xq[:1], monkeypatch)


@pytest.mark.parametrize("place", [0, 4096 * 4 + 1, 29_999])
def test_threads_notice_one_code_changed(place, threads, worth_threads):
    threads(3)
    rng = np.random.default_rng(6)
    index, x = flat(rng, 30_000, 9, 4, 8), normal(rng, 1, 9)
    for _ in range(2):
        before = index.search(x, 30_000)
    (memory,) = codes_of(index)
    memory.reshape(-1, 4)[place, 3] ^= 1
    expected = copy.deepcopy(index).search(np.repeat(x, 2, axis=0), 30_000)
    found = index.search(x, 30_000)
    assert_equal(found, (expected[0][:1], expected[1][:1]))
    assert not np.array_equal(found[0], before[0])


def test_a_coarse_quantizer_emptied_is_noticed():
    index, x = inverted(np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    index.quantizer.reset()  # which leaves the centres in memory
    with pytest.raises(RuntimeError, match="holds 0 vectors"):
        index.search(x, 4)


def test_other_lists_at_the_same_address_are_looked_at_again(monkeypatch):
    index, x = inverted(np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)
    index.invlists.use_iterator = True  # one field stands for all of the object, its class among them
    assert not is_short(index, x, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_freed_with_its_last_name(kind):
    index, x = KINDS[kind](np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    index.search(x, 4)
    watched = index._watched
    del index
    assert sys.getrefcount(watched) == 2


def test_lists_of_unknown_layout_are_searched_the_long_way(monkeypatch):
    monkeypatch.setattr(_lists, "vector_layout", lambda: None)
    rng = np.random.default_rng(7)
    index, xq = inverted(rng), normal(rng, 3, 9)
    expected = index.search(xq, 10)
    for _ in range(2):
        assert_equal(one_by_one(index, xq, 10), expected)
    assert not is_short(index, xq[:1], monkeypatch)
