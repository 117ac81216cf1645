"""Searches with selectors find the nearest of what is admitted, whatever the selector, the index and how few it is."""

import gc

import faiss
import naive
import numpy as np
import pytest
from filtered_index import N, bitmap, counted, index_of
from flat_index import assert_same_neighbours
from naive import FLT_MAX, METRICS, normal

import faiss_dpq
from faiss_dpq.search import selection
from faiss_dpq.search.selection import bits_of, is_member, unpacked
from faiss_dpq.shards.sending import pack, unpack

SHAPES = [
    (4, 8),
    (8, 8),
    (5, 4),
    (3, 6),
    (20, 8),
]  # levels and bits: look-ups of whole codes, of columns, none, many levels
MASKS = {
    "none": lambda rng, n: np.zeros(n, bool),
    "one": lambda rng, n: np.arange(n) == n - 1,
    "few": lambda rng, n: rng.random(n) < 0.003,
    "a hundredth": lambda rng, n: rng.random(n) < 0.01,
    "a slice": lambda rng, n: (np.arange(n) >= 777) & (np.arange(n) < 10_001),
    "islands": lambda rng, n: (np.arange(n) // 1500 % 3 == 1) & (rng.random(n) < 0.99),
    "dense here, few there": lambda rng, n: rng.random(n) < np.where(np.arange(n) < 9500, 1.0, 0.05),
    "most": lambda rng, n: rng.random(n) < 0.9,
}
# ---- bits of selectors ----------------------------------------------------------------------------------------------

NUMBERS = np.random.default_rng(0).permutation(np.r_[-70:200, 2**40, -(2**40), 2**63 - 1, 10_000])
OF_CALLBACKS = NUMBERS[(NUMBERS >= 0) & (NUMBERS < 2**31)]  # FAISS refuses others
MAPPED = 150


def id_map(numbers):
    vector = faiss.Int64Vector()
    faiss.copy_array_to_vector(numbers[:MAPPED].copy(), vector)
    return vector


def every_selector():
    """Selectors, the numbers that each may be asked about, and how many of 0, 1, 2, ..."""
    some, few = np.r_[3, 5, 64, 64, 127, 190, -3], np.r_[2**40, 7, -(2**40)]
    plain = [
        faiss.IDSelectorAll(),
        faiss.IDSelectorRange(5, 130),
        faiss.IDSelectorRange(64, 128),
        faiss.IDSelectorRange(70, 71),
        faiss.IDSelectorRange(-(2**62), 2**62),
        faiss.IDSelectorRange(9, 3),
        faiss.IDSelectorArray(some),
        faiss.IDSelectorArray(few),
        faiss.IDSelectorArray(few[:0]),
        faiss.IDSelectorBatch(some),
        bitmap(np.arange(150) % 3 == 0),
        bitmap(np.zeros(0, bool)),
    ]
    callbacks = [
        faiss.PyCallbackIDSelector(lambda i: i % 5 == 2),
        faiss_dpq.Filter(faiss.PyCallbackIDSelector(lambda i: i % 7 == 2)),
    ]
    for numbers, selectors in ((NUMBERS, plain), (OF_CALLBACKS, callbacks)):
        names = id_map(numbers)
        for each in selectors:
            yield each, numbers, 199
            yield faiss.IDSelectorNot(each), numbers, 199
            yield faiss.IDSelectorTranslated(names, each), np.arange(MAPPED)[::-1], MAPPED
        for kind in (faiss.IDSelectorAnd, faiss.IDSelectorOr, faiss.IDSelectorXOr):
            yield kind(plain[1], selectors[-2]), numbers, 199
            yield kind(faiss.IDSelectorNot(plain[6]), kind(plain[9], selectors[-1])), numbers, 199
    small = id_map(np.random.default_rng(1).permutation(MAPPED))
    yield faiss.IDSelectorTranslated(small, faiss.IDSelectorTranslated(small, plain[1])), np.arange(MAPPED), MAPPED
    yield faiss.IDSelectorAnd(plain[0], plain[9]).rhs, NUMBERS, 199  # as SWIG gives it: a plain IDSelector


def test_bits_say_what_faiss_says_of_every_id():
    # Of these nothing is made; FAISS 1.15.0 has the first only.
    kinds = {getattr(faiss, name, None) for name in ("IDSelector", "IDSelectorWithContext")}
    for selector, numbers, most in every_selector():
        kinds.add(type(selector))
        for n in (0, 1, 64, 150, most):
            expected = [selector.is_member(i) for i in range(n)]
            np.testing.assert_array_equal(unpacked(bits_of(selector, n), n), expected, str(selector))
        expected = [selector.is_member(int(i)) for i in numbers]
        np.testing.assert_array_equal(is_member(selector, np.ascontiguousarray(numbers)), expected, str(selector))
    assert {c for c in vars(faiss).values() if isinstance(c, type) and issubclass(c, faiss.IDSelector)} <= kinds


def test_what_has_no_place_in_a_map_is_not_admitted():
    """FAISS reads beyond the map's end."""
    selector = faiss.IDSelectorTranslated(id_map(NUMBERS), faiss.IDSelectorAll())
    np.testing.assert_array_equal(unpacked(bits_of(selector, 199), 199), np.arange(199) < MAPPED)
    np.testing.assert_array_equal(is_member(selector, NUMBERS), (NUMBERS >= 0) & (NUMBERS < MAPPED))


def test_a_batch_whose_memory_is_not_known_is_asked_by_faiss(monkeypatch):
    monkeypatch.setattr("faiss_dpq.search.selection._reads_batches", lambda: False)
    monkeypatch.setattr("faiss_dpq.search.selection._CHUNK", 64)
    selector = faiss.IDSelectorBatch(np.r_[0, 63, 64, 190])
    np.testing.assert_array_equal(np.flatnonzero(unpacked(bits_of(selector, 199), 199)), [0, 63, 64, 190])


@pytest.mark.parametrize("share", [0.001, 0.02, 0.04, 0.7])
def test_a_batch_is_read_or_asked(share):
    """What it has is listed if it is little; otherwise it is asked, some ids at a time."""
    assert selection._reads_batches()
    rng = np.random.default_rng(0)
    for n in (1, 1023, 1024, 1025, 5000):
        members = rng.random(n) < share
        admitted = np.r_[np.flatnonzero(members), -1, 1 << 40, (1 << 40) + 3]  # which have bits of its bloom filter
        batch = faiss.IDSelectorBatch(admitted)
        np.testing.assert_array_equal(unpacked(bits_of(batch, n), n), members)
        numbers = rng.permutation(np.r_[np.arange(n), -1, 1 << 40])
        np.testing.assert_array_equal(is_member(batch, numbers), np.isin(numbers, admitted))


def test_ids_of_an_array_near_and_far():
    """A bitmap is made of the array or of what is asked about, the shorter one, unless its numbers lie far apart."""
    rng = np.random.default_rng(0)
    near, far = np.arange(-300, 900), np.r_[-(2**62), 3, 2**40, 2**62]
    for admitted in (near[::7], near[:9], far, np.r_[near[::5], far], far[:0]):
        for asked in (near, near[::90], far, np.r_[near, far], near[:0]):
            numbers = rng.permutation(asked)
            for kind in (faiss.IDSelectorArray, faiss.IDSelectorBatch):
                found = is_member(kind(rng.permutation(admitted)), numbers)
                np.testing.assert_array_equal(found, np.isin(numbers, admitted))


def test_ids_within_a_range(simd):
    rng = np.random.default_rng(0)
    ends = np.r_[-(2**63), -(2**62), -7, 0, 40, 2**40, 2**63 - 1]
    for n in (0, 1, 15, 16, 17, 63, 64, 65, 200):
        numbers = rng.permutation(np.r_[ends, ends[1:] - 1, ends[:-1] + 1, np.arange(200)])[:n]
        for imin in ends.tolist():
            for imax in ends.tolist():
                expected = (imin <= numbers) & (numbers < imax)
                np.testing.assert_array_equal(is_member(faiss.IDSelectorRange(imin, imax), numbers), expected)


def test_a_mask_knows_how_many_and_which():
    rng = np.random.default_rng(0)
    for n in (0, 1, 63, 64, 65, 1024, 5000):
        for share in (0, 0.001, 0.5, 1):
            members = rng.random(n) < share
            mask = naive.mask(members)
            ids = np.flatnonzero(members)
            np.testing.assert_array_equal(mask.ids(), ids)
            assert mask.admitted == len(ids)
            assert (mask.first, mask.last) == ((ids[0], ids[-1]) if len(ids) else (0, -1))


# ---- all codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), SHAPES)
def test_search_of_what_a_mask_lets_through(simd, M, nbits, metric):
    index, codes, xq = index_of(M, nbits, metric)
    rng = np.random.default_rng(1)
    for name, make in MASKS.items():
        members = make(rng, N)
        params = faiss.SearchParameters(sel=bitmap(members))
        expected = naive.search(index.codebooks, codes, xq, 15, metric == faiss.METRIC_INNER_PRODUCT, members)
        one = [each[:1] for each in expected]
        batch = index.search(xq, 15, params=params)
        assert_same_neighbours(*batch, *expected)
        for _ in range(3):  # the long way, at once, and with copies of what is let through
            found = index.search(xq[:1], 15, params=params)
            assert_same_neighbours(*found, *one)
            np.testing.assert_array_equal(found[0], batch[0][:1], name)
            np.testing.assert_array_equal(found[1], batch[1][:1], name)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), [(8, 8), (20, 8)])
def test_prefixes_ranges_and_threads(M, nbits, metric, threads, worth_threads):
    index, codes, xq = index_of(M, nbits, metric)
    inner_product = metric == faiss.METRIC_INNER_PRODUCT
    rng = np.random.default_rng(2)
    for make in MASKS.values():
        members = make(rng, N)
        D, _, all_D = naive.search(index.codebooks[:3], codes[:, :3], xq[:5], 400, inner_product, members)
        params = faiss_dpq.SearchParametersDPQ(levels=3, sel=bitmap(members))
        for n_threads in (1, 3):
            threads(n_threads)
            for nq in (1, 5):
                D, I = index.search(xq[:nq], 400, params=params)
                expected = naive.search(index.codebooks[:3], codes[:, :3], xq[:nq], 400, inner_product, members)
                assert_same_neighbours(D, I, *expected)
            thresh = float(np.median(np.where(np.isfinite(all_D), all_D, np.nan)[:, members])) if members.any() else 1.0
            lims, _, I = index.range_search(xq[:5], thresh, params=params)
            nearer = members & (all_D > thresh if inner_product else all_D < thresh)
            for q in range(5):
                # A distance at the threshold, the median, may be rounded to either side.
                assert len(set(I[lims[q] : lims[q + 1]]) ^ set(np.flatnonzero(nearer[q]))) <= 1


def test_coarse_to_fine_of_what_is_let_through():
    index, codes, xq = index_of(8, 8, faiss.METRIC_L2)
    for make in MASKS.values():
        members = make(np.random.default_rng(3), N)
        params = faiss_dpq.SearchParametersDPQ(coarse_levels=3, k_factor=N, sel=bitmap(members))
        expected = naive.search(index.codebooks, codes, xq, 15, members=members)
        for nq in (1, 40):
            found = index.search(xq[:nq], 15, params=params)
            assert_same_neighbours(*found, *(each[:nq] for each in expected))


def test_what_a_mask_leaves_out_is_not_looked_at():
    index, _, xq = index_of(8, 8, faiss.METRIC_L2)
    rng = np.random.default_rng(0)
    islands, few = np.arange(N) // 2048 % 3 == 1, rng.random(N) < 0.01
    for nq in (1, 40):
        for members in (islands, few):
            params = faiss.SearchParameters(sel=bitmap(members))
            for _ in range(3):
                counts = counted(lambda nq=nq, params=params: index.search(xq[:nq], 5, params=params))
                assert counts["bounded"] + counts["floated"] <= nq * (members.sum() + 1024)


# ---- the same selector again ----------------------------------------------------------------------------------------


def widest(index, selector):
    """Parameters of a search that looks at every vector."""
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(k_factor=1000.0, sel=selector)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(sel=selector)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=index.nlist, sel=selector)
    if isinstance(index, faiss.IndexIDMap):
        return widest(faiss.downcast_index(index.index), selector)
    return faiss.SearchParameters(sel=selector)


def admitted(index, selector, n=500, nq=1):
    """The ids that a search finds."""
    D, I = index.search(np.zeros((nq, index.d), np.float32), n, params=widest(index, selector))
    np.testing.assert_array_equal((I < 0), (np.abs(D) == FLT_MAX))
    return set(I[I >= 0].tolist())


@pytest.mark.parametrize("description", ["DPQ3x4", "IVF1,DPQ3x4", "IDMap2,DPQ3x4", "IDMap2,IVF1,DPQ3x4"])
def test_a_selector_is_asked_again_unless_it_is_a_filter(description):
    rng = np.random.default_rng(0)
    index = faiss_dpq.index_factory(4, description)
    x = normal(rng, 400, 4)
    index.train(x, effort="fast")
    index.add_with_ids(x, np.arange(400) * 2) if "IDMap" in description else index.add(x)
    step = 2 if "IDMap" in description else 1
    asked, allowed = [], {0, 2, 8}
    selector = faiss.PyCallbackIDSelector(lambda i: asked.append(i) or i in allowed)
    fixed = faiss_dpq.Filter(selector)
    assert admitted(index, selector) == admitted(index, fixed) == {0, 2, 8}
    asked.clear()
    assert admitted(index, fixed) == {0, 2, 8} and not asked
    allowed |= {4}
    assert admitted(index, selector) == {0, 2, 4, 8} and asked
    asked.clear()
    assert admitted(index, fixed) == {0, 2, 8} and not asked
    extra = normal(rng, 1, 4)
    index.add_with_ids(extra, np.r_[800]) if "IDMap" in description else index.add(extra)
    allowed |= {400 * step}
    assert admitted(index, fixed) == {0, 2, 4, 8, 400 * step}
    index.remove_ids(np.r_[8])
    if description == "DPQ3x4":  # whose ids are places: those behind move up
        assert admitted(index, fixed) == {0, 2, 4, 8}
    else:
        assert admitted(index, fixed) == {0, 2, 4, 400 * step}


@pytest.mark.parametrize("around", [lambda s: s, faiss.IDSelectorNot, faiss_dpq.Filter])
@pytest.mark.parametrize("description", ["DPQ3x4", "IVF4,DPQ3x4", "IDMap2,DPQ3x4", "IDMap2,IVF4,DPQ3x4"])
def test_what_a_callback_raises_is_raised(description, around):
    """FAISS ends the process, where it asks selectors in several threads."""
    x = normal(np.random.default_rng(0), 400, 4)
    index = faiss_dpq.index_factory(4, description)
    index.train(x, effort="fast")
    index.add_with_ids(x, np.arange(400) + (1 << 32)) if "IDMap" in description else index.add(x)

    def refuses(i):
        raise ZeroDivisionError(i)

    for nq in (1, 30):
        # FAISS refuses to ask about ids beyond 32 bits.
        with pytest.raises(RuntimeError if "IDMap" in description else ZeroDivisionError):
            admitted(index, around(faiss.PyCallbackIDSelector(refuses)), nq=nq)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        index.remove_ids(around(faiss.PyCallbackIDSelector(refuses)))
    assert index.ntotal == 400 and len(admitted(index, faiss.IDSelectorAll())) == 400


@pytest.mark.parametrize("around", [lambda s: s, faiss.IDSelectorNot, lambda s: faiss.IDSelectorAnd(s, s)])
@pytest.mark.parametrize("description", ["DPQ3x4", "IVF1,DPQ3x4"])
def test_what_is_written_into_a_selector_is_seen(description, around):
    x = normal(np.random.default_rng(0), 400, 4)
    index = faiss_dpq.index_factory(4, description)
    index.train(x, effort="fast")
    index.add(x)
    everything, inverted = set(range(400)), around is faiss.IDSelectorNot

    def assert_admits(selector, ids):
        for _ in range(2):
            assert admitted(index, selector) == (everything - set(ids) if inverted else set(ids))

    bits, ids, bounds = np.zeros(50, np.uint8), np.r_[3, 200], faiss.IDSelectorRange(5, 9)
    of_bits, of_ids, of_bounds = (
        around(each) for each in (faiss.IDSelectorBitmap(bits), faiss.IDSelectorArray(ids), bounds)
    )
    bits[20] = 1
    assert_admits(of_bits, [160])
    bits[33] = 6
    assert_admits(of_bits, [160, 265, 266])
    assert_admits(of_ids, [3, 200])
    ids[1] = 77
    assert_admits(of_ids, [3, 77])
    assert_admits(of_bounds, range(5, 9))
    bounds.imax = 11
    assert_admits(of_bounds, range(5, 11))


def test_of_a_bitmap_what_belongs_to_vectors_counts():
    """Bitmaps of every length, with bits behind the last vector, at one address, changed one bit after the other."""
    x = normal(np.random.default_rng(0), 203, 4)
    index = faiss_dpq.index_factory(4, "DPQ3x4")
    index.train(x, effort="fast")
    index.add(x)
    for size in (0, 1, 24, 25, 26, 40):
        bits = np.zeros(size, np.uint8)
        selector = faiss.IDSelectorBitmap(bits)
        expected = set()
        assert admitted(index, selector) == expected
        for place in (0, 7, 8, 63, 191, 192, 199, 200, 202, 203, 207, 319):
            if place < 8 * size:
                bits[place // 8] ^= 1 << place % 8
                expected |= {place} if place < 203 else set()
            for _ in range(2):
                assert admitted(index, selector) == expected
        bits[:] = 255
        assert admitted(index, selector) == set(range(min(203, 8 * size)))


def test_a_bitmap_with_another_number_of_vectors_is_another_mask():
    x = normal(np.random.default_rng(0), 210, 4)
    index = faiss_dpq.index_factory(4, "DPQ3x4")
    index.train(x, effort="fast")
    selector = faiss.IDSelectorBitmap(np.full(26, 255, np.uint8))
    for n in range(0, 210, 7):
        assert admitted(index, selector) == set(range(min(n, 208)))
        index.add(x[n : n + 7])


def test_a_selector_in_the_place_of_another_is_not_taken_for_it():
    index, _, _ = index_of(3, 6, faiss.METRIC_L2)
    large = 200_000  # ids of which a sample is compared
    for step in range(2, 10):
        for selector in (
            faiss.IDSelectorBatch(np.arange(0, 100, step)),
            faiss_dpq.Filter(faiss.IDSelectorBatch(np.arange(0, 100, step))),
            faiss.IDSelectorArray(np.arange(0, 100, step)),
            faiss.IDSelectorArray(np.where(np.arange(large) == step, step, N + 5)),
        ):
            array = isinstance(selector, faiss.IDSelectorArray) and selector.n == large
            assert admitted(index, selector) == ({step} if array else set(range(0, 100, step)))
        del selector
        gc.collect()


def test_searches_with_many_selectors_keep_few_masks():
    index, _, _ = index_of(4, 8, faiss.METRIC_L2)
    for end in range(10, 60):
        assert admitted(index, faiss.IDSelectorRange(2, end)) == set(range(2, end))
    assert index.memory_usage()["masks"] < 12 * (N / 8 + 200) + 12 * N / 8


# ---- wrappers -------------------------------------------------------------------------------------------------------

WRAPPERS = [
    "IDMap,DPQ4x6",
    "IDMap2,DPQ4x6",
    "IDMap2,IVF4,DPQ4x6",
    "PCA5,DPQ4x6",
    "IDMap2,PCA5,DPQ4x6",
    "DPQ4x6,RFlat",
    "IDMap2,DPQ4x6,RFlat",
]


@pytest.mark.parametrize("description", WRAPPERS)
def test_wrappers_find_what_an_index_of_the_admitted_finds(description):
    rng = np.random.default_rng(0)
    x, xq = normal(rng, 900, 6), normal(rng, 12, 6)
    index = faiss_dpq.index_factory(6, description)
    index.train(x, effort="fast")
    ids = rng.permutation(2000)[:900] if "IDMap" in description else np.arange(900)
    index.add_with_ids(x, ids) if "IDMap" in description else index.add(x)
    for share in (0, 0.02, 0.5):
        members = rng.random(2000) < share
        kept = members[ids]
        reference = faiss_dpq.clone_index(index)
        reference.reset()
        reference.add_with_ids(x[kept], ids[kept]) if "IDMap" in description else reference.add(x[kept])
        names = ids[kept] if "IDMap" not in description else np.arange(2000)
        for selector in (bitmap(members), faiss.IDSelectorBatch(np.flatnonzero(members))):
            for nq in (1, 12):
                D, I = index.search(xq[:nq], 9, params=widest(index, selector))
                D_expected, I_expected = reference.search(xq[:nq], 9, params=widest(reference, faiss.IDSelectorAll()))
                np.testing.assert_array_equal(D, D_expected)
                found = I_expected >= 0
                np.testing.assert_array_equal(I >= 0, found)
                tied = np.zeros(D.shape, bool)
                tied[:, 1:] = D[:, 1:] == D[:, :-1]
                tied[:, :-1] |= tied[:, 1:]
                alone = found & ~tied
                np.testing.assert_array_equal(I[alone], names[I_expected[alone]])
                assert members[I[found]].all()


@pytest.mark.parametrize("kind", ["shards", "replicas"])
def test_shards_and_replicas(kind):
    index, codes, xq = index_of(4, 8, faiss.METRIC_L2)
    many = faiss_dpq.IndexShards(6, False, True) if kind == "shards" else faiss_dpq.IndexReplicas(6)
    for part in (slice(0, 5000), slice(5000, N)):
        each = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
        each.add_sa_codes(naive.pack(codes if kind == "replicas" else codes[part], 8))
        many.add_shard(each) if kind == "shards" else many.add_replica(each)
    for make in MASKS.values():
        members = make(np.random.default_rng(0), N)
        within = members
        if kind == "shards":  # FAISS's shards see their own numbers
            within = np.r_[members[:5000], members[: N - 5000]]
        params = faiss.SearchParameters(sel=bitmap(members))
        for nq in (1, 40):
            expected = naive.search(index.codebooks, codes, xq[:nq], 9, members=within)
            assert_same_neighbours(*many.search(xq[:nq], 9, params=params), *expected)


def test_a_filter_and_its_limits_are_sent_to_other_processes():
    sel = faiss_dpq.Filter(faiss.IDSelectorRange(3, 9))
    params = unpack(pack(faiss_dpq.SearchParametersIVFDPQ(nprobe=2, max_nprobe=7, ensure_topk_full=True, sel=sel)))
    assert (params.nprobe, params.max_nprobe, params.ensure_topk_full) == (2, 7, True)
    assert [i for i in range(20) if params.sel.is_member(i)] == list(range(3, 9))
