"""A change that fails leaves an index and all indexes within it as they were; a failed training, nothing trained."""

import signal
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.index import flat, ivf
from faiss_dpq.index.changes import parts_of

sys.path.append(str(Path(__file__).parents[1]))

from bench.stacks import Interruption, interrupted_at

D = 16
X = np.random.default_rng(0).standard_normal((900, D)).astype(np.float32)


def shards(make):
    index = faiss_dpq.IndexShards(D, True, False)
    for _ in range(2):
        index.add_shard(make())
    return index


#: Stacks that learn something at every storey.
UNTRAINED = {
    "DPQ": lambda: faiss_dpq.index_factory(D, "DPQ2x4"),
    "IVF": lambda: faiss_dpq.index_factory(D, "IVF8,DPQ2x4"),
    "IVF of HNSW": lambda: faiss_dpq.index_factory(D, "IVF8_HNSW8,DPQ2x4"),
    "IVF of DPQ": lambda: faiss_dpq.index_factory(D, "IVF32(DPQ2x4),DPQ2x4"),
    "IMI": lambda: faiss_dpq.index_factory(D, "IMI2x2,DPQ2x4"),
    "PCA": lambda: faiss_dpq.index_factory(D, "PCA8,DPQ2x4"),
    "OPQ, IVF": lambda: faiss_dpq.index_factory(D, "OPQ4_8,IVF8,DPQ2x4"),
    "ITQ": lambda: faiss_dpq.index_factory(D, "ITQ8,DPQ2x4"),
    "centring": lambda: faiss_dpq.IndexPreTransform(faiss.CenteringTransform(D), faiss_dpq.IndexDPQ(D, 2, 4)),
    "Refine": lambda: faiss_dpq.index_factory(D, "DPQ2x4,Refine(SQ8)"),
    "IDMap2 of Refine": lambda: faiss_dpq.index_factory(D, "IDMap2,PCA8,IVF8,DPQ2x4,Refine(SQ8)"),
    "Shards": lambda: shards(lambda: faiss_dpq.index_factory(D, "IDMap2,PCA8,IVF8,DPQ2x4")),
    "MinMax": lambda: faiss_dpq.index_factory(D, "MinMax,DPQ2x4"),
}


def state(index):
    """What is trained in an index, in its transforms and its coarse quantizer, and what they hold."""
    found = [(type(index).__name__, bool(index.is_trained), index.ntotal)]
    if isinstance(index, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        matrices = [t.A if hasattr(t, "A") else t.mean for t in transforms]
        found += [
            (type(t).__name__, t.is_trained, faiss.vector_to_array(matrix).sum())
            for t, matrix in zip(transforms, matrices, strict=True)
        ]
    if isinstance(index, faiss.IndexIVF):
        found += state(faiss_dpq.downcast_index(index.quantizer))
    if hasattr(index, "rq"):
        found.append((index.rq.is_trained, faiss.vector_to_array(index.rq.codebooks).sum(), index.train_stats))
    for part in parts_of(index):
        found += state(part)
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
@pytest.mark.parametrize("name", UNTRAINED)
def test_a_failed_training_leaves_nothing_trained(name, error, monkeypatch):
    index, expected = UNTRAINED[name](), UNTRAINED[name]()
    before = state(index)
    learn = flat.IndexDPQ._set_quantizer

    def fail(self, quantizer):
        raise error

    for owner in (flat.IndexDPQ, ivf.IndexIVFDPQ):
        monkeypatch.setattr(owner, "_set_quantizer", fail)
    # Of several shards that fail, as FAISS does, one error tells.
    with pytest.raises((error, RuntimeError)):
        index.train(X, effort="fast")
    assert state(index) == before
    monkeypatch.setattr(flat.IndexDPQ, "_set_quantizer", learn)
    monkeypatch.setattr(ivf.IndexIVFDPQ, "_set_quantizer", learn)
    index.train(X, effort="fast")
    expected.train(X, effort="fast")
    assert repr(state(index)[0]) == repr(state(expected)[0])
    if name not in ("Shards", "IDMap2 of Refine"):  # FAISS encodes with neither
        np.testing.assert_array_equal(index.sa_encode(X), expected.sa_encode(X))


def test_a_failed_training_leaves_the_training_before(monkeypatch):
    index = UNTRAINED["PCA"]()
    index.train(X, effort="fast")
    codes = index.sa_encode(X)
    index.index.is_trained = False
    with pytest.raises(RuntimeError, match="x has 3 vectors"):
        index.train(X[:3])
    index.index.is_trained = True
    np.testing.assert_array_equal(index.sa_encode(X), codes)


@pytest.mark.parametrize("value", [1e19, -3e38, np.nan, np.inf])
@pytest.mark.parametrize("name", UNTRAINED)
def test_values_whose_distances_overflow_are_refused_by_name(name, value):
    index = UNTRAINED[name]()
    before = state(index)
    x = X.copy()
    x[-1, 3] = value
    with pytest.raises(RuntimeError, match=r"\.train: x has "):
        index.train(x)
    assert state(index) == before


def test_the_largest_values_that_are_taken_train():
    limit = np.sqrt(np.finfo(np.float32).max / (4 * X.size))
    index = UNTRAINED["IVF"]()
    index.train(X * np.float32(0.9 * limit / np.abs(X).max()), effort="fast")
    assert np.isfinite(index.codebooks).all()


def test_training_queries_must_have_the_dimension():
    for name in ("DPQ", "IVF", "PCA", "Refine", "IDMap2 of Refine", "Shards"):
        with pytest.raises(AssertionError, match="columns"):
            UNTRAINED[name]().train(X, xq_train=X[:, :5])


def trained(description):
    index = faiss_dpq.index_factory(32, description)
    index.train(LONG[:300], effort="fast")
    return index


LONG = np.random.default_rng(1).standard_normal((2 * ivf.ADD_BLOCK + 1000, 32)).astype(np.float32)


@pytest.mark.parametrize(
    "description", ["DPQ2x4", "DPQ2x4,RFlat", "IDMap2,DPQ2x4", "PCA8,DPQ2x4", "IDMap2,IVF4,DPQ2x4"]
)
def test_an_interruption_in_the_second_block(description, monkeypatch):
    index = trained(description)
    ids = np.arange(len(LONG)) + 7
    adds = (
        (lambda x, n: index.add_with_ids(x, ids[n : n + len(x)]))
        if "IDMap" in description
        else lambda x, n: index.add(x)
    )
    adds(LONG[:100], 0)
    expected = index.search(LONG[:9], 5)
    calls = []
    encode = faiss_dpq.ProgressiveQuantizer.encode

    def second_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(faiss_dpq.ProgressiveQuantizer, "encode", second_fails)
    with pytest.raises(KeyboardInterrupt):
        adds(LONG[100:], 100)
    assert index.ntotal == 100 and all(part.ntotal == 100 for part in parts_of(index))
    for found, wanted in zip(index.search(LONG[:9], 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    adds(LONG[:50], 100)
    assert index.ntotal == 150


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")
@pytest.mark.parametrize("description", ["DPQ2x4,RFlat", "IDMap2,IVF4,DPQ2x4", "PCA8,DPQ2x4"])
def test_signals_at_any_moment(description):
    """As Ctrl-C: the handler runs between two steps of Python, wherever those are."""

    def interrupt(*_):
        raise KeyboardInterrupt

    index, x, held, interrupted = trained(description), LONG[:1500], 0, 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00025 * turn)
                if "IDMap" in description:
                    index.add_with_ids(x, np.arange(turn * 2000, turn * 2000 + len(x)))
                else:
                    index.add(x)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except (KeyboardInterrupt, RuntimeError):  # FAISS makes the second of the first
                interrupted += 1
            assert index.ntotal in (held, held + len(x))
            held = index.ntotal
            assert all(part.ntotal == held for part in parts_of(index))
            assert (index.search(x[:2], 5)[1] >= 0).all() or not held
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted


def test_searches_refuse_parts_that_disagree():
    refined = trained("DPQ2x4,RFlat")
    refined.add(LONG[:50])
    refined.base_index.add(LONG[:7])
    mapped = trained("IDMap2,DPQ2x4")
    mapped.add_with_ids(LONG[:50], np.arange(50))
    mapped.index.add(LONG[:7])
    for index in (refined, mapped):
        for search in (
            lambda index=index: index.search(LONG[:2], 3),
            lambda index=index: index.search(LONG[:1], 3),
            lambda index=index: index.range_search(LONG[:2], 3.0),
            lambda index=index: index.search_and_reconstruct(LONG[:2], 3),
        ):
            with pytest.raises(RuntimeError, match=r"57.*reset"):
                search()
        index.reset()
        if index is refined:
            index.add(LONG[:50])
        else:
            index.add_with_ids(LONG[:50], np.arange(50))
        assert (index.search(LONG[:2], 3)[1] >= 0).all()


@pytest.mark.parametrize("kind", [faiss.DirectMap.NoMap, faiss.DirectMap.Array, faiss.DirectMap.Hashtable])
def test_direct_maps_are_put_back(kind):
    for line in range(1, 100):
        index = faiss_dpq.index_factory(32, "IVF4,DPQ2x4")
        index.__setstate__(IVF_STATE)
        index.set_direct_map_type(kind)
        try:
            interrupted_at(line, lambda index=index: index.add(LONG[50:80]))
        except Interruption:
            pass
        else:
            return
        if kind != faiss.DirectMap.NoMap:
            known = index.ntotal
            assert known in (50, 80)
            index.reconstruct(known - 1)
            with pytest.raises(RuntimeError):
                index.reconstruct(known)


def _state():
    index = trained("IVF4,DPQ2x4")
    index.add(LONG[:50])
    return index.__getstate__()


IVF_STATE = _state()


def test_update_by_a_hash_table_is_all_or_nothing():
    for line in range(1, 1000):
        index = faiss_dpq.index_factory(32, "IVF4,DPQ2x4")
        index.__setstate__(IVF_STATE)
        index.nprobe = 4
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        before = index.reconstruct_batch(np.arange(50))
        keys = np.array([3, 30, 7])
        try:
            interrupted_at(line, lambda index=index, keys=keys: index.update_vectors(keys, LONG[60:63]))
        except Interruption:
            done = False
        else:
            done = True
        assert index.ntotal == 50
        now = index.reconstruct_batch(np.arange(50))
        others = np.setdiff1d(np.arange(50), keys)
        np.testing.assert_array_equal(now[others], before[others])
        if (now[keys] != before[keys]).any():
            np.testing.assert_array_equal(now[keys], index.sa_decode(index.sa_encode(LONG[60:63])))
        else:
            assert not done
        if done:
            return
    raise AssertionError("more lines than are interrupted")


def graph_within(kind):
    """A stack around an HNSW graph, from which FAISS can remove nothing, and the graph."""
    graph = faiss.IndexHNSWFlat(D, 8)
    if kind == "IDMap":
        return faiss_dpq.IndexIDMap(graph)
    if kind == "IDMap2":
        return faiss_dpq.IndexIDMap2(graph)
    if kind == "PreTransform":
        return faiss_dpq.IndexPreTransform(faiss.PCAMatrix(D, D), graph)
    if kind == "Replicas":
        index = faiss_dpq.IndexReplicas(D, False)
        index.add_replica(graph)
        index.add_replica(faiss.IndexFlat(D))
        return index
    index = faiss_dpq.IndexRefine(faiss_dpq.IndexDPQ(D, 2, 4), graph)
    return faiss_dpq.IndexIDMap2(index) if kind == "IDMap2 of Refine" else index


@pytest.mark.parametrize("kind", ["IDMap", "IDMap2", "PreTransform", "Replicas", "Refine", "IDMap2 of Refine"])
def test_what_cannot_be_taken_back_is_refused_until_a_reset(kind, monkeypatch):
    index = graph_within(kind)
    index.train(X)

    def add(x):
        ids = np.arange(index.ntotal, index.ntotal + len(x))
        index.add_with_ids(x, ids) if "IDMap" in kind else index.add(x)

    add(X[:100])
    with monkeypatch.context() as patched:
        whole = faiss.IndexHNSWFlat.add

        def torn(self, x):
            whole(self, x)
            raise KeyboardInterrupt

        patched.setattr(faiss.IndexHNSWFlat, "add", torn)
        with pytest.raises(KeyboardInterrupt):
            add(X[100:150])
    assert index.ntotal == 100
    for call in (lambda: index.search(X[:2], 3), lambda: index.range_search(X[:2], 1.0), lambda: add(X[:3])):
        with pytest.raises(RuntimeError, match=r"different numbers of vectors: .*reset\(\)"):
            call()
    index.reset()
    add(X[:100])
    assert index.search(X[7:8], 1)[1] == 7
