"""IndexDPQ has the surface of faiss.IndexPQ, and settings of its own."""

import copy
import pickle

import faiss
import numpy as np
import pytest
from flat_index import empty

import faiss_dpq
from faiss_dpq import _kernels, training


def test_truncate_keeps_the_original(trained_dpq, digits):
    before = faiss.serialize_index(trained_dpq).tobytes()
    short = trained_dpq.truncate(2)
    np.testing.assert_array_equal(short.codebooks, trained_dpq.codebooks[:2])
    short.add(digits[:10])
    assert (trained_dpq.ntotal, short.ntotal) == (1000, 1010)
    assert faiss.serialize_index(trained_dpq).tobytes() == before


@pytest.mark.parametrize("d, M, nbits", [(64, 4, 8), (64, 8, 4), (60, 5, 6), (24, 3, 12), (64, 1, 1), (70, 10, 5)])
def test_code_size_is_that_of_index_pq(d, M, nbits):
    index = faiss_dpq.IndexDPQ(d, M, nbits)
    assert index.code_size == index.sa_code_size() == faiss.IndexPQ(d, M, nbits).code_size


def test_any_d_and_m(digits):
    x = np.ascontiguousarray(digits[:, :37])
    index = faiss_dpq.IndexDPQ(37, 6, 4)
    index.train(x)
    index.add(x)
    assert (index.search(x[:200], 1)[1][:, 0] == np.arange(200)).mean() > 0.5


def test_it_is_a_faiss_index(trained_dpq):
    assert isinstance(trained_dpq, faiss.Index)
    assert isinstance(trained_dpq, faiss.IndexResidualQuantizer)
    assert (trained_dpq.d, trained_dpq.ntotal, trained_dpq.is_trained) == (64, 1000, True)


def test_stock_wrappers_take_it(trained_dpq, digits):
    wrapped = faiss.IndexIDMap2(empty(trained_dpq))
    wrapped.add_with_ids(digits[:50], np.arange(1000, 1050))
    D, I = wrapped.search(digits[:50], 3)
    inner = faiss_dpq.downcast_index(wrapped.index)
    assert type(inner) is faiss_dpq.IndexDPQ
    np.testing.assert_array_equal(I, inner.search(digits[:50], 3)[1] + 1000)
    np.testing.assert_allclose(D, inner.search(digits[:50], 3)[0], rtol=1e-4)


def test_reconstruct_and_codec(trained_dpq, digits):
    codes = trained_dpq.sa_encode(digits[:1000])
    assert (codes.dtype, codes.shape) == (np.uint8, (1000, trained_dpq.sa_code_size()))
    decoded = trained_dpq.sa_decode(codes)
    np.testing.assert_array_equal(trained_dpq.reconstruct_n(0, 1000), decoded)
    np.testing.assert_array_equal(trained_dpq.reconstruct(17), decoded[17])
    np.testing.assert_array_equal(trained_dpq.reconstruct_batch(np.array([5, 3])), decoded[[5, 3]])
    out = np.empty_like(codes)
    assert trained_dpq.sa_encode(digits[:1000], out) is out
    np.testing.assert_array_equal(out, codes)
    quantizer = trained_dpq.residual_quantizer
    weights = trained_dpq.prefix_weight, trained_dpq.parallel_weight
    encoded = quantizer.encode(digits[:1000], trained_dpq.beam_size, *weights)
    np.testing.assert_allclose(quantizer.decode(encoded), decoded, atol=1e-4)


def test_memory_usage_counts_what_is_held(trained_dpq, digits):
    index = trained_dpq.truncate(4)
    before = index.memory_usage()
    assert before["codes"] == 1000 * index.code_size
    assert before["codebooks"] >= index.codebooks.nbytes
    index.search(digits[:1], 1)
    after = index.memory_usage()
    assert 1000 <= after["derived"] - before["derived"] <= 2000
    assert after["tables"] > before["tables"]


def test_add_does_not_depend_on_blocks_or_threads(trained_dpq, digits, threads, monkeypatch):
    codes = set()
    for n_threads in (1, 2, 3):
        threads(n_threads)
        for block in (100, 1 << 16):
            monkeypatch.setattr("faiss_dpq.index.flat.ADD_BLOCK", block)
            index = trained_dpq.truncate(4)
            index.reset()
            index.add(digits[:333])
            index.add(digits[333:1000])
            codes.add(index.sa_encode(digits[:1000]).tobytes())
            codes.add(faiss.vector_to_array(index.codes).tobytes())
    assert len(codes) == 1


def test_beam_size_trades_time_for_accuracy(trained_dpq, digits):
    index = trained_dpq.truncate(4)

    def error():
        return ((index.sa_decode(index.sa_encode(digits)) - digits) ** 2).sum(1).mean()

    errors = []
    for index.beam_size in (1, 4, 32):
        errors.append(error())
    assert errors[0] > errors[1] > errors[2]
    assert index.beam_size == index.rq.max_beam_size == 32


def test_reset_then_reuse(trained_dpq, digits):
    index = trained_dpq.truncate(4)
    index.reset()
    assert index.ntotal == 0
    assert (index.search(digits[:2], 3)[1] == -1).all()
    index.add(digits[:5])
    assert set(index.search(digits[:1], 9)[1][0]) == {0, 1, 2, 3, 4, -1}


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copies(trained_dpq, digits, how):
    trained_dpq.levels = 2
    try:
        twin = how(trained_dpq)
        assert type(twin) is faiss_dpq.IndexDPQ
        assert (twin.levels, twin.beam_size, twin.train_stats) == (
            2,
            trained_dpq.beam_size,
            trained_dpq.train_stats,
        )
        np.testing.assert_array_equal(twin.search(digits[:9], 5), trained_dpq.search(digits[:9], 5))
        twin.add(digits[:1])
        assert (twin.ntotal, trained_dpq.ntotal) == (1001, 1000)
    finally:
        trained_dpq.levels = 4


def test_codebooks_is_a_copy(trained_dpq, digits):
    before = trained_dpq.search(digits[:3], 5)
    trained_dpq.codebooks[:] = 0
    np.testing.assert_array_equal(trained_dpq.search(digits[:3], 5), before)


def test_from_codebooks(digits):
    trained = faiss_dpq.IndexDPQ(64, 4, 4)
    trained.train(digits, effort="fast", shrinkage=1)  # codebooks alone do not tell of another
    trained.add(digits[:1000])
    index = faiss_dpq.IndexDPQ.from_codebooks(trained.codebooks.astype(np.float64))
    assert index.is_trained and index.ntotal == 0
    index.add(digits[:1000])
    np.testing.assert_array_equal(index.search(digits[:9], 5), trained.search(digits[:9], 5))
    np.testing.assert_array_equal(index.codebooks, trained.codebooks)


def test_prefix_weight_favours_the_prefixes_of_codes(digits):
    index = faiss_dpq.IndexDPQ(64, 4, 4)
    index.train(digits)
    by_default = index.sa_encode(digits)
    index.prefix_weight = 0
    plain = index.sa_encode(digits)
    index.prefix_weight = 0.5
    favoured = index.sa_encode(digits)

    def error(codes, levels):
        decoded = index.residual_quantizer.decode(_kernels.unpack_codes(codes, levels, 4))
        return ((decoded - digits) ** 2).sum(1).mean()

    assert error(favoured, 1) < error(by_default, 1) < error(plain, 1)
    assert error(favoured, 2) < error(by_default, 2) < error(plain, 2)
    assert error(plain, 4) < error(favoured, 4) < 1.2 * error(plain, 4)
    assert error(by_default, 4) < 1.01 * error(plain, 4)
    copies = (copy.deepcopy(index), pickle.loads(pickle.dumps(index)), faiss_dpq.clone_index(index), index.truncate(2))
    assert [other.prefix_weight for other in copies] == [0.5] * 4
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="prefix_weight"):
            index.prefix_weight = bad
    assert index.prefix_weight == 0.5


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_parallel_weight_ranks_unit_vectors_better_by_inner_products(digits, kind):
    x = digits / np.linalg.norm(digits, axis=1, keepdims=True)
    products = x @ x.T
    np.fill_diagonal(products, -1)
    nearest = products.argmax(1)
    index = faiss_dpq.IndexDPQ(64, 8, 4, faiss.METRIC_INNER_PRODUCT)
    if kind == "lists":
        index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatIP(64), 64, 4, 8, 4, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 4
    index.rq.cp.seed = 1
    index.prefix_weight = 0
    index.train(x, effort=training.Effort(0, 4, 256))  # it is the encoder that is looked at

    def found(index):
        index.reset()
        index.add(x)
        return (index.search(x, 10)[1] == nearest[:, None]).any(1).mean()

    by_default = found(index)
    index.parallel_weight = 0
    assert found(index) < by_default - 0.04


def test_parallel_weight_is_chosen_by_training_unless_set(digits, tmp_path):
    assert faiss_dpq.IndexDPQ(64, 4, 4).parallel_weight == 0
    index = faiss_dpq.IndexDPQ(64, 4, 4, faiss.METRIC_INNER_PRODUCT)
    assert index.parallel_weight == 1
    index.train(digits, effort="fast", parallel_weight=0.5)
    assert index.parallel_weight == index.train_stats.parallel_weight == 0.5
    index.train(digits / np.linalg.norm(digits, axis=1, keepdims=True), effort="fast")
    default = index.parallel_weight
    assert default == index.train_stats.parallel_weight > 0
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="parallel_weight"):
            index.parallel_weight = bad
    by_default = index.sa_encode(digits)
    index.parallel_weight = 0.25
    assert not np.array_equal(index.sa_encode(digits), by_default)
    copies = copy.deepcopy(index), pickle.loads(pickle.dumps(index)), faiss_dpq.clone_index(index), index.truncate(2)
    for other in copies:
        assert other.parallel_weight == 0.25
    faiss.write_index(index, str(tmp_path / "index"))
    other = faiss_dpq.read_index(tmp_path / "index")
    assert other.parallel_weight == default
    np.testing.assert_array_equal(other.sa_encode(digits), by_default)


def test_an_index_tells_what_it_is(digits):
    index = faiss_dpq.index_factory(64, "IDMap2,PCA16,IVF8,DPQ4x6")
    assert repr(index) == (
        "IndexIDMap2(d=64, IndexPreTransform(d=64, IndexIVFDPQ(d=16, nlist=8, M=4, nbits=6, metric=METRIC_L2, "
        "ntotal=0, not trained), ntotal=0, not trained), ntotal=0, not trained)"
    )
    index = faiss_dpq.IndexDPQ(64, 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(digits)
    index.add(digits[:10])
    assert str(index) == "IndexDPQ(d=64, M=2, nbits=4, metric=METRIC_INNER_PRODUCT, ntotal=10, trained)"
