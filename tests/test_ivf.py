"""The arguments of IndexIVFDPQ, and what it refuses."""

import faiss
import numpy as np
import pytest

import faiss_dpq


def test_constructor_arguments():
    quantizer = faiss.IndexFlatL2(8)
    for arguments, name in (
        ((0, 4, 2), "d"),
        ((8, 0, 2), "nlist"),
        ((8, 4, 0), "M"),
        ((8, 4, 2, 13), "nbits"),
        ((8, 4, 2, 8, faiss.METRIC_L1), "metric"),
    ):
        with pytest.raises(ValueError, match=f"IndexIVFDPQ: {name} is"):
            faiss_dpq.IndexIVFDPQ(quantizer, *arguments)
    with pytest.raises(RuntimeError):
        faiss_dpq.IndexIVFDPQ(quantizer, 9, 4, 2)
    with pytest.raises(ValueError, match="coarse_quantizer"):
        faiss_dpq.IndexIVFDPQ.from_codebooks(quantizer, np.zeros((2, 4, 8)))


def test_bad_calls_leave_the_index_as_it_was(digits):
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(64), 64, 16, 4, 6)
    for method in (lambda: index.search(digits, 3), lambda: index.add(digits), lambda: index.sa_encode(digits)):
        with pytest.raises(RuntimeError, match="not trained"):
            method()
    bad = digits[:200].copy()
    bad[3, 3] = np.nan
    for x, options, error in (
        (digits[:10], {}, RuntimeError),
        (bad, {}, RuntimeError),
        (digits, {"effort": "more"}, ValueError),
        (digits, {"weights": [1]}, ValueError),
    ):
        with pytest.raises(error, match="train"):
            index.train(x, **options)
        assert not index.is_trained and index.quantizer.ntotal == 0
    index.train(digits, effort="fast")
    index.add(digits[:100])
    xq = digits[:3]
    for call, error in (
        (lambda: index.search(xq, 0), AssertionError),
        (lambda: index.search(xq[:, :5], 2), AssertionError),
        (lambda: index.search(xq[0], 2), ValueError),
        (lambda: index.search(xq.astype(str), 2), TypeError),
        (lambda: index.search(xq, 2, D=np.empty((3, 3), "f")), AssertionError),
        (lambda: index.search(xq, 2, params=faiss.SearchParameters()), RuntimeError),
        (lambda: index.search(xq, 2, params=faiss.SearchParametersIVF(nprobe=0)), RuntimeError),
        (lambda: index.search(xq, 2, params=faiss_dpq.SearchParametersIVFDPQ(levels=5)), ValueError),
        (lambda: index.add_with_ids(xq, np.arange(2)), AssertionError),
        (lambda: index.update_vectors(np.arange(2), xq), AssertionError),
        (lambda: index.sa_encode(xq, np.empty((3, 2), np.uint8)), AssertionError),
        (lambda: index.train(digits), RuntimeError),
        (lambda: index.truncate(5), ValueError),
        (lambda: index.merge_from(faiss_dpq.IndexDPQ(64, 4, 6), 0), RuntimeError),
    ):
        with pytest.raises(error):
            call()
    assert index.ntotal == 100 and index.levels == 4


def test_numbers_of_other_types(trained_ivf, digits):
    index = faiss_dpq.clone_index(trained_ivf)
    index.nprobe = 3
    D, I = index.search(digits[:5], 4)
    for x in (digits[:5].astype(np.float64), digits[:5].astype(np.int16), np.asfortranarray(digits[:5])):
        np.testing.assert_array_equal(index.search(x, 4)[1], I)
    out_D, out_I = np.empty_like(D), np.empty_like(I)
    assert index.search(digits[:5], 4, D=out_D, I=out_I)[0] is out_D
    np.testing.assert_array_equal(out_I, I)
    np.testing.assert_array_equal(index.assign(digits[:5], 4), I)


def test_memory_usage_grows_with_what_is_searched(trained_ivf, digits):
    index = faiss_dpq.clone_index(trained_ivf)
    before = index.memory_usage()
    assert before["codes"] == 1000 * 3 and before["derived"] == 0
    index.nprobe = 16
    index.search(digits[:5], 4)
    assert index.memory_usage()["derived"] >= 5 * 1000
