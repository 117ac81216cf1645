"""Long codes are chosen by products of 16-bit numbers: those of vectors and codewords that are rounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faiss_dpq import _kernels
from faiss_dpq.codec import ProgressiveQuantizer
from faiss_dpq.codec.encoder import _NOT_ALONG, _by_tables
from faiss_dpq.codec.levels import Levels
from faiss_dpq.training import train_codebooks

LENGTH = _kernels.ROUNDED_LENGTH


def first_codes(levels, x):
    codes = np.empty((len(x), levels.M), np.uint16)
    _by_tables(levels, x, _NOT_ALONG, 4, 0.0, codes)
    return codes


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 200) | st.just(3000),
    K=st.sampled_from([16, 32, 128]),
    unused=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_the_nearest_codeword_is_found_by_whole_numbers(simd, n, d, K, unused, seed):
    rng = np.random.default_rng(seed)
    codewords, x = rng.standard_normal((1, K, d)).astype(np.float32), rng.standard_normal((n, d)).astype(np.float32)
    codewords[:, :, max(1, d - unused) :] = 0  # as where a block's dimensions are no multiple of 16
    levels = Levels(codewords, may_round=True)
    assert levels.encodes_rounded and levels.rounded_panels.shape[1] == -(-max(1, d - unused) // 2)
    unit = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) / LENGTH
    whole, own_unit = np.rint(x / unit), levels.units[0]
    scores = np.square(codewords[0].astype(np.float64)).sum(1) - 2 * unit * own_unit * (
        whole @ np.rint(codewords[0].astype(np.float64) / own_unit).T
    )
    chosen = np.take_along_axis(scores, first_codes(levels, x).astype(np.int64), 1)[:, 0]
    # float32 rounds scores, and x / unit where it is half a number.
    np.testing.assert_allclose(chosen, scores.min(1), atol=2e-5 * np.abs(scores).max())


def test_no_sum_of_products_leaves_32_bits(simd):
    for d in (1, 2, 7, 3000):
        for direction in (np.ones(d), np.eye(d)[0], np.where(np.arange(d) % 2, 1, -1)):
            codewords = np.linspace(-1, 1, 16)[None, :, None] * direction
            x = np.outer([-1, 1, 1e20, -1e-20], direction)
            codes = first_codes(Levels(codewords.astype(np.float32), may_round=True), x.astype(np.float32))
            assert codes[:, 0].tolist()[:3] == [0, 15, 15] and codes[3, 0] in (7, 8)


def test_any_vector_gets_a_code(simd):
    x = np.zeros((7, 9), np.float32)
    x[1, 3], x[2, 8], x[3], x[4, 0], x[5] = np.nan, -np.inf, 3e38, 1e-45, np.nan
    codes = first_codes(Levels(np.random.default_rng(0).standard_normal((3, 16, 9)).astype(np.float32), True), x)
    assert (codes < 16).all()


def test_all_instruction_sets_choose_the_same_codes():
    rng = np.random.default_rng(0)
    levels = Levels(rng.standard_normal((5, 32, 77)).astype(np.float32), may_round=True)
    x, codes = rng.standard_normal((1500, 77)).astype(np.float32), []
    before = _kernels.simd_level()
    try:
        for level in _kernels.available_simd_levels():
            _kernels.set_simd_level(level)
            codes.append(first_codes(levels, x))
    finally:
        _kernels.set_simd_level(before)
    assert all((others == codes[0]).all() for others in codes)


@pytest.mark.parametrize(
    "K, lengths, rounded", [(32, 1, True), (8, 1, False), (32, 1e-3, False), (32, 0, False), (32, 1e20, False)]
)
def test_short_codewords_beside_long_ones_are_not_rounded(K, lengths, rounded):
    codewords = np.random.default_rng(0).standard_normal((3, K, 9)).astype(np.float32)
    codewords[1] *= np.float32(lengths)
    assert Levels(codewords, may_round=True).encodes_rounded is rounded
    assert not Levels(codewords).encodes_rounded


@pytest.mark.parametrize("between", [0, 10, 1000])
def test_clusters_far_apart_are_coded_as_well_as_by_floats(between, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 40)) * np.geomspace(1, 0.05, 40)
    x += (between * rng.standard_normal((5, 40)))[rng.integers(0, 5, 4000)]
    x = x.astype(np.float32)
    codebooks = train_codebooks(x[:3000], 24, 6, effort="fast")[0]
    assert ProgressiveQuantizer(codebooks).layout.n_blocks

    def error():
        quantizer = ProgressiveQuantizer(codebooks)
        return np.square((quantizer.decode(quantizer.encode(x, 6)) - x).astype(np.float64)).sum(1).mean()

    by_rounding = error()
    monkeypatch.setattr(Levels, "encodes_rounded", False)
    assert by_rounding <= 1.001 * error()
