"""Calls of faiss.IndexIVF beyond add and search: those on pointers, and those for other programs' scans and shards."""

import faiss
import numpy as np
import pytest

import faiss_dpq

N, D, NLIST = 600, 12, 6


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((N, D), dtype=np.float32)


@pytest.fixture
def index(x):
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), D, NLIST, 3, 5, faiss.METRIC_L2)
    index.train(x)
    index.add(x)
    index.nprobe = 3
    return index


_pointed_at = []


def pointer(array):
    _pointed_at.append(array)  # a pointer does not keep it alive
    return faiss.swig_ptr(array)


def outputs(n, k):
    return np.empty((n, k), np.float32), np.empty((n, k), np.int64)


def test_the_calls_on_pointers_search_the_same_codes(index, x):
    """search_c, range_search_c ... are FAISS's own C++ on the lists and codebooks of our object."""
    D_found = index.search(x[:9], 4)[0]
    Dq, Iq = index.quantizer.search(x[:9], 3)
    D_, I_ = outputs(9, 4)
    R, codes = np.empty((9, 4, D), np.float32), np.empty((9, 4, index.code_size), np.uint8)
    for search in (
        lambda: index.search_c(9, pointer(x), 4, pointer(D_), pointer(I_)),
        lambda: index.search_ex(9, pointer(x), faiss.Float32, 4, pointer(D_), pointer(I_)),
        lambda: index.search_preassigned_c(9, pointer(x), 4, pointer(Iq), pointer(Dq), pointer(D_), pointer(I_), False),
        lambda: index.search_and_reconstruct_c(9, pointer(x), 4, pointer(D_), pointer(I_), pointer(R)),
        lambda: index.search_and_return_codes_c(9, pointer(x), 4, pointer(D_), pointer(I_), pointer(codes)),
    ):
        D_[:], I_[:] = 0, -7
        search()
        np.testing.assert_allclose(D_, D_found, rtol=1e-4, atol=1e-5)
        assert (I_ >= 0).all()
    index.make_direct_map()
    np.testing.assert_allclose(R, index.reconstruct_batch(I_.ravel()).reshape(R.shape), atol=1e-5)
    labels = np.empty((9, 4), np.int64)
    index.assign_c(9, pointer(x), pointer(labels), 4)
    np.testing.assert_array_equal(labels, I_)
    for search in (
        lambda result: index.range_search_c(9, pointer(x), 0.6, result),
        lambda result: index.range_search_preassigned_c(9, pointer(x), 0.6, pointer(Iq), pointer(Dq), result),
    ):
        result = faiss.RangeSearchResult(9)
        search(result)
        np.testing.assert_array_equal(faiss.rev_swig_ptr(result.lims, 10), index.range_search(x[:9], 0.6)[0])


def test_the_calls_on_pointers_encode_and_store(index, x):
    codes = np.empty((N, index.sa_code_size()), np.uint8)
    index.sa_encode_c(N, pointer(x), pointer(codes))
    decoded = np.empty((N, D), np.float32)
    index.sa_decode_c(N, pointer(codes), pointer(decoded))
    np.testing.assert_allclose(decoded, index.sa_decode(codes), atol=1e-6)
    ids = np.arange(N)
    lists = index.quantizer.assign(x, 1)[:, 0]
    index.reset()
    index.add_c(100, pointer(x))
    index.add_ex(100, pointer(x[100:200].copy()), faiss.Float32)
    index.add_with_ids_c(100, pointer(x[200:300].copy()), pointer(ids[200:300].copy()))
    index.add_with_ids_ex(100, pointer(x[300:400].copy()), faiss.Float32, pointer(ids[300:400].copy()))
    index.add_sa_codes_c(100, pointer(codes[400:500].copy()), pointer(ids[400:500].copy()))
    index.add_core(100, pointer(x[500:].copy()), pointer(ids[500:].copy()), pointer(lists[500:].copy()))
    assert index.ntotal == N
    index.make_direct_map()
    np.testing.assert_allclose(index.reconstruct_n(0, N), decoded, atol=1e-5)
    one, three = np.empty(D, np.float32), np.empty((3, D), np.float32)
    index.reconstruct_c(7, pointer(one))
    index.reconstruct_n_c(7, 3, pointer(three))
    np.testing.assert_array_equal(three, index.reconstruct_n(7, 3))
    np.testing.assert_array_equal(three[0], one)
    index.reconstruct_batch_c(3, pointer(np.array([9, 8, 7])), pointer(three))
    np.testing.assert_array_equal(three, index.reconstruct_n(7, 3)[::-1])
    index.nprobe = NLIST
    distances = ((x[:9, None] - decoded[None]) ** 2).sum(2)
    np.testing.assert_allclose(index.search(x[:9], 3)[0], np.sort(distances, axis=1)[:, :3], rtol=1e-4, atol=1e-5)


def test_update_vectors_c_and_remove_ids_c_are_noticed(index, x):
    index.make_direct_map()
    index.search(x[:9], 1)
    index.update_vectors_c(3, pointer(np.array([5, 6, 7])), pointer(x[:3].copy()))
    np.testing.assert_allclose(index.reconstruct_batch([5, 6, 7]), index.reconstruct_n(0, 3), atol=1e-5)
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    assert index.remove_ids_c(faiss.IDSelectorRange(0, 3)) == 3
    found = index.search(x[:3], 1)[1]
    np.testing.assert_array_equal(found[:, 0], [5, 6, 7])


@pytest.mark.parametrize("train", ["train_c", "train_ex", "train_with_queries"])
def test_training_through_pointers_is_noticed(index, x, train):
    """They learn FAISS's residual codebooks in place of ours."""
    index.search(x[:1], 1)
    index.reset()
    others = {"train_c": [], "train_ex": [faiss.Float32], "train_with_queries": [9, pointer(x)]}[train]
    getattr(index, train)(N, pointer(x), *others)
    check_after_training(index, x)


def test_the_steps_of_training_are_there(index, x):
    assert index.train_encoder_num_vectors() == faiss.IndexIVFResidualQuantizer.train_encoder_num_vectors(index)
    other = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), D, NLIST, 3, 5, faiss.METRIC_L2)
    other.train_q1(N, pointer(x), False, faiss.METRIC_L2)
    assert other.quantizer.ntotal == NLIST
    lists = other.quantizer.assign(x, 1)[:, 0]
    residuals = x - other.quantizer.reconstruct_n(0, NLIST)[lists]
    other.train_encoder(N, pointer(residuals), pointer(lists))
    other.is_trained = True
    check_after_training(other, x)


def check_after_training(index, x):
    index.add(x)
    index.nprobe = NLIST
    D_found, I_found = index.search(x[:9], 3)
    index.make_direct_map()
    decoded = index.reconstruct_n(0, N)
    np.testing.assert_allclose(D_found, ((x[:9, None] - decoded[I_found]) ** 2).sum(2), rtol=1e-4, atol=1e-5)
    distances = ((x[:9, None] - decoded[None]) ** 2).sum(2)
    np.testing.assert_allclose(D_found, np.sort(distances, axis=1)[:, :3], rtol=1e-4, atol=1e-5)


def test_codes_of_lists(index, x):
    lists = index.quantizer.assign(x, 1)[:, 0]
    coarse = index.coarse_code_size()
    codes = index.sa_encode(x)
    assert (coarse, index.sa_code_size()) == (1, coarse + index.code_size)
    number = np.zeros(coarse, np.uint8)
    index.encode_listno(5, pointer(number))
    assert index.decode_listno(pointer(number)) == 5
    with_lists, plain = np.empty_like(codes), np.empty((N, index.code_size), np.uint8)
    index.encode_vectors(N, pointer(x), pointer(lists), pointer(with_lists), True)
    index.encode_vectors(N, pointer(x), pointer(lists), pointer(plain), False)
    np.testing.assert_array_equal(with_lists[:, :coarse], codes[:, :coarse])
    np.testing.assert_array_equal(with_lists[:, coarse:], plain)
    decoded = np.empty((N, D), np.float32)
    residual_codes = np.ascontiguousarray(codes[:, coarse:])
    index.decode_vectors(N, pointer(residual_codes), pointer(lists), pointer(decoded))
    np.testing.assert_allclose(decoded, index.sa_decode(codes), atol=1e-5)


def test_lists_can_be_read(index, x):
    lists = index.quantizer.assign(x, 1)[:, 0]
    assert [index.get_list_size(number) for number in range(NLIST)] == np.bincount(lists, minlength=NLIST).tolist()
    assert index.check_ids_sorted()
    of_list = np.flatnonzero(lists == 2)
    one = np.empty(D, np.float32)
    index.reconstruct_from_offset(2, 3, pointer(one))
    index.make_direct_map()
    np.testing.assert_allclose(one, index.reconstruct(int(of_list[3])), atol=1e-5)
    residual, residuals = np.empty(D, np.float32), np.empty((3, D), np.float32)
    index.compute_residual(pointer(x[7].copy()), pointer(residual), 7)
    np.testing.assert_allclose(residual, x[7] - index.reconstruct(7), atol=1e-5)
    index.compute_residual_n(3, pointer(x[:3].copy()), pointer(residuals), pointer(np.arange(3)))
    np.testing.assert_allclose(residuals, x[:3] - index.reconstruct_n(0, 3), atol=1e-5)


def test_get_code_packer_moves_codes(index, x):
    packer = index.get_CodePacker()
    codes, block = index.sa_encode(x[:1])[:, index.coarse_code_size() :].copy(), np.zeros((1, 2), np.uint8)
    assert (packer.code_size, packer.nvec, packer.block_size) == (2, 1, 2)
    packer.pack_1(codes[0], 0, block)
    np.testing.assert_array_equal(packer.unpack_1(block, 0), codes[0])


def test_copy_subset_to_an_index_of_the_same_codebooks(index, x):
    part = faiss_dpq.clone_index(index)
    part.reset()
    index.check_compatible_for_merge(part)
    part.search(x[:1], 1)
    index.copy_subset_to(part, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, 100, 300)
    assert part.ntotal == 200
    params = faiss.SearchParametersIVF(nprobe=3, sel=faiss.IDSelectorRange(100, 300))
    np.testing.assert_array_equal(part.search(x[:9], 4), index.search(x[:9], 4, params=params))


def test_get_inverted_list_scanner_scans_a_list(index, x):
    lists = index.quantizer.assign(x, 1)[:, 0]
    scanner = index.get_InvertedListScanner(False, None, None)
    query = x[4].copy()
    Dq, Iq = index.quantizer.search(query[None], 1)
    number = int(Iq[0, 0])
    scanner.set_query(pointer(query))
    scanner.set_list(number, float(Dq[0, 0]))
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), index.get_list_size(number) * index.code_size)
    codes = codes.reshape(-1, index.code_size).copy()
    found = [scanner.distance_to_code(pointer(code)) for code in codes]
    index.make_direct_map()
    members = index.reconstruct_batch(np.flatnonzero(lists == number))
    np.testing.assert_allclose(found, ((members - query) ** 2).sum(1), rtol=1e-4, atol=1e-5)


def test_get_distance_computer(index, x):
    index.make_direct_map()
    computer = index.get_distance_computer()
    query = np.random.default_rng(1).random(D, dtype=np.float32)
    computer.set_query(pointer(query))
    index.nprobe = NLIST
    D_all, I_all = index.search(query[None], N)
    np.testing.assert_allclose([computer(int(i)) for i in I_all[0]], D_all[0], rtol=1e-4, atol=1e-5)
    a, b = index.reconstruct(3), index.reconstruct(11)
    assert computer.symmetric_dis(3, 11) == pytest.approx(((a - b) ** 2).sum(), rel=1e-4)
