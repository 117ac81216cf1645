"""A child that was forked after OpenMP had several threads: what is ours works there, FAISS's parts within included."""

import copy
import os
import pickle
import signal

import faiss
import numpy as np
import pytest
from naive import normal

import faiss_dpq

D = 16
STACKS = [
    "DPQ4x4",
    "DPQ4x4,RFlat",
    "PCA8,DPQ4x4",
    "IDMap2,OPQ4_8,DPQ4x4",
    "IVF8,DPQ4x4",
    "IVF8_HNSW8,DPQ4x4",
    "IVF32(DPQ2x5),DPQ4x4",
]


def use(index, x):
    index.add_with_ids(x, np.arange(len(x))) if hasattr(index, "id_map") else index.add(x)
    results = [*index.search(x[:300], 5), *index.search(x[:1], 5), *index.range_search(x[:20], 1.0)]
    if not isinstance(index, faiss.IndexIDMap):
        results.append(index.sa_encode(x[:100]))
    results.append(index.remove_ids(np.arange(0, 40, 3)) if "Refine" not in type(index).__name__ else 0)
    return results


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("stack", STACKS)
def test_a_forked_child_searches_adds_and_trains(stack, metric, threads):
    rng = np.random.default_rng(0)
    x = normal(rng, 600, D)
    threads(3)
    index = faiss_dpq.index_factory(D, stack, metric)
    index.train(x, effort="fast")
    expected = use(faiss_dpq.clone_index(index), x)
    plain = faiss.IndexFlatL2(D)
    plain.add(x)
    plain.search(x, 5)  # OpenMP has its threads now
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(100)
            for found, value in zip(use(faiss_dpq.clone_index(index), x), expected, strict=True):
                np.testing.assert_array_equal(found, value)
            other = faiss_dpq.index_factory(D, stack, metric)
            other.train(x, effort="fast")
            assert other.is_trained
            assert faiss.omp_get_max_threads() == 3
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def passed_on(index, x, path):
    """What reads, copies and decodes an index, where its class has it."""
    results = [each.search(x[:20], 3) for each in copies(index, path)]
    if isinstance(index, faiss.IndexIVF):
        index.make_direct_map()
        results += [index.search_and_return_codes(x[:300], 3)[2], index.probed_lists(x[:300])]
        index.update_vectors(np.arange(500), x[::-1][:500].copy())
    if not isinstance(index, faiss.IndexIDMap):
        results.append(index.sa_decode(index.sa_encode(x)))
    results += [index.reconstruct_n(0, len(x)), index.reconstruct_batch(np.arange(len(x)))]
    if isinstance(index, faiss_dpq.IndexDPQ):
        results += [index.truncate(2).codebooks, faiss_dpq.IndexDPQ.from_codebooks(index.codebooks).codebooks]
        results.append(faiss_dpq.train_codebooks(x, 2, 4)[0])
    return results


def copies(index, path):
    faiss_dpq.write_index(index, path)
    yield faiss_dpq.read_index(path)
    yield faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
    yield pickle.loads(pickle.dumps(index))
    yield copy.deepcopy(index)
    yield faiss_dpq.clone_index(index)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("stack", ["DPQ8x6", "IVF8_HNSW8,DPQ4x4", "IDMap2,PCA8,DPQ4x4", "DPQ4x4,RFlat"])
def test_a_forked_child_reads_copies_and_decodes(stack, threads, tmp_path):
    x = normal(np.random.default_rng(0), 2000, D)
    threads(3)
    index = faiss_dpq.index_factory(D, stack)
    index.train(x, effort="fast")
    index.add_with_ids(x, np.arange(len(x))) if hasattr(index, "id_map") else index.add(x)
    expected = passed_on(faiss_dpq.clone_index(index), x, str(tmp_path / "parent"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(100)
            found = passed_on(index, x, str(tmp_path / "child"))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
            assert faiss.omp_get_max_threads() == 3
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
