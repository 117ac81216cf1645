"""Training of an IndexIVFDPQ, adding to it, and its coarse quantizers."""

import faiss
import naive
import numpy as np
import pytest
from ivf_model import Model, assert_finds, filled, probed, sa_codes, stored
from naive import normal

import faiss_dpq

# ---- training and adding --------------------------------------------------------------------------------------------


def test_training_is_of_residuals_and_deterministic(digits, trained_ivf):
    again = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(64), 64, 16, 4, 6)
    again.train(digits, effort="fast")
    np.testing.assert_array_equal(again.codebooks, trained_ivf.codebooks)
    codes = trained_ivf.sa_encode(digits)
    error = ((digits - trained_ivf.sa_decode(codes)) ** 2).sum(1).mean()
    np.testing.assert_allclose(error, trained_ivf.train_stats.mse[-1], rtol=0.05)
    peer = faiss.IndexIVFPQ(faiss.IndexFlatL2(64), 64, 16, 4, 6)
    peer.train(digits)
    assert error < 0.9 * ((digits - peer.sa_decode(peer.sa_encode(digits))) ** 2).sum(1).mean()


def test_coarse_training_is_as_in_faiss(digits):
    peer = faiss.IndexIVFFlat(faiss.IndexFlatL2(64), 64, 16)
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(64), 64, 16, 2, 4)
    for either in (peer, index):
        either.cp.niter, either.cp.seed = 3, 77
    peer.train(digits)
    index.train(digits, effort="fast")
    np.testing.assert_array_equal(index.quantizer.reconstruct_n(0, 16), peer.quantizer.reconstruct_n(0, 16))
    other = faiss_dpq.IndexIVFDPQ(peer.quantizer, 64, 16, 2, 4)
    other.train(digits, effort="fast")
    np.testing.assert_array_equal(other.codebooks, index.codebooks)


def test_weights_reach_the_training(digits):
    errors = []
    for weights in ([1e6, 1], [0, 1]):
        index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(64), 64, 4, 2, 6)
        index.train(digits, effort="fast", weights=weights)
        errors.append(index.train_stats.mse)
    assert errors[0][0] < errors[1][0] and errors[0][1] > errors[1][1]


def test_encoding_is_the_beam_search_of_residuals():
    rng = np.random.default_rng(6)
    index, _ = filled(rng, 0, 6, 5, 3, 4)
    index.beam_size = 3
    x = normal(rng, 30, 6)
    lists = index.quantizer.assign(x, 1)[:, 0]
    residuals = x - index.quantizer.reconstruct_n(0, 5)[lists]
    expected = np.array([naive.beam_search(index.codebooks, r, 3, index.prefix_weight) for r in residuals])
    np.testing.assert_array_equal(index.sa_encode(x), sa_codes(index, lists, expected))
    index.add(x)
    np.testing.assert_array_equal(index.sa_decode(index.sa_encode(x)), index.reconstruct_n(0, 30))


@pytest.mark.parametrize("blocks", [7, 1 << 16])
def test_add_in_blocks(monkeypatch, blocks):
    monkeypatch.setattr("faiss_dpq.index.ivf.ADD_BLOCK", blocks)
    rng = np.random.default_rng(7)
    index, _ = filled(rng, 0, 6, 5, 3, 4)
    x = normal(rng, 30, 6)
    index.add(x)
    index.add_with_ids(x, np.arange(100, 130))
    assert index.ntotal == 60
    index.nprobe = 5
    codes, ids = index.sa_encode(x), np.append(np.arange(30), np.arange(100, 130))
    model = Model()
    model.put(ids, np.tile(codes[:, 0], 2).astype(np.int64), np.tile(index.sa_decode(codes), (2, 1)))
    assert_finds(*index.search(x, 60), model, x, probed(index, x))


def test_vectors_without_a_list():
    rng = np.random.default_rng(8)
    index, _ = filled(rng, 0, 4, 3, 2, 4)
    x = normal(rng, 5, 4)
    x[2, 1] = np.nan
    index.nprobe = 3
    index.add(x)
    assert index.ntotal == 5
    assert set(index.search(x[:2], 9)[1][0].tolist()) == {0, 1, 3, 4, -1}
    assert (index.search(x[2:3], 4)[1] == -1).all()
    with pytest.raises(RuntimeError, match="NaN"):
        index.sa_encode(x)


# ---- coarse quantizers ----------------------------------------------------------------------------------------------


def coarse_quantizers(x):
    flat = faiss.IndexFlatL2(8)
    hnsw = faiss.IndexHNSWFlat(8, 8)
    ours = faiss_dpq.IndexDPQ(8, 2, 4)
    ours.train(x, effort="fast")
    residual = faiss.ResidualCoarseQuantizer(8, 5, 1)
    scalar = faiss.IndexScalarQuantizer(8, faiss.ScalarQuantizer.QT_8bit)
    return {"flat": flat, "hnsw": hnsw, "dpq": ours, "residual": residual, "scalar": scalar}


@pytest.mark.parametrize("name", ["flat", "hnsw", "dpq", "residual", "scalar"])
def test_any_coarse_quantizer(name):
    rng = np.random.default_rng(12)
    x = normal(rng, 1500, 8)
    coarse = coarse_quantizers(x)[name]
    index = faiss_dpq.IndexIVFDPQ(coarse, 8, 32, 3, 5)
    if name == "residual":
        index.quantizer_trains_alone = 1
    index.train(x, effort="fast")
    index.add(x)
    index.nprobe = 4
    xq = normal(rng, 20, 8)
    centres, now = coarse.reconstruct_n(0, 32), stored(index)
    model = Model()
    lists = {}
    for number in range(32):
        n = index.invlists.list_size(number)
        lists |= dict.fromkeys(faiss.rev_swig_ptr(index.invlists.get_ids(number), n).tolist() if n else [], number)
    ids = np.array(sorted(now))
    model.put(ids, np.array([lists[i] for i in ids]), np.stack([now[i] for i in ids]))
    _, keys = coarse.search(xq, 4)
    assert_finds(*index.search(xq, 10), model, xq, keys)
    residual_norms = [np.linalg.norm(now[i] - centres[lists[i]]) for i in ids]
    assert max(residual_norms) > 0
    read = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
    assert isinstance(read, faiss_dpq.IndexIVFDPQ)
    assert isinstance(read._coarse_quantizer, type(coarse))
    assert_finds(*read.search(xq, 10), model, xq, keys)


def test_quantizer_params_reach_the_coarse_quantizer():
    rng = np.random.default_rng(13)
    index, model = filled(rng, 400, 6, 8, 3, 4)
    params = faiss.SearchParametersIVF(
        nprobe=8, quantizer_params=faiss.SearchParameters(sel=faiss.IDSelectorRange(2, 4))
    )
    xq = normal(rng, 3, 6)
    D, I = index.search(xq, 400, params=params)
    assert_finds(D, I, model, xq, np.tile([2, 3], (3, 1)))


def test_without_residual():
    rng = np.random.default_rng(14)
    index, _ = filled(rng, 0, 6, 5, 3, 6)
    index.by_residual = False
    x = normal(rng, 500, 6)
    index.add(x)
    stock = faiss.deserialize_index(faiss.serialize_index(index))
    index.nprobe = stock.nprobe = 3
    D, I = index.search(x[:20], 5)
    np.testing.assert_allclose(D, stock.search(x[:20], 5)[0], rtol=1e-4, atol=1e-4)
    decoded = naive.decode(index.codebooks, _codes_of(index, x))
    np.testing.assert_allclose(D, ((x[:20, None] - decoded[I]) ** 2).sum(2), rtol=1e-4, atol=1e-4)


def _codes_of(index, x):
    packed = index.sa_encode(x)[:, index.coarse_code_size() :]
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : 3 * 6].reshape(len(x), 3, 6)
    return bits.astype(np.int64) @ (1 << np.arange(6))
