"""Calls of faiss.Index beyond add and search, and how FAISS's Python wrapper converts and refuses arguments."""

import faiss
import numpy as np
import pytest

import faiss_dpq

N, D = 400, 12
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((N, D), dtype=np.float32)


def make(x, metric=faiss.METRIC_L2, kind=faiss_dpq.IndexDPQ):
    index = kind(D, 3, 5, metric) if kind is faiss_dpq.IndexDPQ else kind(D, 3, 5)
    index.train(x)
    index.add(x)
    return index


@pytest.fixture
def index(x):
    return make(x)


@pytest.fixture
def pq(x):
    return make(x, kind=faiss.IndexPQ)


_pointed_at = []


def pointer(array):
    _pointed_at.append(array)  # a pointer does not keep it alive
    return faiss.swig_ptr(array)


def outputs(n, k):
    return np.empty((n, k), np.float32), np.empty((n, k), np.int64)


# ---- arguments ---------------------------------------------------------------------------------------------------

LAYOUTS = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "big endian": lambda x: x.astype(">f4"),
    "int": lambda x: (8 * x).astype(np.int64),
    "Fortran order": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1][:, ::-1],
    "read-only": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_arrays_are_converted_as_faiss_converts_them(index, x, layout):
    given = layout(x)
    plain = np.ascontiguousarray(given, np.float32)
    np.testing.assert_array_equal(index.search(given[:9], 4), index.search(plain[:9], 4))
    np.testing.assert_array_equal(index.assign(given[:9], 4), index.assign(plain[:9], 4))
    np.testing.assert_array_equal(index.sa_encode(given), index.sa_encode(plain))
    for part, of_plain in zip(index.range_search(given[:9], 0.5), index.range_search(plain[:9], 0.5), strict=True):
        np.testing.assert_array_equal(part, of_plain)
    twins = [faiss_dpq.IndexDPQ(D, 2, 1), faiss_dpq.IndexDPQ(D, 2, 1)]
    for twin, vectors in zip(twins, (given, plain), strict=True):
        twin.train(vectors)
        twin.add(vectors)
    assert faiss.serialize_index(twins[0]).tobytes() == faiss.serialize_index(twins[1]).tobytes()


REFUSED = {
    "k of 0": lambda i, x: i.search(x, 0),
    "k with a fraction": lambda i, x: i.search(x, 3.5),
    "k as text": lambda i, x: i.search(x, "3"),
    "one vector alone": lambda i, x: i.search(x[0], 3),
    "three axes": lambda i, x: i.search(x[None], 3),
    "too few columns": lambda i, x: i.search(x[:, 1:], 3),
    "half floats announced": lambda i, x: i.search(x, 3, numeric_type=faiss.Float16),
    "unknown numeric type": lambda i, x: i.search(x, 3, numeric_type=77),
    "D too small": lambda i, x: i.search(x, 3, D=np.empty((N, 2), np.float32)),
    "D of doubles": lambda i, x: i.search(x, 3, D=np.empty((N, 3))),
    "D not contiguous": lambda i, x: i.search(x, 3, D=np.empty((N, 6), np.float32)[:, ::2]),
    "I of 32 bits": lambda i, x: i.search(x, 3, I=np.empty((N, 3), np.int32)),
    "params of another type": lambda i, x: i.search(x, 3, params=5),
    "labels of 32 bits": lambda i, x: i.assign(x, 3, np.empty((N, 3), np.int32)),
    "range without threshold": lambda i, x: i.range_search(x, None),
    "add half floats announced": lambda i, x: i.add(x, numeric_type=faiss.Float16),
    "add one vector": lambda i, x: i.add(x[0]),
    "train half floats announced": lambda i, x: i.train(x, numeric_type=faiss.Float16),
    "train queries of another d": lambda i, x: i.train(x, xq_train=x[:, 1:]),
    "R too small": lambda i, x: i.search_and_reconstruct(x, 3, R=np.empty((N, 3, 2), np.float32)),
    "encode into ints": lambda i, x: i.sa_encode(x, np.empty((N, i.sa_code_size()), np.int32)),
    "decode ints": lambda i, x: i.sa_decode(np.zeros((2, i.sa_code_size()), np.int32)),
    "decode too short codes": lambda i, x: i.sa_decode(np.zeros((2, 1), np.uint8)),
    "add ints as codes": lambda i, x: i.add_sa_codes(np.zeros((2, i.sa_code_size()), np.int32)),
    "ids": lambda i, x: i.add_with_ids(x, np.arange(N)),
    "remove a list": lambda i, x: i.remove_ids([1, 2]),
    "permute too few": lambda i, x: i.permute_entries(np.arange(5)),
    "reconstruct beyond the end": lambda i, x: i.reconstruct(N),
    "reconstruct -1": lambda i, x: i.reconstruct_batch([0, -1]),
    "reconstruct_n beyond the end": lambda i, x: i.reconstruct_n(N - 1, 2),
    "merge another class": lambda i, x: i.merge_from(faiss.IndexFlatL2(D)),
    "merge with an offset": lambda i, x: i.merge_from(faiss.clone_index(i), 5),
    "merge another d": lambda i, x: i.check_compatible_for_merge(type(i)(2 * D, 3, 5)),
    "unknown attribute": lambda i, x: setattr(i, "nprobe_", 3),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_errors_are_of_the_types_that_index_pq_raises(index, pq, x, call):
    with pytest.raises(Exception) as of_faiss:
        call(pq, x)
    before = faiss.serialize_index(index).tobytes()
    with pytest.raises(of_faiss.type):
        call(index, x)
    assert faiss.serialize_index(index).tobytes() == before


def test_results_are_shaped_as_those_of_index_pq(index, pq, x):
    for call in (
        lambda i: i.search(x[:5], 7),
        lambda i: i.search(x[:0], 7),
        lambda i: i.search_and_reconstruct(x[:5], 7),
        lambda i: (i.assign(x[:5], 7),),
        lambda i: (i.reconstruct(3), i.reconstruct_n(2, 5), i.reconstruct_batch([4, 4]), i.sa_decode(i.sa_encode(x))),
        lambda i: (i.sa_encode(x),),
    ):
        shapes = [[(part.shape, part.dtype) for part in call(i)] for i in (index, pq)]
        assert shapes[0] == shapes[1]
    for ours, theirs in zip(index.range_search(x[:5], 0.4), pq.range_search(x[:5], 0.4), strict=True):
        assert (ours.dtype, ours.ndim) == (theirs.dtype, theirs.ndim)
    assert index.range_search(x[:0], 0.4)[0].tolist() == pq.range_search(x[:0], 0.4)[0].tolist() == [0]


# ---- single distances, residuals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("call", ["get_distance_computer", "get_FlatCodesDistanceComputer"])
def test_get_distance_computer(x, metric, call):
    index = make(x, metric)
    search_type = index.rq.search_type
    computer = getattr(index, call)()
    query = np.random.default_rng(1).random(D, dtype=np.float32)
    computer.set_query(pointer(query))
    decoded = index.reconstruct_n(0, N)
    D_all, I_all = index.search(query[None], N)
    np.testing.assert_allclose([computer(int(i)) for i in I_all[0]], D_all[0], rtol=1e-4, atol=1e-5)
    a, b = decoded[[3, 11]]
    symmetric = a @ b if metric == faiss.METRIC_INNER_PRODUCT else ((a - b) ** 2).sum()
    assert computer.symmetric_dis(3, 11) == pytest.approx(symmetric, rel=1e-4)
    assert index.rq.search_type == search_type


def test_a_distance_computer_keeps_its_index_alive(x):
    computer = make(x).get_distance_computer()
    query = x[0].copy()
    computer.set_query(pointer(query))
    assert computer(0) == pytest.approx(make(x).search(query[None], 1)[0][0, 0], rel=1e-4)


def test_compute_residual_and_compute_residual_n(index, x):
    residual, residuals = np.empty(D, np.float32), np.empty((3, D), np.float32)
    index.compute_residual(pointer(x[7]), pointer(residual), 7)
    np.testing.assert_allclose(residual, x[7] - index.reconstruct(7), atol=1e-6)
    keys = np.array([5, 0, 399])
    index.compute_residual_n(3, pointer(x[:3].copy()), pointer(residuals), pointer(keys))
    np.testing.assert_allclose(residuals, x[:3] - index.reconstruct_batch(keys), atol=1e-6)


# ---- storage -----------------------------------------------------------------------------------------------------


def test_merge_from(index, x):
    other = faiss_dpq.clone_index(index)
    other.reset()
    other.add(x[:30])
    before = index.search(x[:9], 5)
    index.check_compatible_for_merge(other)
    index.merge_from(other)
    assert (index.ntotal, other.ntotal) == (N + 30, 0)
    np.testing.assert_array_equal(index.reconstruct_n(N, 30), index.reconstruct_n(0, 30))
    np.testing.assert_array_equal(index.search(x[:9], 5, params=faiss.SearchParameters(sel=below(N))), before)
    index.merge_from(faiss.clone_index(index))  # of FAISS's own class
    assert index.ntotal == 2 * (N + 30)


def below(n):
    return faiss.IDSelectorRange(0, n)


@pytest.mark.parametrize("other", [(3, 5, 1), (5, 3, 0)], ids=["other codebooks", "as many bits in other levels"])
def test_merge_from_other_codebooks_is_refused(index, x, other):
    # FAISS compares the sizes of codes only, and would mix codes of different meanings.
    M, nbits, offset = other
    stranger = faiss_dpq.IndexDPQ(D, M, nbits)
    stranger.train(x + offset)
    stranger.add(x)
    for call in (index.check_compatible_for_merge, index.merge_from):
        with pytest.raises(RuntimeError, match="other codebooks"):
            call(stranger)
    assert (index.ntotal, stranger.ntotal) == (N, N)


def test_permute_entries_and_permute_entries_c(index, x):
    decoded = index.reconstruct_n(0, N)
    order = np.random.default_rng(2).permutation(N)
    index.search(x[:1], 1)
    index.permute_entries(order)
    np.testing.assert_array_equal(index.reconstruct_n(0, N), decoded[order])
    D_found, I_found = index.search(x[:9], 3)
    np.testing.assert_allclose(D_found, ((x[:9, None] - decoded[order][I_found]) ** 2).sum(2), rtol=1e-4, atol=1e-5)
    index.permute_entries_c(pointer(np.argsort(order)))
    np.testing.assert_array_equal(index.reconstruct_n(0, N), decoded)


def test_remove_ids_and_remove_ids_c(index, x):
    decoded = index.reconstruct_n(0, N)
    assert index.remove_ids(np.array([0, 5, 5, N + 3])) == 2
    assert index.remove_ids(below(3)) == 3
    assert index.remove_ids_c(faiss.IDSelectorNot(below(100))) == N - 5 - 100
    left = np.delete(decoded, [0, 5], axis=0)[3:103]
    np.testing.assert_array_equal(index.reconstruct_n(0, 100), left)
    I_found = index.search(x[:9], 1)[1]
    np.testing.assert_array_equal(I_found[:, 0], ((x[:9, None] - left[None]) ** 2).sum(2).argmin(1))


def test_reset_keeps_the_codebooks(index, x):
    codes = index.sa_encode(x)
    index.reset()
    assert (index.ntotal, index.is_trained) == (0, True)
    assert (index.search(x[:2], 2)[1] == -1).all()
    np.testing.assert_array_equal(index.sa_encode(x), codes)


def test_add_sa_codes(index, x):
    codes = index.sa_encode(x[:30])
    index.add_sa_codes(codes)
    assert index.ntotal == N + 30
    np.testing.assert_array_equal(index.reconstruct_n(N, 30), index.sa_decode(codes))
    assert N + 4 in index.search(index.sa_decode(codes[4:5]), 3)[1]


def test_get_code_packer_moves_codes(index, x):
    packer = index.get_CodePacker()
    assert (packer.code_size, packer.nvec) == (index.sa_code_size(), 1)
    codes, block = index.sa_encode(x[:1]), np.zeros((1, packer.block_size), np.uint8)
    packer.pack_1(codes[0], 0, block)
    np.testing.assert_array_equal(packer.unpack_1(block, 0), codes[0])


# ---- FAISS's C++ under our object ----------------------------------------------------------------------------------


def test_the_calls_on_pointers_search_the_same_codes(index, x):
    """add_c, search_c ... are FAISS's own C++: its encoder and its scan, on the codebooks and codes of our object."""
    D_found = index.search(x[:9], 3)[0]
    for search in (
        lambda D_, I_: index.search_c(9, pointer(x[:9]), 3, pointer(D_), pointer(I_)),
        lambda D_, I_: index.search_ex(9, pointer(x[:9]), faiss.Float32, 3, pointer(D_), pointer(I_)),
    ):
        D_, I_ = outputs(9, 3)
        search(D_, I_)
        np.testing.assert_allclose(D_, D_found, rtol=1e-4, atol=1e-5)
    D_, I_ = outputs(9, 3)
    index.assign_c(9, pointer(x[:9]), pointer(I_), 3)
    R = np.empty((9, 3, D), np.float32)
    index.search_and_reconstruct_c(9, pointer(x[:9]), 3, pointer(D_), pointer(I_), pointer(R))
    np.testing.assert_allclose(R, index.reconstruct_batch(I_.ravel()).reshape(R.shape), atol=1e-6)
    result = faiss.RangeSearchResult(9)
    index.range_search_c(9, pointer(x[:9]), 0.5, result)
    lims = faiss.rev_swig_ptr(result.lims, 10)
    np.testing.assert_array_equal(lims, index.range_search(x[:9], 0.5)[0])


def test_the_calls_on_pointers_encode_and_store(index, x):
    codes = np.empty((N, index.sa_code_size()), np.uint8)
    index.sa_encode_c(N, pointer(x), pointer(codes))
    decoded, one, three = np.empty((N, D), np.float32), np.empty(D, np.float32), np.empty((3, D), np.float32)
    index.sa_decode_c(N, pointer(codes), pointer(decoded))
    np.testing.assert_allclose(decoded, index.sa_decode(codes))
    index.reset()
    index.add_c(100, pointer(x))
    index.add_ex(100, pointer(x[100:200].copy()), faiss.Float32)
    index.add_sa_codes_c(200, pointer(codes[200:].copy()), None)
    assert index.ntotal == N
    np.testing.assert_allclose(index.reconstruct_n(0, N), decoded, atol=1e-6)
    index.reconstruct_c(7, pointer(one))
    index.reconstruct_n_c(7, 3, pointer(three))
    np.testing.assert_array_equal(three, index.reconstruct_n(7, 3))
    index.reconstruct_batch_c(3, pointer(np.array([7, 8, 9])), pointer(three))
    np.testing.assert_array_equal(three, index.reconstruct_n(7, 3))
    np.testing.assert_array_equal(three[0], one)
    distances = ((x[:9, None] - decoded[None]) ** 2).sum(2)
    np.testing.assert_allclose(index.search(x[:9], 3)[0], np.sort(distances, axis=1)[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", ["train_c", "train_ex", "train_with_queries"])
def test_training_through_pointers_is_noticed(index, x, train):
    """They learn FAISS's residual codebooks in place of ours."""
    index.search(x[:1], 1)
    index.reset()
    others = {"train_c": [], "train_ex": [faiss.Float32], "train_with_queries": [9, pointer(x)]}[train]
    getattr(index, train)(N, pointer(x), *others)
    index.add(x)
    D_found, I_found = index.search(x[:9], 3)
    decoded = index.reconstruct_n(0, N)
    np.testing.assert_allclose(D_found, ((x[:9, None] - decoded[I_found]) ** 2).sum(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", ["add_with_ids", "add_with_ids_c", "add_with_ids_ex", "search_subset"])
def test_what_index_pq_does_not_do_either(index, pq, x, call):
    ids = np.arange(N)
    D_, I_ = outputs(N, 3)
    arguments = {
        "add_with_ids": (x, ids),
        "add_with_ids_c": (N, pointer(x), pointer(ids)),
        "add_with_ids_ex": (N, pointer(x), faiss.Float32, pointer(ids)),
        "search_subset": (1, pointer(x), 1, pointer(ids), 3, pointer(D_), pointer(I_)),
    }[call]
    for some in (pq, index):
        with pytest.raises(RuntimeError):
            getattr(some, call)(*arguments)
    assert index.ntotal == N
