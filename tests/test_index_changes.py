"""What changes in an IndexDPQ, by FAISS's own methods or in another thread, is seen by its next search."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import naive
import numpy as np
import pytest
from flat_index import assert_same_neighbours, filled_index
from naive import METRICS

import faiss_dpq
from faiss_dpq.codec import levels as levels_module


def test_codebooks_changed_by_faiss_are_noticed(digits):
    index, _ = filled_index(np.random.default_rng(0), 100, 64, 2, 4)
    index.search(digits[:1], 1)
    index.reset()
    faiss.IndexIDMap(index).train(digits[:900])  # C++ trains the same object behind our back
    index.add(digits[:100])
    D, _ = index.search(digits[:5], 3)
    expected = naive.search(
        index.codebooks, faiss_dpq._kernels.unpack_codes(index._packed_codes(), 2, 4), digits[:5], 3
    )
    np.testing.assert_allclose(D, expected[0], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_any_change_of_the_codes_is_noticed(metric, tables, monkeypatch):
    """Bins and radii are derived from the codes: no way of changing these may leave the old ones in use."""
    if tables == "no cross tables":
        monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    n = 20_000
    index, _ = filled_index(rng, n, 9, 4, 8, metric)
    stock = faiss.downcast_index(index)
    xq = rng.standard_normal((3, 9)).astype(np.float32)

    def check():
        codes = faiss_dpq._kernels.unpack_codes(index._packed_codes(), 4, 8)
        for some in (xq, xq[:1]):
            expected = naive.search(index.codebooks, codes, some, 5, metric == faiss.METRIC_INNER_PRODUCT)
            assert_same_neighbours(*index.search(some, 5), *expected)

    def overwrite(rows):
        view = faiss.rev_swig_ptr(stock.codes.data(), stock.codes.size()).reshape(-1, 4)
        view[rows] = rng.integers(0, 256, (len(rows), 4))
        index.invalidate()

    check()
    for change in (
        lambda: index.add(10 * rng.standard_normal((100, 9)).astype(np.float32)),
        lambda: overwrite(np.array([7])),
        lambda: overwrite(np.array([index.ntotal - 1])),
        lambda: overwrite(np.arange(9000)),
        lambda: stock.remove_ids(np.arange(500)),
        lambda: stock.permute_entries(rng.permutation(stock.ntotal)),
        lambda: stock.add(rng.standard_normal((50, 9)).astype(np.float32)),
        lambda: (stock.reset(), index.add(rng.standard_normal((n, 9)).astype(np.float32))),
        lambda: stock.remove_ids(np.arange(n - 9)),
    ):
        change()
        check()


def test_concurrent_searches_on_one_index(threads):
    threads(2)
    rng = np.random.default_rng(0)
    index, _ = filled_index(rng, 30_000, 16, 4, 8)
    xq = rng.standard_normal((64, 16)).astype(np.float32)
    alone = faiss_dpq.clone_index(index)
    jobs = [(xq[i % 7 : i % 7 + 1 + 9 * (i % 5)], 1 + i % 4) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda job: index.search(job[0], 9, params=faiss_dpq.SearchParametersDPQ(levels=job[1])), jobs)
        )
    for (x, levels), result in zip(jobs, found, strict=True):
        expected = alone.search(x, 9, params=faiss_dpq.SearchParametersDPQ(levels=levels))
        np.testing.assert_array_equal(result[1], expected[1])
        np.testing.assert_array_equal(result[0], expected[0])


@pytest.mark.parametrize("kind", ["DPQ4x4", "IVF2,DPQ4x4", "IDMap2,DPQ4x4", "PCA8,IVF2,DPQ4x4"])
def test_tables_of_the_codebooks_outlive_the_codes(digits, kind):
    index = faiss_dpq.index_factory(64, kind)
    index.train(digits[:500])
    if "ID" in kind:
        index.add_with_ids(digits[:50], np.arange(50))
    else:
        index.add(digits[:50])
    other = faiss_dpq.clone_index(index)
    for changed, change in (
        (index, index.reset),
        (other, lambda: index.merge_from(other, 0)),
        (index, lambda: index.remove_ids(np.arange(9))),
    ):
        inner = changed
        while not hasattr(inner, "residual_quantizer"):
            inner = inner.index
        before = inner.residual_quantizer
        change()
        assert inner.residual_quantizer is before
