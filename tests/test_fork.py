"""A child that was forked after OpenMP had several threads: what is ours works there, FAISS's parts within included."""

import os
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
