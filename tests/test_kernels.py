"""Every kernel equals its naive reference, for every instruction set that the machine has."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faiss_dpq import _kernels
from faiss_dpq.codec import ProgressiveQuantizer, centre_of, encoder
from faiss_dpq.codec import levels as levels_module

shapes = st.fixed_dictionaries(
    {
        "M": st.integers(1, 9),
        "nbits": st.integers(1, 6),
        "d": st.integers(1, 40),
        "n": st.integers(1, 60),
        "seed": st.integers(0, 1000),
    }
)


@given(
    n=st.integers(0, 30),
    d=st.integers(1, 40),
    rows=st.integers(1, 70),
    scale=st.sampled_from([1.0, -2.0]),
    seed=st.integers(0, 1000),
)
def test_linear_is_the_affine_product(simd, n, d, rows, scale, seed):
    rng = np.random.default_rng(seed)
    x, matrix = (rng.standard_normal((m, d)).astype(np.float32) for m in (n, rows))
    panels = _kernels.pack_panels(matrix)
    width = panels.shape[0] * _kernels.PANEL
    bias = rng.standard_normal(width).astype(np.float32)
    out = np.full((n, width + 3), np.nan, np.float32)
    _kernels.linear(x, panels, bias, scale, out)
    expected = bias[:rows] + scale * (x.astype(np.float64) @ matrix.T)
    np.testing.assert_allclose(out[:, :rows], expected, atol=1e-4)
    assert np.isnan(out[:, width:]).all()


@given(
    n=st.integers(2, 40),
    cut=st.integers(1, 39),
    d=st.integers(1, 150) | st.just(3000),  # so many: several blocks of rows
    n_panels=st.integers(1, 12),
    panel_cut=st.integers(1, 11),
    seed=st.integers(0, 1000),
)
def test_linear_does_not_depend_on_blocks(simd, n, cut, d, n_panels, panel_cut, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d), np.float32)
    panels = _kernels.pack_panels(rng.standard_normal((n_panels * _kernels.PANEL, d), np.float32))
    bias = rng.standard_normal(len(panels) * _kernels.PANEL, np.float32)
    whole, parts = (np.full((n, len(bias)), np.nan, np.float32) for _ in range(2))
    _kernels.linear(x, panels, bias, -2.0, whole)
    for some in (slice(0, panel_cut), slice(panel_cut, n_panels)):
        columns = slice(some.start * _kernels.PANEL, some.stop * _kernels.PANEL)
        for rows in (slice(0, cut), slice(cut, n)):
            out = np.empty_like(parts[rows, columns])
            if out.size:
                _kernels.linear(x[rows], panels[some], bias[columns], -2.0, out)
            parts[rows, columns] = out
    np.testing.assert_array_equal(whole, parts)


@given(nbits=st.integers(1, 12), M=st.integers(1, 9), n=st.integers(0, 20), seed=st.integers(0, 1000))
def test_codes_are_packed_as_faiss_packs_them(nbits, M, n, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << nbits, (n, M)).astype(np.uint16)
    packed = _kernels.pack_codes(codes, nbits)
    np.testing.assert_array_equal(packed, naive.pack(codes, nbits))
    for levels in (1, M):
        np.testing.assert_array_equal(_kernels.unpack_codes(packed, levels, nbits), codes[:, :levels])


@given(shape=shapes, offset=st.sampled_from([0.0, 100.0]), inner_product=st.booleans())
def test_tables_and_cross_terms_give_the_distance(simd, shape, offset, inner_product):
    rng = np.random.default_rng(shape["seed"])
    K = 1 << shape["nbits"]
    quantizer = ProgressiveQuantizer(naive.random_codebooks(rng, shape["M"], K, shape["d"], offset))
    codes = rng.integers(0, K, (shape["n"], shape["M"])).astype(np.uint16)
    xq = (offset + rng.standard_normal((3, shape["d"]))).astype(np.float32)
    levels = int(rng.integers(1, shape["M"] + 1))
    codes = codes[:, :levels]
    tables, constants, _ = quantizer.tables(xq, levels, metric=0 if inner_product else 1)
    total = constants[:, None] + sum(tables[:, l * K + codes[:, l]] for l in range(levels))
    x = naive.decode(quantizer.codebooks, codes)
    if inner_product:
        np.testing.assert_allclose(-total, xq @ x.T, rtol=1e-5, atol=1e-4)
    else:
        total += quantizer.cross_terms(codes)
        expected = ((xq[:, None].astype(np.float64) - x) ** 2).sum(2)
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def errors(codebooks, x, codes):
    return ((x - naive.decode(codebooks, codes)) ** 2).sum(1)


@given(
    shape=shapes,
    beam_size=st.integers(1, 12),
    by_tables=st.booleans(),
    prefix_weight=st.sampled_from([0, 0.1, 2]),
    parallel_weight=st.sampled_from([0, 0.5, 4]),
    offset=st.sampled_from([0.0, 30.0]),
    residual=st.booleans(),
)
def test_encode_is_beam_search(
    simd, shape, beam_size, by_tables, prefix_weight, parallel_weight, offset, residual, monkeypatch
):
    monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", (1 << 40) if by_tables else -1)
    rng = np.random.default_rng(shape["seed"])
    codebooks = naive.random_codebooks(rng, shape["M"], 1 << shape["nbits"], shape["d"], offset)
    x = (offset + rng.standard_normal((shape["n"], shape["d"]))).astype(np.float32)
    x[::7] = 0
    whole = x[::-1].copy() if residual else None
    codes = ProgressiveQuantizer(codebooks).encode(x, beam_size, prefix_weight, parallel_weight, whole=whole)
    expected = np.array(
        [
            naive.beam_search(codebooks, v, beam_size, prefix_weight, parallel_weight, of)
            for v, of in zip(x, x - centre_of(codebooks[0]) if whole is None else whole, strict=True)
        ]
    )
    # Rounding may choose the other of two codewords that are equally near, and so another path.
    same = (codes == expected).all(1)
    assert same.sum() >= 0.9 * len(x) - 1
    np.testing.assert_allclose(errors(codebooks, x, codes)[same], errors(codebooks, x, expected)[same])


@given(seed=st.integers(0, 1000), nbits=st.integers(2, 7), beam_size=st.integers(1, 70), span=st.sampled_from([1, 30]))
def test_of_equal_prefixes_the_first_are_kept(simd, seed, nbits, beam_size, span):
    # Numbers so small that float32 holds all sums of them; every codeword has its opposite, so that they stay centred.
    rng = np.random.default_rng(seed)
    half = rng.integers(-span, span + 1, (3, 1 << (nbits - 1), 3))
    codebooks = np.concatenate([half, -half], axis=1)
    x = rng.integers(-2 * span, 2 * span + 1, (9, 3))
    codes = ProgressiveQuantizer(codebooks.astype(np.float32)).encode(x.astype(np.float32), beam_size)
    for vector, code in zip(x, codes, strict=True):
        prefixes, left = np.zeros((1, 0), int), vector[None]
        for level, codewords in enumerate(codebooks):
            longer = left[:, None] - codewords
            order = np.argsort((longer**2).sum(-1), axis=None, kind="stable")
            parent, k = np.divmod(np.sort(order[: 1 if level == 2 else beam_size]), len(codewords))
            prefixes, left = np.column_stack([prefixes[parent], k]), longer[parent, k]
        np.testing.assert_array_equal(code, prefixes[0])


@pytest.mark.parametrize("beam_size", [1, 5, 40])
def test_a_code_does_not_depend_on_the_vectors_encoded_before(simd, beam_size):
    # The encoder guesses from earlier vectors how good the best prefixes will be: here it is misled both ways.
    rng = np.random.default_rng(5)
    codebooks = naive.random_codebooks(rng, 4, 256, 12)
    codebooks[1, 128:] = codebooks[1, :128]  # ties
    x = rng.standard_normal((120, 12)).astype(np.float32)
    x[20:40] *= 100
    x[60:90] *= np.float32(0.01)
    x[100] = np.nan
    quantizer = ProgressiveQuantizer(codebooks)
    together = quantizer.encode(x, beam_size)
    np.testing.assert_array_equal(together, np.concatenate([quantizer.encode(v[None], beam_size) for v in x]))


@pytest.mark.parametrize("by_tables", [True, False])
def test_errors_along_a_vector_count_for_more(simd, by_tables, digits, monkeypatch):
    monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", (1 << 40) if by_tables else -1)
    codebooks = naive.random_codebooks(np.random.default_rng(0), 4, 16, 64) + digits.mean(0) / 4
    quantizer = ProgressiveQuantizer(codebooks).shrunk(0.9)
    x = digits[:300]

    def parallel_and_all(weight):
        error = (
            encoder.centred_and_shrunk(quantizer, x)
            + quantizer.centre
            - quantizer.decode(quantizer.encode(x, 8, 0, weight))
        )
        from_centre = x - quantizer.centre
        along = (from_centre * error).sum(1) / np.linalg.norm(from_centre, axis=1)
        return (along**2).mean(), (error**2).sum(1).mean()

    by_weight = np.array([parallel_and_all(weight) for weight in (0, 1, 10)])
    assert (np.diff(by_weight[:, 0]) < 0).all()
    assert (np.diff(by_weight[:, 1]) > 0).all()
    assert by_weight.sum(1).argmin() == 1


def test_encode_far_from_the_origin_is_as_good(simd, digits):
    codebooks = naive.random_codebooks(np.random.default_rng(0), 4, 16, 64) + digits.mean(0) / 4
    offset = np.zeros_like(codebooks)
    offset[0] = 1000
    x = digits[:300]
    near = ProgressiveQuantizer(codebooks).encode(x)
    far = ProgressiveQuantizer(codebooks + offset).encode(x + np.float32(1000))
    assert (near == far).all(1).mean() > 0.98


@pytest.mark.parametrize("beam_size", [1, 5])
def test_encode_gives_valid_codes_for_nan_and_overflow(simd, beam_size):
    quantizer = ProgressiveQuantizer(naive.random_codebooks(np.random.default_rng(0), 3, 16, 8))
    x = np.full((4, 8), np.nan, np.float32)
    x[1] = np.inf
    x[2] = np.finfo(np.float32).max
    assert quantizer.encode(x, beam_size).max() < 16


def constants_of(norms, inner_product):
    """What distances have beyond the sums: the squared norms of the queries, or something."""
    return np.full_like(norms, 0.25) if inner_product else norms


def scan(
    tables, norms, inner_product, packed, nbits, levels, cross, terms, allowed, first_id, k, error=1e-3, n_threads=1
):
    """_kernels.scan, with bins and radius made as DerivedCodes makes them, and the counters of this call."""
    n = len(packed)
    view = _kernels.CodeView(packed, nbits, levels, None, radius=scan.radius)
    if cross is not None and levels > 1 and n:
        bins = np.empty(n, np.uint8)
        grid = _kernels.term_grid(*_kernels.term_range(_kernels.CodeView(packed, nbits, levels, cross, terms)))
        view = _kernels.CodeView(packed, nbits, levels, cross, terms, bins, *grid, scan.radius)
        _kernels.term_bins(view, bins)
    if allowed is not None:
        view = view.masked(naive.mask(allowed))
    constants, errors = constants_of(norms, inner_product), np.full(len(tables), error, np.float32)
    queries = _kernels.QueryBlock(tables, constants, norms, errors, inner_product)
    D, I = np.empty((len(tables), k), np.float32), np.empty((len(tables), k), np.int64)
    _kernels.reset_counters()
    _kernels.scan(view, queries, D, I, n_threads, first_id)
    return D, I, _kernels.counters()


@given(
    shape=shapes,
    k=st.integers(1, 300),
    nq=st.integers(1, 140),
    kind=st.sampled_from(["no terms", "cross", "given terms"]),
    restricted=st.booleans(),
    n_threads=st.integers(1, 3),
)
def test_scan_is_the_plain_loop_bit_for_bit(simd, shape, k, nq, kind, restricted, n_threads):
    rng = np.random.default_rng(shape["seed"])
    K, M, n = 1 << shape["nbits"], shape["M"], shape["n"]
    codes = rng.integers(0, K, (n, M)).astype(np.uint16)
    levels = int(rng.integers(1, M + 1))
    # Few distinct values: ties are common, and go to the lower id.
    tables = rng.integers(-2, 3, (nq, levels * K)).astype(np.float32)
    cross = rng.integers(-1, 2, (M * (M - 1) // 2, K, K)).astype(np.float32) if kind != "no terms" else None
    given_terms = rng.integers(-1, 2, n).astype(np.float32) if kind == "given terms" else None
    terms = np.zeros(n, np.float32)
    if kind == "cross":
        _kernels.cross_terms(np.ascontiguousarray(codes[:, :levels]), levels, cross, terms)
    elif kind == "given terms" and levels > 1:
        terms = given_terms
    mask = rng.integers(0, 2, n).astype(bool) if restricted else np.ones(n, bool)
    members = np.flatnonzero(mask)
    scan.radius = 100.0
    D, I, _ = scan(
        tables,
        np.full(nq, 50, np.float32),
        False,
        _kernels.pack_codes(codes, shape["nbits"]),
        shape["nbits"],
        levels,
        cross,
        given_terms,
        mask if restricted else None,
        1000,
        k,
        n_threads=n_threads,
    )
    expected = naive.scan(tables, np.full(nq, 50, np.float32), terms[members], codes[members, :levels], members, k, K)
    found = expected[1] >= 0
    np.testing.assert_array_equal(I, np.where(found, expected[1] + 1000, -1))
    np.testing.assert_array_equal(D[found], expected[0][found])
    assert np.isinf(D[~found]).all()


def scanned_and_expected(quantizer, codes, levels, metric, xq, ks, n_threads):
    """For every k what _kernels.scan finds and says it did, and what the plain loop finds."""
    inner_product = metric == "inner product"
    packed = _kernels.pack_codes(codes, quantizer.nbits)
    tables, _, norms = quantizer.tables(xq, levels, 0 if inner_product else 1)
    error = quantizer.table_errors(norms, levels).max()
    cross = None if inner_product else quantizer.cross_tables
    terms = np.zeros(len(codes), np.float32) if inner_product else quantizer.cross_terms(codes[:, :levels])
    scan.radius = _kernels.radius(
        _kernels.CodeView(packed, quantizer.nbits, levels, quantizer.cross_tables), quantizer.codeword_norms, 1e-3
    )
    constants, members = constants_of(norms, inner_product), np.arange(len(codes))
    D, I = naive.scan(tables, constants, terms, codes[:, :levels], members, max(ks), quantizer.K, inner_product)
    code = packed, quantizer.nbits, levels, cross
    for k in ks:
        found = scan(tables, norms, inner_product, *code, None, None, 0, k, error, n_threads)
        yield found, (D[:, :k], I[:, :k])


@pytest.mark.parametrize(
    "nbits, M, levels", [(8, 4, 4), (8, 8, 8), (8, 8, 2), (8, 5, 3), (4, 8, 8), (4, 7, 5), (6, 4, 4)]
)
@pytest.mark.parametrize("metric", ["L2", "inner product"])
@pytest.mark.parametrize("data", ["spread", "duplicates", "far from the centre"])
def test_byte_bounds_lose_no_neighbour(simd, nbits, M, levels, metric, data):
    """Large enough for the byte scans, whose bounds must hold for every geometry."""
    rng = np.random.default_rng(0)
    n, d, K = 20_000, 12, 1 << nbits
    codebooks = naive.random_codebooks(rng, M, K, d)
    if data == "far from the centre":
        codebooks[1:] += 3  # later levels are not centred
    codes = rng.integers(0, 3 if data == "duplicates" else K, (n, M)).astype(np.uint16)
    quantizer = ProgressiveQuantizer(codebooks)
    xq = (3 * rng.standard_normal((70, d))).astype(np.float32)
    for nq, n_threads in ((1, 3), (70, 1)):
        scans = scanned_and_expected(quantizer, codes, levels, metric, xq[:nq], (1, 10, 200), n_threads)
        for (D, I, counts), expected in scans:
            np.testing.assert_array_equal(D, expected[0])
            np.testing.assert_array_equal(I, expected[1])
            in_float = nq == 1 and (nbits == 6 or simd == "generic")
            assert counts["bounded"] or in_float or data == "duplicates"


@pytest.mark.parametrize("k", [1, 33, 700, 1300])  # the latter two: more than fill a sample's buckets, or a sample
@pytest.mark.parametrize("allowed", ["all", "the far half", "few"])
def test_sampled_thresholds_lose_no_neighbour(simd, k, allowed):
    """First thresholds come from as many allowed vectors as are looked for."""
    rng = np.random.default_rng(k)
    n, d, M, K = 20_000, 12, 4, 256
    quantizer = ProgressiveQuantizer(naive.random_codebooks(rng, M, K, d))
    codes = rng.integers(0, K, (n, M)).astype(np.uint16)
    packed = _kernels.pack_codes(codes, 8)
    xq = (2 + rng.standard_normal((40, d))).astype(np.float32)
    tables, _, norms = quantizer.tables(xq, M)
    errors = quantizer.table_errors(norms, M)
    terms = quantizer.cross_terms(codes)
    from_all = ((quantizer.decode(codes) - 2) ** 2).sum(1)
    mask = {"all": from_all >= 0, "the far half": from_all > np.median(from_all), "few": rng.random(n) < 0.01}[allowed]
    members = np.flatnonzero(mask)
    scan.radius = _kernels.radius(
        _kernels.CodeView(packed, 8, M, quantizer.cross_tables), quantizer.codeword_norms, 1e-3
    )
    D, I, _ = scan(tables, norms, False, packed, 8, M, quantizer.cross_tables, None, mask, 0, k, errors.max())
    expected = naive.scan(tables, norms, terms[members], codes[members], members, k, K)
    found = expected[1] >= 0
    np.testing.assert_array_equal(I, expected[1])
    np.testing.assert_array_equal(D[found], expected[0][found])


@pytest.mark.parametrize(("nbits", "M"), [(8, 4), (8, 5), (8, 8), (8, 16), (8, 17), (4, 8), (4, 11), (4, 16), (4, 20)])
def test_one_query_of_every_number_of_levels(simd, nbits, M):
    """Codes are read in one way or another by their size, and by how much of them is wanted."""
    rng = np.random.default_rng(0)
    quantizer = ProgressiveQuantizer(naive.random_codebooks(rng, M, 1 << nbits, 12))
    codes = rng.integers(0, 1 << nbits, (9001, M)).astype(np.uint16)
    xq = 3 * rng.standard_normal((1, 12)).astype(np.float32)
    for levels in range(1, M + 1):
        [((D, I, counts), expected)] = scanned_and_expected(quantizer, codes, levels, "L2", xq, [20], 1)
        np.testing.assert_array_equal(D, expected[0])
        np.testing.assert_array_equal(I, expected[1])
        assert counts["bounded"] or simd == "generic" or levels > _kernels.FEW_LEVELS  # many, but no columns


def test_a_wrong_instruction_set_is_refused():
    before = _kernels.simd_level()
    with pytest.raises(ValueError, match=r"FAISS_DPQ_SIMD: .* 'sse9'; it has generic"):
        _kernels.set_simd_level("sse9")
    assert _kernels.simd_level() == before
