"""Wrappers, some within others, of IndexDPQ; filled alike in our classes and in FAISS's."""

import faiss
import naive
import numpy as np

import faiss_dpq
from faiss_dpq.index.wrappers.wrapper import Wrapper

DIM = 12
N = 300
IDS = 1000 + 7 * np.arange(N)
CODEBOOKS = naive.random_codebooks(np.random.default_rng(0), 3, 32, DIM)
CODEBOOKS_10 = naive.random_codebooks(np.random.default_rng(1), 3, 32, 10)
X = np.random.default_rng(2).standard_normal((N, DIM)).astype(np.float32)
XQ = np.random.default_rng(3).standard_normal((9, DIM)).astype(np.float32)


def dpq(metric=faiss.METRIC_L2):
    return faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS, metric)


def rotation(d_out=10):
    transform = faiss.RandomRotationMatrix(DIM, d_out)
    transform.init(5)
    return transform


def pre_transform(classes, metric):
    return classes.IndexPreTransform(rotation(), faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS_10, metric))


def trained_sq8(metric):
    index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, metric)
    index.train(X)
    return index


def refine(classes, base, refine_index=None):
    index = classes.IndexRefineFlat(base) if refine_index is None else classes.IndexRefine(base, refine_index)
    index.k_factor = 4
    return index


def sharded(wrapper, *indexes):
    for index in indexes:
        # Of these two, stock FAISS keeps the index alive.
        wrapper.add_shard(index) if isinstance(wrapper, faiss.IndexShards) else wrapper.addIndex(index)
    return wrapper


#: Wrappers, some within others, of IndexDPQ; by the classes of a module.
NESTINGS = {
    "IDMap": lambda c, m: c.IndexIDMap(dpq(m)),
    "IDMap2": lambda c, m: c.IndexIDMap2(dpq(m)),
    "PreTransform": lambda c, m: pre_transform(c, m),
    "IDMap2 of PreTransform": lambda c, m: c.IndexIDMap2(pre_transform(c, m)),
    "PreTransform of IDMap2": lambda c, m: c.IndexPreTransform(rotation(DIM), c.IndexIDMap2(dpq(m))),
    "RefineFlat": lambda c, m: refine(c, dpq(m)),
    "Refine by SQ8": lambda c, m: refine(c, dpq(m), trained_sq8(m)),
    "IDMap2 of RefineFlat of PreTransform": lambda c, m: c.IndexIDMap2(refine(c, pre_transform(c, m))),
    "Shards": lambda c, m: sharded(c.IndexShards(DIM, False, True), dpq(m), dpq(m), dpq(m)),
    "Shards of IDMap2, threaded": lambda c, m: sharded(
        c.IndexShards(DIM, True, False), c.IndexIDMap2(dpq(m)), c.IndexIDMap2(dpq(m))
    ),
    "Replicas": lambda c, m: sharded(c.IndexReplicas(DIM), dpq(m), dpq(m)),
    "Replicas of PreTransform, threaded": lambda c, m: sharded(
        c.IndexReplicas(DIM, True), pre_transform(c, m), pre_transform(c, m)
    ),
}


#: Those that FAISS has a file format for.
IN_FILES = [name for name in NESTINGS if "Shards" not in name and "Replicas" not in name]


def takes_ids(name):
    return "IDMap" in name


def filled(name, metric=faiss.METRIC_L2, classes=faiss_dpq, n=N):
    index = NESTINGS[name](classes, metric)
    if takes_ids(name):
        index.add_with_ids(X[:n], IDS[:n])
    else:
        index.add(X[:n])
    return index


def assert_same_result(ours, stock):
    """Equal distances, and equal labels but for the order of those that are equally far."""
    (D, I), (expected_D, expected_I) = ours, stock
    np.testing.assert_allclose(D, expected_D, rtol=1e-4, atol=1e-4)
    for row in range(len(I)):
        gaps = np.abs(np.diff(expected_D[row].astype(np.float64))) > 1e-3
        alone = np.concatenate([[True], gaps]) & np.concatenate([gaps, [False]])
        np.testing.assert_array_equal(I[row][alone], expected_I[row][alone])
        assert len(set(I[row][I[row] >= 0])) == (I[row] >= 0).sum() == (expected_I[row] >= 0).sum()


def assert_same_ranges(ours, stock, thresh):
    for query in range(len(XQ)):
        (found, expected) = (
            dict(zip(I[lims[query] : lims[query + 1]].tolist(), D[lims[query] : lims[query + 1]], strict=True))
            for lims, D, I in (ours, stock)
        )
        for i in found.keys() & expected.keys():
            np.testing.assert_allclose(found[i], expected[i], rtol=1e-4, atol=1e-4)
        for i in found.keys() ^ expected.keys():
            assert abs((found | expected)[i] - thresh) < 1e-3


def types_of(index):
    inner_indexes = index._inner_indexes if isinstance(index, Wrapper) else None
    # FAISS itself reads an IndexFlat back as an IndexFlatL2 or IndexFlatIP.
    own_type = faiss.IndexFlat if isinstance(index, faiss.IndexFlat) else type(index)
    return own_type, [types_of(inner) for inner in inner_indexes()] if inner_indexes else []


def leaf_of(index):
    while isinstance(index, Wrapper):
        index = index._inner_indexes()[0]
    return index
