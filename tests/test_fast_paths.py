"""Every fast path is taken: the counters of the kernels tell which way a call went."""

import contextlib
import time

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.codec import ProgressiveQuantizer
from faiss_dpq.codec import threads as pool
from faiss_dpq.search import flat as _flat
from faiss_dpq.search import lists as _lists

D = 16
NLIST = 20


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@contextlib.contextmanager
def counted():
    """A dict that holds, after the block, what the kernels did in it."""
    counts = {}
    _kernels.reset_counters()
    yield counts
    counts.update(_kernels.counters())


def flat(rng, n=40_000, M=4, nbits=8, metric=faiss.METRIC_L2):
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, M, 1 << nbits, D), metric)
    index.add_sa_codes(naive.pack(rng.integers(0, 1 << nbits, (n, M)), nbits))
    return index


def inverted(rng, n=40_000, M=4, nbits=8, metric=faiss.METRIC_L2):
    coarse = faiss.IndexFlat(D, metric)
    coarse.add(2 * normal(rng, NLIST, D))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, naive.random_codebooks(rng, M, 1 << nbits, D), metric)
    numbers = rng.integers(0, NLIST, (n, 1)).astype(np.uint8)
    index.add_sa_codes(np.concatenate([numbers, naive.pack(rng.integers(0, 1 << nbits, (n, M)), nbits)], axis=1))
    index.nprobe = 5
    return index


# ---- one query, straight to the kernels ----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize(("make", "counter"), [(flat, "direct"), (inverted, "direct_lists")])
def test_one_query_again_is_direct(make, counter, metric, rng):
    index, x = make(rng, metric=metric), normal(rng, 1, D)
    index.search(x, 4)
    with counted() as counts:
        for _ in range(5):
            index.search(x, 4)
    assert counts[counter] == 5


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_few_queries_of_lists_again_take_the_short_way(metric, rng):
    index, xq = inverted(rng, metric=metric), normal(rng, 3, D)
    index.search(xq, 4)
    with counted() as counts:
        index.search(xq, 4)
    assert counts["few_probes"] == 1


# ---- byte bounds, and first thresholds from a sample ---------------------------------------------------------------


def test_many_queries_are_bounded_by_bytes(simd, threads, rng):
    threads(1)
    index, xq = flat(rng), normal(rng, 64, D)
    with counted() as counts:
        index.search(xq, 1)
    pairs = len(xq) * index.ntotal
    assert (counts["batch_scans"], counts["bounded"], counts["floated"]) == (1, pairs, 0)
    assert counts["rescored"] < pairs / 100


@pytest.mark.parametrize(("M", "nbits"), [(4, 8), (5, 8), (8, 4)])
def test_one_query_is_bounded_by_bytes(simd, M, nbits, rng):
    index, x = flat(rng, M=M, nbits=nbits), normal(rng, 1, D)
    with counted() as counts:
        index.search(x, 1)
    assert (counts["single_scans"], counts["bounded"] + counts["floated"]) == (1, index.ntotal)
    if simd == "generic":  # which has no registers to look bytes up in
        assert counts["bounded"] == 0
    else:
        assert counts["floated"] < 64  # what no register is filled with
    assert counts["rescored"] < index.ntotal / 100


@pytest.mark.parametrize(("nq", "counter"), [(3, "lists_alone"), (64, "lists_together")])
@pytest.mark.parametrize(("M", "nbits"), [(4, 8), (8, 4)])
def test_lists_are_bounded_by_bytes(simd, nq, counter, M, nbits, threads, rng):
    threads(1)
    index, xq = inverted(rng, M=M, nbits=nbits), normal(rng, nq, D)
    with counted() as counts:
        index.search(xq, 1)
    assert counts[counter] == 1
    pairs = nq * index.nprobe * index.ntotal / NLIST
    assert counts["floated"] < pairs / 10
    assert counts["bounded"] > pairs / 2  # lists may be too far as a whole
    assert counts["rescored"] < pairs / 20


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 100])
def test_threads_share_the_scan_of_one_query(k, threads, rng, monkeypatch):
    monkeypatch.setattr(_flat, "_WORTH_A_THREAD", 1000)
    threads(2)
    index, x = flat(rng, 400_000), normal(rng, 1, D)
    give_up = time.monotonic() + 20
    with counted() as counts:
        # Nobody waits for a thread that does not come, so one search may go without.
        while _kernels.counters()["most_threads"] < 2 and time.monotonic() < give_up:
            index.search(x, k)
    assert counts["most_threads"] == 2


def threads_of(call):
    """Threads that took part; on a busy machine a call may be done before another thread comes, so more are made."""
    give_up, pool.most_threads = time.monotonic() + 20, 0
    call()
    while pool.most_threads == 1 and time.monotonic() < give_up:
        call()
    return pool.most_threads


def test_threads_share_blocks_of_queries_and_vectors(threads, rng, monkeypatch):
    monkeypatch.setattr(_flat, "_WORTH_A_THREAD", 1000)
    monkeypatch.setattr(_lists, "_WORTH_A_THREAD", 1000)
    threads(2)
    index, lists, x = flat(rng), inverted(rng), normal(rng, 1000, D)
    index.add(x[:1]), lists.add(x[:1])
    assert threads_of(lambda: index.add(x)) == 2
    assert threads_of(lambda: lists.add(x)) == 2
    assert threads_of(lambda: index.search(x[:64], 1)) == 2
    assert threads_of(lambda: lists.search(x, 1)) == 2
    threads(1)
    assert threads_of(lambda: index.add(x)) == threads_of(lambda: lists.search(x, 1)) == 0


# ---- the encoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0, 0), (0.1, 0), (0, 1)])
def test_the_encoder_guesses_its_limits(simd, weights, rng):
    quantizer, x = ProgressiveQuantizer(naive.random_codebooks(rng, 4, 256, D)), normal(rng, 500, D)
    with counted() as counts:
        quantizer.encode(x, 8, *weights)
    assert counts["guessed"] > 0.9 * 4 * len(x)
    assert counts["repeated"] < 0.1 * 4 * len(x)
