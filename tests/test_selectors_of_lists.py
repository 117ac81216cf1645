"""Selectors of every class in inverted lists, new at every search or not: exact, at once, kept if they come again."""

import threading

import faiss
import numpy as np
import pytest
from filtered_index import bitmap, counted
from ivf_model import Model, assert_finds, filled, probed, sa_codes
from naive import METRICS, normal

import faiss_dpq

NLIST, NPROBE, D, N = 8, 3, 6, 900
EMPTY = (2, 5)  # lists
FAR = [-(2**62), -(2**40), 2**40, 2**62]
NAMES = np.random.default_rng(9).permutation(700) - 50


class Filled:
    """An index with empty lists whose ids are no places, some of them negative; its model, by place; and queries."""

    def __init__(self, seed, M=5, metric=faiss.METRIC_L2, far=FAR):
        rng, nbits = np.random.default_rng(seed), 8 if M == 5 else 4
        self.metric = metric
        self.index, _ = filled(rng, 0, D, NLIST, M, nbits, metric)
        lists = rng.choice([i for i in range(NLIST) if i not in EMPTY], N)
        codes = sa_codes(self.index, lists, rng.integers(0, 1 << nbits, (N, M)).astype(np.uint16))
        small = np.setdiff1d(np.arange(2000) - (20 if far else 0), [-1])  # which stands for none
        self.ids = rng.permutation(np.r_[np.array(far, np.int64), rng.permutation(small)[: N - len(far)]])
        self.index.add_sa_codes(codes, self.ids)
        self.index.nprobe = NPROBE
        self.model = Model()
        self.model.put(np.arange(N), lists, self.index.sa_decode(codes).astype(np.float64))
        self.place = {i: at for at, i in enumerate(self.ids.tolist())}
        self.xq = normal(rng, 9, D)
        self.index.search(self.xq[:1], 5, params=params_of(None))

    def assert_finds(self, xq, selector, admits):
        """A search finds what is admitted, as loops in float64 do."""
        found, I = self.index.search(xq, 30, params=params_of(selector))
        places = np.array([[self.place[i] if i != -1 else -1 for i in row] for row in I.tolist()])
        members = [at for i, at in self.place.items() if admits(i)]
        assert_finds(found, places, self.model, xq, probed(self.index, xq, NPROBE), self.metric, members)


def selectors(made):
    """New ones, and what each admits: a selector, a function of ids."""
    of_one_list = made.ids[[at for at, number in made.model.lists.items() if number == 3]]
    some, bits = np.array([*of_one_list[::3], 5, 5, -1, 2**40, 77, 2**62]), np.arange(1200) % 3 == 0
    names = faiss.Int64Vector()
    faiss.copy_array_to_vector(NAMES, names)

    def in_bits(i):
        return 0 <= i < 1200 and bits[i]

    def in_names(i):
        return 0 <= i < len(NAMES)

    ranges = [(100, 900), (-(2**63), 2**63 - 1), (-5, 3), (7, 8), (9, 3), (2**61, 2**63 - 1), (-(2**63), 0)]
    pairs = [(faiss.IDSelectorRange(*ends), lambda i, ends=ends: ends[0] <= i < ends[1]) for ends in ranges]
    pairs += [
        (faiss.IDSelectorAll(), lambda i: True),
        (bitmap(bits), in_bits),
        (faiss.IDSelectorNot(bitmap(np.zeros(0, bool))), lambda i: True),
    ]
    for kind in (faiss.IDSelectorArray, faiss.IDSelectorBatch):
        pairs += [(kind(some), lambda i: i in some), (kind(some[:0]), lambda i: False)]
        pairs += [(faiss_dpq.Filter(kind(some)), lambda i: i in some)]
        pairs += [(faiss.IDSelectorTranslated(names, kind(some)), lambda i: in_names(i) and NAMES[i] in some)]
    pairs += [
        (faiss.IDSelectorNot(bitmap(bits)), lambda i: not in_bits(i)),
        (faiss.IDSelectorAnd(faiss.IDSelectorRange(-3, 600), bitmap(bits)), lambda i: -3 <= i < 600 and in_bits(i)),
        (faiss.IDSelectorOr(faiss.IDSelectorArray(some), bitmap(bits)), lambda i: i in some or in_bits(i)),
        (
            faiss.IDSelectorXOr(faiss.IDSelectorBatch(some), faiss.IDSelectorRange(0, 2**50)),
            lambda i: (i in some) != (0 <= i < 2**50),
        ),
        (
            faiss.IDSelectorNot(
                faiss.IDSelectorAnd(
                    faiss.IDSelectorOr(faiss.IDSelectorBatch(some), bitmap(bits)),
                    faiss.IDSelectorTranslated(names, faiss.IDSelectorRange(0, 300)),
                )
            ),
            lambda i: not ((i in some or in_bits(i)) and in_names(i) and 0 <= NAMES[i] < 300),
        ),
    ]
    return pairs


def params_of(selector, nprobe=NPROBE):
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("M", [5, 20])
def test_every_selector_finds_the_nearest_of_what_it_admits(simd, M, metric):
    """New ones; the same ones again and again; by one query, by few, and by so many that lists are opened."""
    made = Filled(M, M, metric)
    for nq, times in ((1, 3), (9, 3), (100, 1)):
        for selector, admits in selectors(made):
            for _ in range(times):
                made.assert_finds(np.resize(made.xq, (nq, D)), selector, admits)


def test_one_query_with_any_selector_goes_to_the_kernels_at_once():
    made = Filled(0)
    for selector, _ in selectors(made):
        params = params_of(selector)
        for x in (made.xq[:1], made.xq[1:2], made.xq[:1]):  # new, then with lists without masks, then with all masks
            assert counted(lambda x=x, params=params: made.index.search(x, 5, params=params))["direct_lists"] == 1


def test_masks_are_kept_of_selectors_that_come_again():
    """Of bitmaps and ranges never, of a Filter at once."""
    made = Filled(0)

    def masked(selector):
        """Lists that masks were made of, and the bytes that are kept."""
        counts = counted(lambda: made.index.search(made.xq[:1], 5, params=params_of(selector)))
        return counts["masked_lists"], made.index.memory_usage()["masks"]

    for selector, _ in selectors(made):
        before = made.index.memory_usage()["masks"]
        lists, kept = zip(*[masked(selector) for _ in range(3)], strict=True)
        if isinstance(selector, faiss.IDSelectorBitmap | faiss.IDSelectorAll):
            assert (lists, kept) == ((0, 0, 0), (before,) * 3)
        elif isinstance(selector, faiss.IDSelectorRange):
            assert (lists, kept) == ((NPROBE,) * 3, (before,) * 3)
        elif isinstance(selector, faiss_dpq.Filter):
            assert lists == (NPROBE, 0, 0) and kept[0] == kept[2]
        else:
            assert lists == (NPROBE, NPROBE, 0) and kept[0] == before and kept[1] == kept[2]
    before, rng = made.index.memory_usage()["masks"], np.random.default_rng(0)
    for _ in range(30):
        assert masked(faiss.IDSelectorNot(bitmap(rng.random(1200) < 0.5))) == (NPROBE, before)


def test_a_list_is_asked_about_once_whoever_probes_it():
    made = Filled(0, far=[])
    asked = []
    selector = faiss.PyCallbackIDSelector(lambda i: asked.append(i) or i % 3 == 0)
    made.assert_finds(made.xq, selector, lambda i: i % 3 == 0)
    keys = probed(made.index, made.xq)
    assert sorted(asked) == sorted(i for i, at in made.place.items() if made.model.lists[at] in keys)


def test_an_error_meanwhile_is_no_part_of_the_next_search(monkeypatch):
    made = Filled(0)
    for nq in (1, 9):
        with monkeypatch.context() as patch, pytest.raises(MemoryError, match="as if"):
            patch.setattr("faiss_dpq.search.list_masks.bits_of", lambda *_: raise_(MemoryError("as if")))
            made.index.search(made.xq[:nq], 5, params=params_of(faiss.IDSelectorNot(bitmap(np.ones(9, bool)))))
        odd = faiss.IDSelectorNot(bitmap(np.arange(2000) % 2 == 0))
        made.assert_finds(made.xq[:nq], odd, lambda i: i % 2 or not 0 <= i < 2000)


def raise_(error):
    raise error


def test_a_selector_may_search_the_index_that_asks_it():
    made = Filled(0, far=[])
    half = params_of(faiss.IDSelectorRange(0, 1000))
    expected = made.index.search(made.xq[1:2], 5, params=half)[1]
    same = []

    def admits(i):
        same.append((made.index.search(made.xq[1:2], 5, params=half)[1] == expected).all())
        return i % 2 == 0

    made.assert_finds(made.xq[:1], faiss.PyCallbackIDSelector(admits), lambda i: i % 2 == 0)
    assert len(same) > 100 and all(same)


def ids_found(index, xq, selector):
    """Of all lists; -1 is no id."""
    I = index.search(xq, N + 50, params=params_of(selector, NLIST))[1]
    return set(I[I != -1].tolist())


def test_what_changes_between_searches_is_seen():
    """Memory that a selector reads, its bounds, and the lists."""
    made, rng = Filled(0), np.random.default_rng(0)
    here = set(made.ids.tolist())
    bits, ids, bounds = np.zeros(250, np.uint8), np.arange(100, 140), faiss.IDSelectorRange(0, 2**50)
    of_bits, of_ids = faiss.IDSelectorBitmap(bits), faiss.IDSelectorArray(ids)
    selector = faiss.IDSelectorOr(faiss.IDSelectorOr(of_bits, of_ids), faiss.IDSelectorNot(bounds))
    for step in range(24):
        for _ in range(1 + step % 3):  # new, again, with all masks
            in_bits = set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())
            out_of_bounds = {i for i in here if not bounds.imin <= i < bounds.imax}
            expected = here & (in_bits | set(ids.tolist()) | out_of_bounds)
            assert ids_found(made.index, made.xq[:1], selector) == expected
        what = step // 3 % 4
        if what == 0:
            bits[rng.integers(250)] ^= np.uint8(1 << rng.integers(8))
        elif what == 1:
            ids[rng.integers(40)] = rng.integers(-20, 2000)
        elif what == 2:
            bounds.imin = int(rng.integers(-20, 2000))
        else:
            gone = rng.choice(list(here), 40, replace=False)
            made.index.remove_ids(gone)
            here -= set(gone.tolist())


def test_searches_of_several_threads_do_not_meet():
    """Selectors that threads share, each list's mask made by whoever comes first, and others of their own."""
    made = Filled(0)
    index, xq = made.index, made.xq
    shared = [params_of(selector) for selector, _ in selectors(made)]
    expected = [faiss_dpq.clone_index(index).search(xq, 20, params=each) for each in shared]
    wrong = []

    def search(seed):
        rng, own = np.random.default_rng(seed), [params_of(selector) for selector, _ in selectors(made)]
        for _ in range(150):
            which, q = rng.integers(len(shared)), rng.integers(len(xq))
            params = (shared if rng.random() < 0.5 else own)[which]
            found = index.search(xq[q : q + 1], 20, params=params)
            if any((a[0] != b[q]).any() for a, b in zip(found, expected[which], strict=True)):
                wrong.append((which, q))

    threads = [threading.Thread(target=search, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lists_within_a_map_of_ids():
    """An IndexIDMap2 has its own ids, which lists know as places."""
    made = Filled(0)
    inner = faiss_dpq.clone_index(made.index)
    inner.reset()
    wrapped = faiss_dpq.IndexIDMap2(inner)
    wrapped.add_with_ids(np.stack([made.model.x[at] for at in range(N)]).astype(np.float32), made.ids)
    for selector, admits in selectors(made):
        if isinstance(selector, faiss.IDSelectorTranslated):  # which is about places
            continue
        for _ in range(3):
            assert ids_found(wrapped, made.xq[:1], selector) == {i for i in made.place if admits(i)}
