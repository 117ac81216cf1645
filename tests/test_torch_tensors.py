"""After `import faiss.contrib.torch_utils`, IndexDPQ takes and returns torch tensors as FAISS's own classes do.

The import changes FAISS for the whole process, so all of this runs in processes of its own.
"""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")

PREPARED = """
import faiss
import numpy as np
import torch
import faiss_dpq

x = torch.rand(400, 12, generator=torch.Generator().manual_seed(0))
array = x.numpy()
reference = faiss_dpq.IndexDPQ(12, 3, 4)
reference.train(array)
reference.add(array)
expected = reference.search(array[:9], 5)
expected_range = reference.range_search(array[:9], 0.3)
expected_codes = reference.sa_encode(array[:9])

def fails(error, call):
    try:
        call()
    except error:
        return
    raise SystemExit(f"no {error.__name__}")

def equal(tensor, array, dtype):
    assert type(tensor) is torch.Tensor and tensor.dtype == dtype, (type(tensor), tensor.dtype)
    np.testing.assert_array_equal(tensor.numpy(), array)
"""


def run(program, before=PREPARED + "\nimport faiss.contrib.torch_utils\n"):
    code = before + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_tensors_in_tensors_out():
    run("""
    index = faiss_dpq.IndexDPQ(12, 3, 4)
    index.train(x)
    np.testing.assert_array_equal(index.codebooks, reference.codebooks)
    index.add(x[:200])
    index.add(x[200:].clone().requires_grad_())
    assert index.ntotal == 400
    D, I = index.search(x[:9], 5)
    equal(D, expected[0], torch.float32)
    equal(I, expected[1], torch.int64)
    equal(index.assign(x[:9], 5), expected[1], torch.int64)
    for found, wanted, dtype in zip(
        index.range_search(x[:9], 0.3), expected_range, (torch.int64, torch.float32, torch.int64), strict=True
    ):
        equal(found, wanted, dtype)
    codes = index.sa_encode(x[:9])
    equal(codes, expected_codes, torch.uint8)
    equal(index.sa_decode(codes), reference.sa_decode(expected_codes), torch.float32)
    D, I, R = index.search_and_reconstruct(x[:9], 5)
    equal(R, reference.reconstruct_batch(expected[1].ravel()).reshape(9, 5, 12), torch.float32)
    equal(index.reconstruct(3), reference.reconstruct_batch([3])[0], torch.float32)
    equal(index.reconstruct_n(2, 4), reference.reconstruct_batch([2, 3, 4, 5]), torch.float32)
    params = faiss_dpq.SearchParametersDPQ(levels=2, sel=faiss.IDSelectorBatch(np.arange(0, 400, 7)))
    I = index.search(x[:9], 5, params=params)[1]
    assert (I % 7 == 0).all()
    """)


def test_results_go_into_given_tensors():
    run("""
    D, I = torch.empty(9, 5), torch.empty(9, 5, dtype=torch.int64)
    R = torch.empty(9, 5, 12)
    for given in (reference.search(x[:9], 5, D, I), reference.search(x[:9], 5, D=D, I=I)):
        assert given[0] is D and given[1] is I
    equal(D, expected[0], torch.float32)
    equal(I, expected[1], torch.int64)
    assert reference.search_and_reconstruct(x[:9], 5, D, I, R)[2] is R
    labels = torch.zeros(9, 5, dtype=torch.int64)
    assert reference.assign(x[:9], 5, labels) is labels
    equal(labels, expected[1], torch.int64)
    codes = torch.empty(9, reference.sa_code_size(), dtype=torch.uint8)
    assert reference.sa_encode(x[:9], codes) is codes
    equal(codes, expected_codes, torch.uint8)
    """)


def test_arrays_still_give_arrays():
    run("""
    D, I = reference.search(array[:9], 5)
    assert type(D) is type(I) is np.ndarray
    np.testing.assert_array_equal((D, I), expected)
    assert all(type(part) is np.ndarray for part in reference.range_search(array[:9], 0.3))
    again = faiss_dpq.IndexDPQ(12, 3, 4)
    again.train(array)
    again.add(array)
    np.testing.assert_array_equal(again.search(array[:9], 5), expected)
    assert reference.remove_ids(np.array([1, 2])) == 2
    # FAISS's own methods of tensors lose `params`; ours keep it, and so do its selectors.
    params = faiss_dpq.SearchParametersDPQ(sel=faiss.PyCallbackIDSelector(lambda i: i % 3 == 0))
    assert (reference.search(array[:9], 5, params=params)[1] % 3 == 0).all()
    """)


def test_what_does_not_fit_is_an_assertion_error_as_with_index_pq():
    run("""
    pq = faiss.IndexPQ(12, 3, 4)
    pq.train(x)
    pq.add(x)
    for index in (pq, reference):
        for call in (
            lambda: index.search(x.double(), 5),
            lambda: index.search(x.half(), 5),
            lambda: index.search(x.t().contiguous().t(), 5),
            lambda: index.search(x[:, :5].contiguous(), 5),
            lambda: index.search(torch.nn.Parameter(x), 5),
            lambda: index.search(x, 5, torch.empty(3, 3)),
            lambda: index.search(x, 5, np.empty((400, 5), np.float32)),
            lambda: index.assign(x, 5, torch.empty(3, 3, dtype=torch.int64)),
            lambda: index.add(x.double()),
            lambda: type(index)(12, 3, 4).train(x.double()),
            lambda: index.range_search(x.double(), 1.0),
            lambda: index.sa_encode(x.double()),
            lambda: index.remove_ids(torch.arange(3)),
        ):
            fails(AssertionError, call)
        fails(RuntimeError, lambda: index.add(x.half(), numeric_type=faiss.Float16))
        assert index.ntotal == 400
    """)


def test_lists_and_wrappers_take_tensors_too():
    run("""
    def twins():
        yield lambda: faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(12), 12, 4, 3, 4)
        yield lambda: faiss_dpq.IndexIDMap2(faiss_dpq.IndexDPQ(12, 3, 4))
        yield lambda: faiss_dpq.IndexPreTransform(faiss.PCAMatrix(12, 8), faiss_dpq.IndexDPQ(8, 3, 4))
        yield lambda: faiss_dpq.IndexRefineFlat(faiss_dpq.IndexDPQ(12, 3, 4))
        yield lambda: faiss_dpq.IndexIDMap(faiss.IndexFlatL2(12))

    for make in twins():
        index, twin = make(), make()
        index.train(x)
        twin.train(array)
        if isinstance(index, faiss.IndexIDMap):
            index.add_with_ids(x, torch.arange(400) + 7)
            twin.add_with_ids(array, np.arange(400) + 7)
        else:
            index.add(x)
            twin.add(array)
        D, I = index.search(x[:9], 5)
        D_array, I_array = twin.search(array[:9], 5)
        equal(D, D_array, torch.float32)
        equal(I, I_array, torch.int64)
        equal(index.assign(x[:9], 5), I_array, torch.int64)
    """)


ALL_CLASSES = """
    def makers():
        yield lambda: faiss_dpq.IndexDPQ(12, 3, 4)
        yield lambda: faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(12), 12, 4, 3, 4)
        yield lambda: faiss_dpq.IndexIDMap(faiss_dpq.IndexDPQ(12, 3, 4))
        yield lambda: faiss_dpq.IndexIDMap2(faiss_dpq.IndexDPQ(12, 3, 4))
        yield lambda: faiss_dpq.IndexPreTransform(faiss.PCAMatrix(12, 8), faiss_dpq.IndexDPQ(8, 3, 4))
        yield lambda: faiss_dpq.IndexRefineFlat(faiss_dpq.IndexDPQ(12, 3, 4))
        yield lambda: faiss_dpq.IndexRefine(faiss_dpq.IndexDPQ(12, 3, 4), faiss_dpq.IndexDPQ(12, 4, 4))
        yield lambda: sharded(faiss_dpq.IndexShards(12, False, False))
        yield lambda: sharded(faiss_dpq.IndexReplicas(12))

    def sharded(index):
        for _ in range(2):
            index.addIndex(faiss_dpq.IndexDPQ(12, 3, 4))
        return index
"""


@pytest.mark.parametrize("with_torch_utils", [False, True])
def test_outputs_and_numeric_types_by_position(with_torch_utils):
    """As FAISS's own classes take them after the import of torch_utils; before it, ours do, too."""
    run(
        ALL_CLASSES
        + """
    for make in makers():
        index = make()
        index.train(array, faiss.Float32)
        if isinstance(index, faiss.IndexIDMap):
            index.add_with_ids(array, np.arange(400), faiss.Float32)
        elif isinstance(index, faiss.IndexShards):
            for i in range(2):
                index.at(i).add(array[200 * i : 200 * i + 200], faiss.Float32)
            index.syncWithSubIndexes()
        else:
            index.add(array, faiss.Float32)
        expected_D, expected_I = index.search(array[:9], 5)
        D, I = np.empty((9, 5), np.float32), np.empty((9, 5), np.int64)
        found = index.search(array[:9], 5, D, I)
        assert found[0] is D and found[1] is I
        np.testing.assert_array_equal(D, expected_D)
        np.testing.assert_array_equal(I, expected_I)
        index.search(array[:9], 5, D, I, faiss.Float32)
        labels = np.empty((9, 5), np.int64)
        assert index.assign(array[:9], 5, labels) is labels
        np.testing.assert_array_equal(labels, expected_I)
        if isinstance(index, faiss.IndexShards | faiss.IndexReplicas):
            continue
        R = np.empty((9, 5, 12), np.float32)
        D[:], I[:] = 0, 0
        found = index.search_and_reconstruct(array[:9], 5, D, I, R)
        assert found[0] is D and found[1] is I and found[2] is R
        np.testing.assert_array_equal(D, expected_D)
        assert np.isfinite(R).all()
    """,
        before=PREPARED + ("import faiss.contrib.torch_utils\n" if with_torch_utils else ""),
    )


def test_tensors_as_outputs_of_every_class():
    run(
        ALL_CLASSES
        + """
    for make in makers():
        index = make()
        index.train(x, faiss.Float32)
        if isinstance(index, faiss.IndexIDMap):
            index.add_with_ids(x, torch.arange(400), faiss.Float32)
        elif isinstance(index, faiss.IndexShards):
            continue
        else:
            index.add(x, faiss.Float32)
        expected_D, expected_I = index.search(array[:9], 5)
        D, I = torch.empty(9, 5), torch.empty(9, 5, dtype=torch.int64)
        index.search(x[:9], 5, D, I)
        equal(D, expected_D, torch.float32)
        equal(I, expected_I, torch.int64)
        if not isinstance(index, faiss.IndexReplicas):
            R = torch.empty(9, 5, 12)
            index.search_and_reconstruct(x[:9], 5, D, I, R)
            assert torch.isfinite(R).all()
    """
    )


def test_without_torch_utils_a_tensor_is_an_array_like():
    run(
        """
    D, I = reference.search(x[:9], 5)
    assert type(D) is type(I) is np.ndarray
    np.testing.assert_array_equal(I, expected[1])
    """,
        before=PREPARED,
    )


def test_reconstructions_go_into_tensors_of_every_class():
    run("""
    def filled(description):
        index = faiss_dpq.index_factory(12, description)
        index.train(array)
        index.add_with_ids(array, np.arange(400)) if "IDMap" in description else index.add(array)
        if description.startswith("IVF"):
            index.make_direct_map()
        return index

    for description in ("DPQ3x4", "IVF4,DPQ3x4", "IDMap2,DPQ3x4", "PCA8,DPQ3x4", "DPQ3x4,RFlat"):
        index = filled(description)
        vectors = index.reconstruct_n(0, 5, np.empty((5, 12), np.float32))
        equal(index.reconstruct_n(0, 5), vectors, torch.float32)
        calls = [(lambda out: index.reconstruct(3, out), vectors[3])]
        calls.append((lambda out: index.reconstruct_n(0, 5, out), vectors))
        if "IDMap" not in description:
            codes = index.sa_encode(x[:5])
            calls.append((lambda out: index.sa_decode(codes, out), index.sa_decode(codes.numpy())))
        for call, expected in calls:
            out = torch.empty(expected.shape)
            assert call(out) is out
            equal(out, expected, torch.float32)
            fails(TypeError, lambda: call(torch.empty(expected.shape, dtype=torch.float64)))
            fails(AssertionError, lambda: call(torch.empty(7)))
    """)


def test_vectors_are_replaced_by_tensors():
    run("""
    for description in ("IDMap2,DPQ3x4", "IDMap,IVF4,DPQ3x4", "IDMap,PCA8,DPQ3x4"):
        by_arrays = faiss_dpq.index_factory(12, description)
        by_arrays.train(array)
        by_arrays.add_with_ids(array, np.arange(400) + 7)
        by_tensors = faiss_dpq.clone_index(by_arrays)
        by_arrays.update_vectors(np.array([9, 8]), array[100:102])
        by_tensors.update_vectors(torch.tensor([9, 8]), x[100:102])
        for found, expected in zip(by_tensors.search(array[:9], 5), by_arrays.search(array[:9], 5), strict=True):
            np.testing.assert_array_equal(found, expected)
        fails(AssertionError, lambda: by_tensors.update_vectors(torch.tensor([9, 8]), x[100:102].double()))
    """)
