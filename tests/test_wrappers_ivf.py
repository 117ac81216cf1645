"""Wrappers around inverted lists."""

import copy

import faiss
import numpy as np
import pytest
from naive import METRICS
from nestings import (
    CODEBOOKS,
    CODEBOOKS_10,
    DIM,
    IDS,
    NESTINGS,
    XQ,
    N,
    X,
    assert_same_result,
    filled,
    leaf_of,
    refine,
    rotation,
    sharded,
    takes_ids,
)

import faiss_dpq


def ivf_dpq(d=DIM, metric=faiss.METRIC_L2):
    coarse = faiss.IndexFlat(d, metric)
    coarse.add(np.ascontiguousarray(X[:10, :d]))
    codebooks = CODEBOOKS if d == DIM else CODEBOOKS_10
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, 0.5 * codebooks, metric)
    index.nprobe = 4
    return index


OF_LISTS = {
    "IDMap2": lambda m: faiss_dpq.IndexIDMap2(ivf_dpq(metric=m)),
    "PreTransform": lambda m: faiss_dpq.IndexPreTransform(rotation(), ivf_dpq(10, m)),
    "IDMap2 of PreTransform": lambda m: faiss_dpq.IndexIDMap2(faiss_dpq.IndexPreTransform(rotation(), ivf_dpq(10, m))),
    "RefineFlat": lambda m: refine(faiss_dpq, ivf_dpq(metric=m)),
    "Shards": lambda m: sharded(faiss_dpq.IndexShards(DIM, True, False), ivf_dpq(metric=m), ivf_dpq(metric=m)),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", OF_LISTS)
def test_around_inverted_lists(name, metric, monkeypatch):
    searches = []
    search = faiss_dpq.IndexIVFDPQ.search
    monkeypatch.setattr(
        faiss_dpq.IndexIVFDPQ,
        "search",
        lambda self, x, k, params=None, **more: searches.append(params) or search(self, x, k, params=params, **more),
    )
    ours = OF_LISTS[name](metric)
    ids = IDS if name != "RefineFlat" else np.arange(N)
    if name == "RefineFlat":
        ours.add(X)
    else:
        ours.add_with_ids(X, ids)  # inverted lists hold ids themselves, within PreTransform and Shards too
    result = ours.search(XQ, 7)
    assert len(searches) == (2 if name == "Shards" else 1)
    assert set(result[1].ravel()) <= {-1, *ids.tolist()}
    assert_same_result(result, faiss.downcast_index(ours).search(XQ, 7))
    if name != "Shards":
        again = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(ours))
        assert type(leaf_of(again)) is faiss_dpq.IndexIVFDPQ
        assert_same_result(again.search(XQ, 7), result)
        clone = copy.deepcopy(ours)
        leaf_of(ours).levels = 1
        leaf_of(clone).levels = 1
        for a, b in zip(clone.search(XQ, 7), ours.search(XQ, 7), strict=True):
            np.testing.assert_array_equal(a, b)
        leaf_of(ours).levels = 3
    few = faiss_dpq.SearchParametersIVFDPQ(levels=2, nprobe=10, sel=faiss.IDSelectorBatch(ids[::5]))
    params = faiss.IndexRefineSearchParameters(k_factor=3, base_index_params=few) if name == "RefineFlat" else few
    I = ours.search(XQ, 7, params=params)[1]
    assert set(I.ravel()) <= set(ids[::5].tolist())
    assert (searches[-1].nprobe, searches[-1].levels) == (10, 2)


@pytest.mark.parametrize("name", ["IDMap2", "PreTransform", "IDMap2 of PreTransform"])
def test_merging_is_that_of_faiss(name):
    ours, other, whole = filled(name, n=120), NESTINGS[name](faiss_dpq, faiss.METRIC_L2), filled(name)
    if takes_ids(name):
        other.add_with_ids(X[120:], IDS[120:])
    else:
        other.add(X[120:])
    ours.check_compatible_for_merge(other)
    ours.merge_from(other)
    assert (ours.ntotal, leaf_of(other).ntotal) == (N, 0)
    for a, b in zip(ours.search(XQ, 7), whole.search(XQ, 7), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError):
        ours.check_compatible_for_merge(filled("RefineFlat"))
