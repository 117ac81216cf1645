"""IndexDPQ names what is wrong in a call, and stays as it was."""

import faiss
import numpy as np
import pytest
from flat_index import empty

import faiss_dpq

bad_calls = {
    "d": (lambda i, x: faiss_dpq.IndexDPQ(0, 4), ValueError, "IndexDPQ: d is 0"),
    "M": (lambda i, x: faiss_dpq.IndexDPQ(8, 0), ValueError, "IndexDPQ: M is 0"),
    "nbits": (lambda i, x: faiss_dpq.IndexDPQ(8, 4, 13), ValueError, "IndexDPQ: nbits is 13"),
    "metric": (
        lambda i, x: faiss_dpq.IndexDPQ(8, 4, 8, faiss.METRIC_L1),
        ValueError,
        "IndexDPQ: metric is",
    ),
    "codebooks shape": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.zeros((2, 3, 4))),
        ValueError,
        "K=3 codewords",
    ),
    "codebooks ndim": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.zeros((2, 4))),
        ValueError,
        r"\(2, 4\)",
    ),
    "codebooks nan": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.full((1, 2, 4), np.nan)),
        ValueError,
        "NaN or infinite",
    ),
    "search columns": (
        lambda i, x: i.search(x[:, :9], 1),
        AssertionError,
        "search: x has 9 columns, .* d=64",
    ),
    "search ndim": (lambda i, x: i.search(x[0], 1), ValueError, "search: x has 1 dimensions"),
    "search dtype": (
        lambda i, x: i.search(x.astype(complex), 1),
        TypeError,
        "search: x has dtype complex",
    ),
    "search text": (
        lambda i, x: i.search(np.array([["a"] * 64]), 1),
        TypeError,
        "search: x has dtype",
    ),
    "range_search columns": (lambda i, x: i.range_search(x[:, :9], 1), AssertionError, "range_search: x has 9 columns"),
    "search k": (lambda i, x: i.search(x, 0), AssertionError, "search: k is 0"),
    "search D": (
        lambda i, x: i.search(x, 2, D=np.empty((1, 1), "f4")),
        AssertionError,
        "search: D has shape",
    ),
    "search levels": (
        lambda i, x: i.search(x, 2, params=faiss_dpq.SearchParametersDPQ(levels=5)),
        ValueError,
        "params.levels is 5, the index has M=4",
    ),
    "levels": (lambda i, x: setattr(i, "levels", 0), ValueError, "levels is 0"),
    "truncate": (lambda i, x: i.truncate(9), ValueError, "levels is 9"),
    "beam_size": (lambda i, x: setattr(i, "beam_size", 0), ValueError, "beam_size is 0"),
    "unknown attribute": (lambda i, x: setattr(i, "beamsize", 3), AttributeError, "beamsize"),
    "add columns": (lambda i, x: i.add(x[:, :9]), AssertionError, "add: x has 9 columns"),
    "sa_encode out": (
        lambda i, x: i.sa_encode(x, np.empty((1, 1), "u1")),
        AssertionError,
        "codes has shape",
    ),
    "train twice": (lambda i, x: i.train(x), RuntimeError, "holds 1000 vectors"),
    "train few": (
        lambda i, x: empty(i).train(x[:10]),
        RuntimeError,
        r"10 vectors, at least 2\*\*nbits = 64",
    ),
    "train nan": (lambda i, x: empty(i).train(x * np.nan), RuntimeError, "NaN or infinite"),
    "train inf": (
        lambda i, x: empty(i).train(x + np.float32(np.inf)),
        RuntimeError,
        "NaN or infinite",
    ),
    "reconstruct": (lambda i, x: i.reconstruct(1000), RuntimeError, "ntotal"),
}


@pytest.mark.parametrize("call, error, message", bad_calls.values(), ids=bad_calls.keys())
def test_bad_input_is_named_and_changes_nothing(trained_dpq, digits, call, error, message):
    before = faiss.serialize_index(trained_dpq).tobytes()
    with pytest.raises(error, match=message):
        call(trained_dpq, digits)
    assert faiss.serialize_index(trained_dpq).tobytes() == before
    assert trained_dpq.levels == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda i, x: i.add(x),
        lambda i, x: i.search(x, 1),
        lambda i, x: i.sa_encode(x),
        lambda i, x: i.codebooks,
        lambda i, x: i.truncate(1),
    ],
)
def test_an_untrained_index_refuses(digits, call):
    index = faiss_dpq.IndexDPQ(64, 4)
    with pytest.raises(RuntimeError, match="not trained"):
        call(index, digits)
    assert (index.ntotal, index.is_trained) == (0, False)


def test_failed_training_leaves_the_index_as_it_was(trained_dpq, digits):
    index = empty(trained_dpq)
    index.add(digits[:0])
    before = faiss.serialize_index(index).tobytes()
    with pytest.raises(RuntimeError):
        index.train(digits * np.nan)
    assert faiss.serialize_index(index).tobytes() == before
    untrained = faiss_dpq.IndexDPQ(64, 4)
    with pytest.raises(RuntimeError):
        untrained.train(digits[:5])
    assert not untrained.is_trained
