"""Codes of more than 16 levels, whose last levels lie in blocks of dimensions."""

import copy
import pickle
import warnings

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.codec import Layout, ProgressiveQuantizer, encoder
from faiss_dpq.codec.layout import of_codebooks
from faiss_dpq.training import Ranking, alternation, blocks, train_codebooks


def structured_codebooks(rng, layout, smallest=1e-4, offset=0.0):
    """Random codebooks of a layout; the blocks' axes have standard deviations from 1 to `smallest`."""
    d, K = layout.d, 1 << layout.nbits
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    deviations = np.geomspace(1, smallest, d)[rng.permutation(d)]
    axes = np.array_split(np.arange(d), max(1, layout.n_blocks))
    codebooks = np.empty((layout.M, K, d))
    for level, block in enumerate(layout.blocks):
        own = axes[block - 1] if block else np.arange(d)
        codebooks[level] = 0.9**level * (rng.standard_normal((K, len(own))) * deviations[own]) @ turn[own]
    codebooks[0] += offset
    return codebooks.astype(np.float32)


layouts = st.sampled_from(
    [(24, 20, 6, 12, 2), (40, 33, 6, 3, 5), (16, 17, 6, 1, 4), (64, 24, 6, 0, 6), (96, 48, 6, 12, 6)]
)


@given(shape=layouts, seed=st.integers(0, 99), offset=st.sampled_from([0.0, 10.0]))
@settings(max_examples=20)
def test_a_layout_is_found_in_its_codebooks(shape, seed, offset):
    layout = Layout.of_shape(*shape)
    offset = offset if layout.n_global else 0.0
    quantizer = ProgressiveQuantizer(structured_codebooks(np.random.default_rng(seed), layout, offset=offset))
    assert quantizer.layout == layout
    prefix = ProgressiveQuantizer(quantizer.codebooks[:-1])
    assert prefix.layout.blocks == (layout.blocks[:-1] if layout.M > 17 else (0,) * 16)


def test_other_codebooks_have_no_blocks():
    rng = np.random.default_rng(0)
    assert ProgressiveQuantizer(rng.standard_normal((20, 64, 24))).compact is None
    assert ProgressiveQuantizer(np.zeros((20, 64, 24))).compact is None
    layout = Layout.of_shape(24, 20, 6, 12, 2)
    codebooks = structured_codebooks(rng, layout)
    for level, codeword in [(12, 0), (15, 3), (17, 63), (19, 30)]:  # any single one, a little outside of its block
        other = codebooks.copy()
        other[level, codeword] += np.float32(1e-3) * rng.standard_normal(24).astype(np.float32)
        assert of_codebooks(other)[0].blocks != layout.blocks


@pytest.mark.parametrize("d", [1, 6])
def test_a_level_of_which_few_codewords_are_not_zero_is_no_block_by_itself(d):
    """Training on hardly more vectors than codewords leaves such levels, and few codewords are looked at."""
    codebooks = np.random.default_rng(0).standard_normal((32, 256, d)).astype(np.float32)
    codebooks[-2:] = 0
    codebooks[-1, 5] = codebooks[-2, 77] = 0.25
    assert of_codebooks(codebooks)[0] == Layout.full(d, 32, 8)


def test_bases_of_a_layout_span_its_codewords_where_few_rows_are_looked_at_first():
    """Most codewords lie in half of their block's dimensions."""
    rng = np.random.default_rng(1)
    layout = Layout.of_shape(96, 28, 8, 12, 2)
    codebooks = structured_codebooks(rng, layout, smallest=0.1)
    for block in (1, 2):
        levels = layout.levels_of(block)
        narrow = codebooks[levels[0], :24]
        for level in levels[1:]:
            factors = rng.standard_normal((256, 24)).astype(np.float32)
            factors[255] = 0
            codebooks[level] = factors @ narrow
    found, bases = of_codebooks(codebooks)
    assert found == layout
    assert [len(basis) for basis in bases] == [48, 48]
    np.testing.assert_allclose(np.concatenate(bases) @ np.concatenate(bases).T, np.eye(96), atol=1e-10)


@pytest.mark.parametrize("M", [17, 18, 24, 32, 48, 64, 96, 192, 254, 1024])
def test_default_layouts(M):
    for d in (1, 2, 3, 50, 384, 1536):
        for n in (None, 256, 300, 2000, 20_000, 10**7):
            layout = Layout.default(d, M, 8, n)
            assert layout.n_blocks <= d
            assert layout.n_blocks == 0 or layout.n_global <= 20
            if n is not None and layout.n_blocks:
                assert layout.n_global * 512 <= n
    for d, M, n_global, n_blocks in [(784, 32, 8, 6), (384, 48, 8, 10), (384, 64, 8, 14), (1536, 96, 8, 22)]:
        layout = Layout.default(d, M, 8)
        assert (layout.n_global, layout.n_blocks) == (n_global, n_blocks)
    assert Layout.default(384, 16, 8).n_blocks == 0


@pytest.mark.parametrize(
    "blocks, message",
    [
        ((0,) * 3, "expected M=4"),
        ((0, 1, 0, 2), "before all others"),
        ((0, 1, 3, 3), "every number"),
        ((1, 2, 3, 3), "d=2"),
    ],
)
def test_layouts_that_cannot_be(blocks, message):
    with pytest.raises(ValueError, match=message):
        Layout(2, 4, 8, blocks)


@given(shape=layouts, seed=st.integers(0, 99), inner_product=st.booleans(), cut=st.booleans())
@settings(max_examples=20)
def test_distances_of_codes_with_blocks_are_those_of_their_reconstructions(simd, shape, seed, inner_product, cut):
    rng = np.random.default_rng(seed)
    layout = Layout.of_shape(*shape)
    quantizer = ProgressiveQuantizer(structured_codebooks(rng, layout, smallest=0.05))
    levels, K = layout.M - 2 * cut, 1 << layout.nbits
    codes = rng.integers(0, K, (40, levels)).astype(np.uint16)
    xq = rng.standard_normal((5, layout.d)).astype(np.float32)
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    tables, constants, _ = quantizer.tables(xq, levels, metric)
    total = constants[:, None].astype(np.float64)
    for level in range(levels):
        total = total + tables[:, level * K + codes[:, level].astype(int)]
    x = naive.decode(quantizer.codebooks, codes)
    if inner_product:
        np.testing.assert_allclose(-total, xq @ x.T, rtol=1e-4, atol=1e-3)
    else:
        total += quantizer.cross_terms(codes)
        np.testing.assert_allclose(total, ((xq[:, None].astype(np.float64) - x) ** 2).sum(2), rtol=1e-4, atol=1e-3)
        lengths = np.sqrt(((x - quantizer.centre) ** 2).sum(1))
        assert lengths.max() <= quantizer.longest(codes) <= lengths.max() * 1.01


def test_terms_are_the_same_in_every_instruction_set():
    rng = np.random.default_rng(0)
    quantizer = ProgressiveQuantizer(structured_codebooks(rng, Layout.of_shape(96, 48, 6, 12, 6)))
    codes = rng.integers(0, 64, (500, 48)).astype(np.uint16)
    before, terms = _kernels.simd_level(), []
    for name in _kernels.available_simd_levels():
        _kernels.set_simd_level(name)
        terms.append(quantizer.cross_terms(codes))
    _kernels.set_simd_level(before)
    for other in terms[1:]:
        np.testing.assert_array_equal(other, terms[0])


def by_stages(quantizer, x, beam):
    """Codes of one vector in float64: a beam search of the global levels, then one of each block."""
    layout = quantizer.layout
    codes = np.zeros(layout.M, int)
    rest = x.astype(np.float64)
    for block in range(layout.n_blocks + 1):
        levels = layout.levels_of(block)
        if levels:
            codes[levels] = naive.beam_search(quantizer.codebooks[levels], rest, beam)
            rest = rest - sum(quantizer.codebooks[level][codes[level]] for level in levels)
    return codes


def test_encoding_is_a_beam_search_of_each_part(simd):
    rng = np.random.default_rng(3)
    quantizer = ProgressiveQuantizer(structured_codebooks(rng, Layout.of_shape(24, 20, 6, 12, 2), smallest=0.1))
    x = rng.standard_normal((60, 24)).astype(np.float32)
    codes = quantizer.encode(x, 4)
    expected = np.array([by_stages(quantizer, v, 4) for v in x])
    assert (codes == expected).all(1).mean() > 0.9  # rounding may choose the other of two that are equally near
    np.testing.assert_array_equal(codes, np.concatenate([quantizer.encode(v[None], 4) for v in x]))


@pytest.fixture(scope="module")
def vectors():
    """Unit vectors whose variances fall: 4,000 to learn from, 1,000 to search."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5000, 40)) * np.geomspace(1, 0.1, 40) @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    return np.split((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), [4000])


@pytest.fixture(scope="module")
def trained(vectors):
    index = faiss_dpq.IndexDPQ(40, 24, 6)
    index.train(vectors[0], effort="fast")
    index.add(vectors[0][:1500])
    return index


@pytest.mark.parametrize("behind, chosen", [(0.7, 4.0), (1.9, 4.0), (2.2, 2.0)])
def test_a_weight_may_be_two_standard_errors_behind_in_blocks(trained, vectors, monkeypatch, behind, chosen):
    """Training vectors see less gain in a weight than others do."""
    gain = np.tile([1.0, -1.0], 512)  # of a weight of 2 over one of 4, for each query; its mean is made `behind` errors
    ranks = {4.0: 0 * gain, 2.0: gain + behind * gain.std() / np.sqrt(len(gain)), 0.0: 0 * gain - 9}
    monkeypatch.setattr(Ranking, "_reciprocal_ranks", lambda self, quantizer, w, *_: ranks[w][None])
    ranking = Ranking(vectors[0], faiss.METRIC_L2, 4, 1)
    assert ranking.choice(trained.residual_quantizer, 1.0, None)[1] == chosen


def test_errors_along_vectors_are_alike_with_a_weight(simd, trained, vectors):
    quantizer, x = trained.residual_quantizer, vectors[1]
    from_centre = x - quantizer.centre

    def along(**weights):
        error = (
            quantizer.centre + from_centre * quantizer.shrinkage - quantizer.decode(quantizer.encode(x, 6, **weights))
        )
        return (error * from_centre).sum(1) / (from_centre**2).sum(1)

    plain, weighted, rest = along(), along(parallel_weight=8), along(parallel_weight=8, parallel_rest=0.2)
    assert weighted.std() < 0.7 * plain.std()
    assert abs(weighted.mean()) < abs(plain.mean())
    assert rest.mean() > weighted.mean() + 0.02


def test_less_rest_is_asked_for_where_the_global_levels_leave_more(trained, vectors, monkeypatch):
    target = np.array([[3, 0, 4, 0]] * 4 + [[0, 0, 0, 0]], np.float32)
    left = 0.5 * target * np.sqrt([[1], [1.1], [4], [0.1], [1]], dtype=np.float32)
    weights = encoder._weights_of_rest(target, [left[:, :2], left[:, 2:]], share=0.25)
    np.testing.assert_allclose(weights, [1, 0.92, 0.76, 1.24, 1], rtol=1e-5)

    quantizer, x = trained.residual_quantizer, vectors[1]
    along = {"parallel_weight": 8, "parallel_rest": 0.2}
    codes = quantizer.encode(x, 6, **along)
    np.testing.assert_array_equal(quantizer.encode(x[5:6], 6, **along), codes[5:6])  # whatever is beside it
    monkeypatch.setattr(encoder, "_LESS_REST", 0)
    assert (quantizer.encode(x, 6, **along) != codes).any()


def test_inner_products_ask_for_the_same_rest_of_all(trained, vectors, monkeypatch):
    quantizer, x = trained.residual_quantizer, vectors[1]

    def codes(whole):
        return quantizer.encode(x, 6, parallel_weight=8, parallel_rest=0.2, whole=whole)

    by_inner_product, by_distance = codes(x), codes(None)
    monkeypatch.setattr(encoder, "_LESS_REST", 0)
    np.testing.assert_array_equal(codes(x), by_inner_product)
    assert (codes(None) != by_distance).any()


def test_training_makes_blocks_and_says_so(trained, vectors):
    stats = trained.train_stats
    assert stats.structure == "blocks"
    assert trained.residual_quantizer.layout == stats.layout == Layout.default(40, 24, 6, 4000)
    assert stats.layout.n_blocks == 3
    assert len(stats.mse) == 24 and stats.mse[-1] < 0.5 * stats.mse[11] < stats.mse[0]
    assert stats.parallel_weight == trained.parallel_weight
    again = faiss_dpq.IndexDPQ(40, 24, 6)
    again.train(vectors[0], effort="fast")
    np.testing.assert_array_equal(again.codebooks, trained.codebooks)


def test_other_vectors_gain_by_usual_lengths(vectors, monkeypatch):
    x, others = vectors

    def error():
        quantizer = ProgressiveQuantizer(train_codebooks(x, 24, 6)[0])
        return np.square(quantizer.decode(quantizer.encode(others, 6)) - others).sum(1).mean()

    gained = error()
    monkeypatch.setattr(blocks, "_usual_length", lambda x, held_out: np.float32(1))
    assert gained < 0.95 * error()


def test_momentum_goes_on_by_a_share_of_the_last_change(vectors, monkeypatch):
    solutions, seen = [], []
    solve, error = alternation.solve, alternation.coding_error
    monkeypatch.setattr(alternation, "solve", lambda *rest: solutions.append(solve(*rest)) or solutions[-1])
    monkeypatch.setattr(alternation, "coding_error", lambda q, *rest: seen.append(q.codebooks) or error(q, *rest))
    monkeypatch.setattr(blocks, "_MOMENTUM_VECTORS", 0)
    train_codebooks(vectors[0], 24, 6)
    seen = [codebooks for codebooks in seen if codebooks.shape == seen[0].shape]  # those of global levels
    shares = [*np.linspace(0.4, 0.8, 22), 0, 0]  # of 24 turns
    before = seen[0]
    assert len(seen) > 18
    for share, solution, codebooks in zip(shares, solutions, seen[1:], strict=False):
        np.testing.assert_allclose(codebooks, solution + share * (solution - before), rtol=0, atol=1e-5)
        before = solution


def test_few_vectors_are_learned_from_without_momentum(vectors, monkeypatch):
    momenta, annealed = [], blocks.annealed
    monkeypatch.setattr(blocks, "annealed", lambda *rest: momenta.append(rest[-1].max()) or annealed(*rest))
    monkeypatch.setattr(blocks, "_MOMENTUM_VECTORS", 3500 / 64)  # of 64 codewords a level
    for n in (3000, 4000):
        train_codebooks(vectors[0][:n], 24, 6)
    assert momenta == [0, 0, 0, 0, pytest.approx(0.8), 0, 0, 0]


@pytest.mark.parametrize("times, factor", [(0, 1), (0.5, 1), (1, 1), (1.5, 1.5), (9, 2), (np.nan, 1)])
def test_usual_lengths_are_those_of_most_vectors_held_out(times, factor):
    errors = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    held_out = np.concatenate([np.full((9, 3), 1e9), np.zeros((9, 3)), errors * times]).astype(np.float32)
    assert blocks._usual_length(errors, held_out) == pytest.approx(factor)
    assert blocks._usual_length(errors, errors[:0]) == blocks._usual_length(0 * errors, errors) == 1


def test_blocks_find_more_than_product_quantization(trained, vectors):
    x, queries = vectors
    product = faiss.IndexPQ(40, 20, 7)  # 17.5 bytes; ours are 18
    product.train(x)
    product.add(x[:1500])
    nearest = faiss.knn(queries, x[:1500], 1)[1]
    found, of_product = ((index.search(queries, 1)[1] == nearest).mean() for index in (trained, product))
    assert found > of_product + 0.02


def test_copies_have_the_same_blocks_and_codes(trained, vectors, tmp_path):
    faiss_dpq.write_index(trained, str(tmp_path / "index"))
    stock = faiss.deserialize_index(faiss.serialize_index(trained))
    copies = [
        faiss_dpq.read_index(str(tmp_path / "index")),
        pickle.loads(pickle.dumps(trained)),
        copy.deepcopy(trained),
        faiss_dpq.clone_index(trained),
        faiss_dpq.downcast_index(stock),
    ]
    D, I = trained.search(vectors[1][:50], 5)
    for other in copies:
        assert other.residual_quantizer.layout == trained.residual_quantizer.layout
        np.testing.assert_array_equal(other.search(vectors[1][:50], 5)[0], D)
        np.testing.assert_array_equal(other.search(vectors[1][:50], 5)[1], I)
    for other in copies[:-1]:  # FAISS's bytes have no place for the weights of the encoder
        np.testing.assert_array_equal(other.sa_encode(vectors[1]), trained.sa_encode(vectors[1]))
    D_stock, _ = faiss.read_index(str(tmp_path / "index")).search(vectors[1][:50], 5)
    np.testing.assert_allclose(D_stock, D, rtol=1e-3, atol=1e-4)
    cut = trained.truncate(20)
    assert cut.residual_quantizer.layout.blocks == trained.residual_quantizer.layout.blocks[:20]
    by_params = trained.search(vectors[1][:50], 5, params=faiss_dpq.SearchParametersDPQ(levels=20))
    np.testing.assert_allclose(cut.search(vectors[1][:50], 5)[0], by_params[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", naive.METRICS)
def test_lists_of_codes_with_blocks(vectors, metric):
    x, queries = vectors
    index = faiss_dpq.index_factory(40, "IVF8,DPQ24x6", metric)
    index.train(x, effort="fast")
    index.add(x[:1500])
    index.nprobe = 8
    assert index.train_stats.structure == "blocks"
    D, I = index.search(queries[:40], 5)
    decoded = index.reconstruct_n(0, 1500).astype(np.float64) if index.make_direct_map() is None else None
    exact = (
        ((queries[:40, None] - decoded) ** 2).sum(2)
        if metric == faiss.METRIC_L2
        else queries[:40].astype(float) @ decoded.T
    )
    np.testing.assert_allclose(D, np.take_along_axis(exact, I, 1), rtol=1e-3, atol=1e-4)
    best = np.sort(exact, axis=1)[:, :5] if metric == faiss.METRIC_L2 else -np.sort(-exact, axis=1)[:, :5]
    np.testing.assert_allclose(D, best, rtol=1e-3, atol=1e-4)


def test_a_layout_may_be_asked_for(vectors):
    index = faiss_dpq.IndexDPQ(40, 24, 6)
    layout = Layout.of_shape(40, 24, 6, 8, 4)
    index.train(vectors[0], effort="fast", layout=layout, parallel_weight=0)
    assert index.residual_quantizer.layout == layout
    assert index.parallel_weight == 0
    for wrong in (Layout.full(40, 23, 6), Layout.full(41, 24, 6), Layout.full(40, 24, 7)):
        with pytest.raises(ValueError, match="layout"):
            faiss_dpq.IndexDPQ(40, 24, 6).train(vectors[0], layout=wrong)
    full = faiss_dpq.IndexDPQ(40, 18, 6)
    full.train(vectors[0], effort="fast", layout=Layout.full(40, 18, 6))
    assert full.train_stats.structure == "additive"


KINDS = {
    "constant dimensions": lambda x: np.where(np.arange(40) % 3 == 0, np.float32(7), x),
    "duplicated dimensions": lambda x: np.concatenate([x[:, :20], x[:, :20]], axis=1),
    "rank of three": lambda x: (x[:, :3] @ np.random.default_rng(1).standard_normal((3, 40))).astype(np.float32),
    "few vectors": lambda x: x[:90],
    "twenty different vectors": lambda x: x[np.arange(len(x)) % 20],
    "far from the origin": lambda x: x + np.float32(100),
    "one dimension": lambda x: x[:, :1].copy(),
    "two dimensions": lambda x: x[:, :2].copy(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_odd_training_vectors(vectors, kind):
    x = np.ascontiguousarray(KINDS[kind](vectors[0][:2000]))
    index = faiss_dpq.IndexDPQ(x.shape[1], 20, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.train(x, effort="fast")
        index.add(x)
        D, I = index.search(x[:30], 3)
    decoded = naive.decode(index.codebooks, index.residual_quantizer.encode(x, 6))
    assert np.isfinite(decoded).all()
    stored = index.reconstruct_n(0, len(x)).astype(np.float64)
    assert ((stored - x) ** 2).sum() < 0.5 * ((x - x.mean(0)) ** 2).sum()
    exact = ((x[:30, None].astype(np.float64) - stored) ** 2).sum(2)
    scale = ((x - x.mean(0)) ** 2).sum(1).max() + np.abs(x).max() * 1e-2
    np.testing.assert_allclose(D, np.take_along_axis(exact, I, 1), rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(D, np.sort(exact, axis=1)[:, :3], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("levels", [0, 1, 12])
def test_what_global_levels_leave_in_a_block(simd, levels):
    rng = np.random.default_rng(levels)
    n, K, width, dims, first = 37, 64, 100, 48, 32
    turned, own = rng.standard_normal((2, n, width)).astype(np.float32)
    codes = rng.integers(0, K, (n, levels)).astype(np.uint16)
    codewords = rng.standard_normal((levels, K, width)).astype(np.float32)
    own_out, left, products = np.empty((n, dims), np.float32), np.empty((n, dims), np.float32), np.empty(n, np.float32)
    _kernels.leave_block(turned, own, first, codes, codewords, own_out, left, products)
    block, expected = slice(first, first + dims), turned.copy()
    for level in range(levels):
        expected -= codewords[level][codes[:, level]]
    np.testing.assert_array_equal(own_out, own[:, block])
    np.testing.assert_array_equal(left, expected[:, block])
    np.testing.assert_allclose(products, (own * expected.astype(np.float64))[:, block].sum(1), rtol=1e-4, atol=1e-4)
