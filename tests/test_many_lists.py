"""Searches of inverted lists whose codes have many levels: exact, whoever scans a list with whom."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ivf_model import assert_finds, filled, probed
from naive import METRICS, normal

from faiss_dpq import _kernels

SHAPES = [(17, 8), (48, 8), (20, 4), (49, 4), (130, 8)]  # levels, bits


@given(
    metric=st.sampled_from(METRICS),
    n=st.integers(1, 1500),
    d=st.integers(1, 20),
    nlist=st.integers(1, 6),
    nprobe=st.integers(1, 6),
    shape=st.sampled_from(SHAPES),
    nq=st.integers(1, 90),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_search_is_exact(simd, metric, n, d, nlist, nprobe, shape, nq, k, seed):
    rng = np.random.default_rng(seed)
    index, model = filled(rng, n, d, nlist, *shape, metric)
    index.nprobe = nprobe
    xq = normal(rng, nq, d)
    assert_finds(*index.search(xq, k), model, xq, probed(index, xq, min(nprobe, nlist)), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), SHAPES)
@pytest.mark.parametrize(("nq", "nprobe"), [(150, 7), (150, 2), (30, 3)])
def test_queries_of_a_batch_find_what_each_finds_alone(simd, metric, M, nbits, nq, nprobe):
    """Whether they scan lists by the rows of their block, by rows for one list, or look up columns."""
    rng = np.random.default_rng(M)
    index, model = filled(rng, 5000, 24, 7, M, nbits, metric)
    index.nprobe = nprobe
    xq = normal(rng, nq, 24)
    D, I = index.search(xq, 50)
    assert_finds(D, I, model, xq, probed(index, xq), metric)
    for q in range(0, nq, 10):
        alone = index.search(xq[q : q + 1], 50)
        np.testing.assert_array_equal(alone[0][0], D[q])
        np.testing.assert_array_equal(alone[1][0], I[q])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_selectors_and_max_codes(simd, metric, share):
    rng = np.random.default_rng(0)
    index, _ = filled(rng, 4000, 16, 5, 48, 8, metric)
    xq = normal(rng, 80, 16)
    index.nprobe = 5
    D, I = index.search(xq, 4000)
    members = np.flatnonzero(rng.random(4000) < share)
    params = faiss.SearchParametersIVF(nprobe=5, sel=faiss.IDSelectorBatch(members))
    for queries in (slice(None), slice(1)):
        found, ids = index.search(xq[queries], 20, params=params)
        for q, row in enumerate(I[queries]):
            among = np.isin(row, members)
            np.testing.assert_array_equal(ids[q], row[among][:20])
            np.testing.assert_array_equal(found[q], D[queries][q][among][:20])
    nearest = probed(index, xq)
    for most in (3, 1300):
        found, ids = index.search(xq, 20, params=faiss.SearchParametersIVF(nprobe=5, max_codes=most))
        for q in range(len(xq)):
            scanned = [_ids(index, number) for number in nearest[q]]
            among = np.isin(I[q], np.concatenate(scanned)[:most])
            expected = min(20, among.sum())
            np.testing.assert_array_equal(ids[q, :expected], I[q][among][:20])
            np.testing.assert_array_equal(found[q, :expected], D[q][among][:20])


def _ids(index, number):
    return faiss.rev_swig_ptr(index.invlists.get_ids(int(number)), index.invlists.list_size(int(number))).copy()


@pytest.mark.parametrize(("nq", "nprobe", "counter"), [(64, 8, "lists_together"), (64, 1, None), (3, 8, "lists_alone")])
def test_hardly_any_vector_is_scored(simd, nq, nprobe, counter, threads):
    threads(1)
    rng = np.random.default_rng(0)
    index, _ = filled(rng, 40_000, 32, 8, 48, 8)
    xq = normal(rng, nq, 32)
    index.nprobe = nprobe
    _kernels.reset_counters()
    index.search(xq, 10)
    counts = _kernels.counters()
    pairs = nq * nprobe * index.ntotal / 8
    assert counter is None or counts[counter] == 1
    assert counts["floated"] < pairs / 10
    assert counts["rescored"] - counts["floated"] < pairs / 50


def test_short_lists_are_scanned_by_the_rows_of_a_block(simd, threads):
    """To make rows for one of these lists alone would take longer than to look its columns up."""
    threads(1)
    rng = np.random.default_rng(0)
    index, _ = filled(rng, 800, 32, 8, 48, 8)
    index.nprobe = 8
    _kernels.reset_counters()
    index.search(normal(rng, 64, 32), 10)
    assert _kernels.counters()["lists_together"] == 1
