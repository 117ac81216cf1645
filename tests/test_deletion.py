"""Removals and replacements by id: what is left is what an index built without the removed vectors holds."""

import copy
import threading

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from bench.stacks import Interruption, interrupted_at
from faiss_dpq import _kernels
from faiss_dpq.index.wrappers import places as id_places
from faiss_dpq.index.wrappers.linear import Products
from faiss_dpq.search.derived import DerivedCodes
from faiss_dpq.search.lists import DerivedLists

D, NLIST, M, NBITS = 6, 3, 3, 5
CODEBOOKS = naive.random_codebooks(np.random.default_rng(0), M, 1 << NBITS, D)
CENTRES = naive.normal(np.random.default_rng(1), NLIST, D)
NO_MAP, ARRAY, HASHTABLE = faiss.DirectMap.NoMap, faiss.DirectMap.Array, faiss.DirectMap.Hashtable
N = 400


def flat(codebooks=CODEBOOKS, metric=faiss.METRIC_L2):
    return faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)


def ivf(kind=NO_MAP, metric=faiss.METRIC_L2):
    coarse = faiss.IndexFlatL2(D)
    coarse.add(CENTRES)
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, CODEBOOKS / 2, metric)
    index.nprobe = NLIST
    index.set_direct_map_type(kind)
    return index


def rotation():
    transform = faiss.RandomRotationMatrix(D, D)
    transform.init(3)
    return transform


ROTATION = rotation()


def rotated(inner):
    return faiss_dpq.IndexPreTransform(rotation(), inner)


M1, M2 = faiss_dpq.IndexIDMap, faiss_dpq.IndexIDMap2
MAKERS = {
    "flat": flat,
    "rotated flat": lambda **more: rotated(flat(**more)),
    "IDMap": lambda **more: M1(flat(**more)),
    "IDMap2": lambda **more: M2(flat(**more)),
    "IDMap2 of rotated": lambda **more: M2(rotated(flat(**more))),
    "lists": ivf,
    "lists, array": lambda **more: ivf(ARRAY, **more),
    "lists, hash table": lambda **more: ivf(HASHTABLE, **more),
    "IDMap of lists": lambda **more: M1(ivf(**more)),
    "IDMap2 of lists": lambda **more: M2(ivf(**more)),
    "IDMap2 of lists, hash table": lambda **more: M2(ivf(HASHTABLE, **more)),
    "IDMap2 of rotated lists": lambda **more: M2(rotated(ivf(**more))),
}
#: Where vectors keep their order, so that equal distances are in the order of an index built anew.
ORDERED = ("flat", "rotated flat", "lists", "lists, array", "IDMap of lists", "IDMap2 of lists")
NUMBERED = ("flat", "rotated flat", "lists, array")  # which give ids themselves
BY_ID = [name for name in MAKERS if name not in ("flat", "rotated flat")]


class Model:
    """Vectors by id, in the order of their addition, and an index that is to hold them."""

    def __init__(self, name, metric):
        self.name, self.metric = name, metric
        self.index, self.vectors = self.new(), {}
        self.fresh = 0
        self.plain = name in ("flat", "rotated flat")  # ids are places
        self.numbered = name in NUMBERED

    def new(self):
        return MAKERS[self.name](metric=self.metric)

    def put(self, index, ids, x):
        index.add(x) if self.numbered else index.add_with_ids(x, ids)

    def add(self, rng, n, again=()):
        x = naive.normal(rng, n + len(again), D)
        ids = np.arange(self.fresh, self.fresh + n)
        ids = ids if self.numbered else np.append(rng.permutation(ids) * 3 - 50, np.array(again, np.int64))
        self.fresh += n
        self.put(self.index, ids, x[: len(ids)])
        self.vectors.update(zip(ids.tolist(), x, strict=False))

    def remove(self, rng, n, as_selector):
        ids = np.array(list(self.vectors), np.int64)
        gone = rng.choice(ids, min(n, len(ids)), replace=False)
        asked = np.concatenate([gone, gone[:1], [-1000, 1 << 40]])
        by_table = "hash table" in self.name and "IDMap" not in self.name  # FAISS's takes arrays only
        selector = faiss.IDSelectorBatch if as_selector and not by_table else faiss.IDSelectorArray
        assert self.index.remove_ids(asked if not as_selector else selector(asked)) == len(gone)
        for i in gone.tolist():
            del self.vectors[i]
        if self.plain:
            self.vectors = dict(enumerate(self.vectors.values()))
            self.fresh = len(self.vectors)
        return gone

    def replace(self, rng, n):
        ids = rng.choice(np.array(list(self.vectors)), min(n, len(self.vectors)), replace=False)
        x = naive.normal(rng, len(ids), D)
        self.index.update_vectors(ids, x)
        for i, vector in zip(ids.tolist(), x, strict=True):
            if "lists" in self.name:
                del self.vectors[i]  # it is the last one now
            self.vectors[i] = vector

    def check(self, rng, nq):
        ids = np.array(list(self.vectors), np.int64)
        assert self.index.ntotal == len(ids)
        anew = self.new()
        vectors = np.array(list(self.vectors.values()), np.float32).reshape(-1, D)
        if self.name == "lists, array":  # which takes no ids
            anew.set_direct_map_type(NO_MAP)
            anew.add_with_ids(vectors, ids)
        else:
            self.put(anew, ids, vectors)
        xq, k = naive.normal(rng, nq, D), int(rng.integers(1, 30))
        admitted = rng.choice(ids, len(ids) // 3, replace=False) if len(ids) else ids
        for sel in (None, faiss.IDSelectorBatch(admitted), faiss.IDSelectorRange(20, 500)):
            params = faiss.SearchParametersIVF(sel=sel, nprobe=NLIST) if "lists" in self.name else None
            if params is None:
                params = faiss.SearchParameters(sel=sel)
            if "rotated" in self.name and "IDMap" not in self.name:
                params = faiss.SearchParametersPreTransform(index_params=params)
            elif "IDMap2 of rotated" in self.name:
                continue  # FAISS selects by the places within
            params = None if sel is None else params
            (D_found, I), (D_anew, I_anew) = (each.search(xq, k, params=params) for each in (self.index, anew))
            np.testing.assert_array_equal(D_found, D_anew)
            alone = np.ones_like(I, bool)
            if self.name not in ORDERED:
                tied = D_anew[:, 1:] == D_anew[:, :-1]
                alone[:, 1:] &= ~tied
                alone[:, :-1] &= ~tied
                alone[:, -1] = False  # the next one may be as far
            np.testing.assert_array_equal(I[alone], I_anew[alone])
            self.check_distances(xq, D_found, I)
        if isinstance(self.index, faiss.IndexIDMap):
            assert set(faiss.vector_to_array(self.index.id_map).tolist()) == set(self.vectors)
        if isinstance(self.index, faiss.IndexIDMap2):
            faiss.IndexIDMap2.check_consistency(self.index)

    def check_distances(self, xq, D_found, I):
        """Against float64 sums over what the codes decode to."""
        if not self.vectors:
            return
        inner = self.index
        while isinstance(inner, faiss.IndexIDMap | faiss.IndexPreTransform):
            inner = inner.index
        xq = Products().apply(0, ROTATION, xq) if "rotated" in self.name else xq
        for row in range(len(xq)):
            found = [i for i in I[row].tolist() if i in self.vectors][:3]
            x = np.array([self.vectors[i] for i in found], np.float32).reshape(-1, D)
            x = Products().apply(0, ROTATION, x) if "rotated" in self.name else x
            decoded = inner.sa_decode(inner.sa_encode(x)).astype(np.float64) if len(x) else np.empty((0, D))
            query = xq[row].astype(np.float64)
            expected = ((decoded - query) ** 2).sum(1) if self.metric == faiss.METRIC_L2 else decoded @ query
            places = [I[row].tolist().index(i) for i in found]
            np.testing.assert_allclose(D_found[row, places], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", naive.METRICS)
@pytest.mark.parametrize("name", MAKERS)
def test_random_changes_leave_what_an_index_built_anew_holds(name, metric, simd):
    model, rng = Model(name, metric), np.random.default_rng(len(name))
    model.add(rng, N)
    for step in range(14):
        choice = rng.integers(4)
        if choice == 0:
            model.add(rng, int(rng.integers(0, 9)))
        elif choice == 1 and not model.plain and name != "lists":
            model.replace(rng, int(rng.integers(1, 4)))
        elif name != "lists, array":  # from which FAISS removes nothing
            many = step == 9
            gone = model.remove(rng, len(model.vectors) // 3 if many else int(rng.integers(1, 4)), bool(step % 3 == 2))
            if not model.numbered and step % 2:
                model.add(rng, 1, again=gone.tolist())
        model.check(rng, nq=1 if step % 2 else 3)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", ["flat", "lists"])
def test_the_file_is_that_of_an_index_built_anew(name, many):
    model, rng = Model(name, faiss.METRIC_L2), np.random.default_rng(0)
    model.add(rng, N)
    model.remove(rng, N // 2 if many else 3, False)
    anew = model.new()
    model.put(anew, np.array(list(model.vectors)), np.array(list(model.vectors.values())))
    np.testing.assert_array_equal(faiss.serialize_index(model.index), faiss.serialize_index(anew))


@pytest.mark.parametrize("metric", naive.METRICS)
@pytest.mark.parametrize("name", ["flat", "rotated flat", "IDMap", "IDMap2", "IDMap2 of rotated"])
def test_nothing_is_derived_anew_after_a_removal(name, metric, monkeypatch):
    model, rng = Model(name, metric), np.random.default_rng(1)
    model.add(rng, N)
    xq = naive.normal(rng, 3, D)
    model.index.search(xq, 5)
    monkeypatch.setattr(DerivedCodes, "_derive", lambda *_: pytest.fail("derived anew"))
    for _ in range(3):
        model.remove(rng, 2, False)
        model.index.search(xq, 5)
    monkeypatch.undo()
    model.check(rng, 3)


@pytest.mark.parametrize("metric", naive.METRICS)
@pytest.mark.parametrize("name", ["lists", "IDMap2 of lists"])
def test_nothing_is_derived_anew_of_lists_after_a_removal(name, metric, monkeypatch):
    model, rng = Model(name, metric), np.random.default_rng(1)
    model.add(rng, N)
    xq = naive.normal(rng, 3, D)
    model.index.search(xq, 5)
    monkeypatch.setattr(DerivedLists, "_recompute", lambda *_: pytest.fail("derived anew"))
    _kernels.reset_counters()
    for many in (False, False, True):
        model.remove(rng, 100 if many and name == "lists" else 2, False)
        model.index.search(xq, 5)
    if name == "lists":  # the table of ids counts; after many removals, it is gone
        usage = model.index.memory_usage()["places"]
        model.remove(rng, 1, False)
        assert model.index.memory_usage()["places"] >= usage + 16 * model.index.ntotal
        assert model.index.remove_ids(np.array([-1000])) == 0
    counters = _kernels.counters()
    assert counters["grown"] == 0 and counters["unlisted"] == (5 if name == "lists" else 6)
    monkeypatch.undo()
    model.check(rng, 3)


def test_a_replacement_beyond_the_grid_of_terms_is_found():
    index = flat()
    rng = np.random.default_rng(5)
    index.add(0.2 * naive.normal(rng, N, D))
    wrapped = M2(flat())
    wrapped.add_with_ids(0.2 * naive.normal(rng, N, D), np.arange(N))
    wrapped.search(naive.normal(rng, 2, D), 3)
    far = 30 * naive.normal(rng, 2, D)
    wrapped.update_vectors(np.array([7, 300]), far)
    anew = M2(flat())
    anew.add_sa_codes(wrapped.index._packed_codes().copy(), np.arange(N))
    xq = np.concatenate([far, naive.normal(rng, 3, D)])
    for x in (xq, xq[:1]):
        for found, expected in zip(wrapped.search(x, 9), anew.search(x, 9), strict=True):
            np.testing.assert_array_equal(found, expected)
    everything = M2(flat())
    everything.add_with_ids(far, np.arange(2))
    everything.search(far, 1)
    everything.update_vectors(np.array([1, 0]), far[::-1].copy() / 9)
    np.testing.assert_array_equal(everything.search(far / 9, 1)[1][:, 0], [0, 1])


@pytest.mark.parametrize("levels", [20, 33])
def test_columns_of_many_levels_follow(levels):
    codebooks = naive.random_codebooks(np.random.default_rng(6), levels, 16, 8)
    rng = np.random.default_rng(7)
    x, xq = naive.normal(rng, 1500, 8), naive.normal(rng, 4, 8)
    bare, wrapped = flat(codebooks), M2(flat(codebooks))
    ids = np.arange(1500)
    bare.add(x)
    wrapped.add_with_ids(x, ids)
    for q in (xq, xq[:1]):
        bare.search(q, 5), wrapped.search(q, 5)
    for gone in ([700], [3, 1499, 1490], [255, 256, 1023]):
        bare.remove_ids(np.array(gone))
        wrapped.remove_ids(np.array(gone))
        wrapped.update_vectors(np.array([800, 1200]), xq[:2])
        for index in (bare, wrapped.index):
            assert next(iter(index._derived.values()))._known.view.columns is not None
            anew = flat(codebooks)
            anew.add_sa_codes(index._packed_codes().copy())
            for q in (xq[2:3], xq):
                for found, expected in zip(index.search(q, 9), anew.search(q, 9), strict=True):
                    np.testing.assert_array_equal(found, expected)


def test_the_map_from_ids_is_right_at_once():
    index, rng = M2(flat()), np.random.default_rng(2)
    ids = rng.permutation(N) * 5
    index.add_with_ids(naive.normal(rng, N, D), ids)
    assert id_places._reads_rev_maps()
    before = {i: index.reconstruct(i) for i in ids.tolist()}
    stock = faiss.downcast_index(index)
    for gone in ids[[0, N - 1, 77]].tolist():
        assert index.remove_ids(np.array([gone])) == 1
        stock.check_consistency()
        with pytest.raises(RuntimeError):
            stock.reconstruct(gone)
        assert index.remove_ids(np.array([gone])) == 0
    for i in set(ids.tolist()) - set(ids[[0, N - 1, 77]].tolist()):
        np.testing.assert_array_equal(stock.reconstruct(i), before[i])
    index.add_with_ids(naive.normal(rng, 1, D), ids[:1])
    stock.check_consistency()
    assert index.search(index.reconstruct(int(ids[0]))[None], 1)[1][0, 0] == ids[0]


@pytest.mark.parametrize("name", BY_ID)
def test_ids_that_are_there_twice_are_all_removed(name):
    if name in ("lists, array", "lists, hash table"):  # one takes no ids, the other each id once
        return
    index, rng = MAKERS[name](), np.random.default_rng(4)
    ids = np.append(np.arange(N - 2), [5, 9])
    index.add_with_ids(naive.normal(rng, N, D), ids)
    assert index.remove_ids(np.array([5])) == 2
    assert index.remove_ids(np.array([9, 11])) == 3
    assert index.remove_ids(np.array([12])) == 1
    found = index.search(naive.normal(rng, 1, D), N)[1][0]
    assert sorted(found[found >= 0]) == sorted(set(range(N - 2)) - {5, 9, 11, 12})


@pytest.mark.parametrize("name", ["IDMap", "IDMap2", "lists"])
def test_changes_by_stock_methods_between_are_noticed(name):
    index, rng = MAKERS[name](), np.random.default_rng(3)
    stock = faiss.IndexIVF if name == "lists" else type(index).__bases__[-1]
    x = naive.normal(rng, N + 9, D)
    index.add_with_ids(x[:N], np.arange(N))
    assert index.remove_ids(np.array([8])) == 1
    stock.remove_ids(index, np.array([3]))
    assert index.remove_ids(np.array([3, 4])) == 1
    stock.remove_ids(index, np.array([6]))
    stock.add_with_ids(index, x[N : N + 1], np.array([6000]))  # as many as before
    assert index.remove_ids(np.array([6000])) == 1
    stock.add_with_ids(index, x[N : N + 3], np.array([6001, 6002, 10]))
    assert index.remove_ids(np.array([10])) == 2
    found = set(index.search(x[:1], N + 9)[1][0].tolist())
    assert found == {*range(N), 6001, 6002, -1} - {3, 4, 6, 8, 10}


@pytest.mark.parametrize("name", ["IDMap2", "IDMap2 of lists"])
def test_without_the_module_of_cpp_all_is_right(name, monkeypatch):
    monkeypatch.setattr(id_places, "_reads_rev_maps", lambda: False)
    model, rng = Model(name, faiss.METRIC_L2), np.random.default_rng(9)
    model.add(rng, N)
    for _ in range(3):
        model.remove(rng, 2, False)
        model.replace(rng, 2)
        model.check(rng, 2)


@pytest.mark.parametrize("name", [name for name in BY_ID if name != "lists"])
def test_unknown_ids_are_named_and_nothing_is_replaced(name):
    index, rng = MAKERS[name](), np.random.default_rng(3)
    x = naive.normal(rng, N, D)
    index.add(x) if name == "lists, array" else index.add_with_ids(x, np.arange(N))
    before = faiss.serialize_index(index)
    with pytest.raises(RuntimeError, match=r"update_vectors.*777"):
        index.update_vectors(np.array([3, 777]), x[:2])
    if name != "lists, array":
        with pytest.raises(RuntimeError, match="twice"):
            index.update_vectors(np.array([3, 3]), x[:2])
    with pytest.raises(AssertionError, match="update_vectors"):
        index.update_vectors(np.array([3]), x[:2])
    np.testing.assert_array_equal(faiss.serialize_index(index), before)


def test_what_cannot_be_replaced_is_refused():
    rng = np.random.default_rng(3)
    x = naive.normal(rng, 9, D)
    stock = M2(faiss.IndexFlatL2(D))
    stock.add_with_ids(x, np.arange(9))
    with pytest.raises(RuntimeError, match="IndexFlat"):
        stock.update_vectors(np.array([1]), x[:1])
    twice = M2(flat())
    twice.add_with_ids(x, np.array([1, 2, 3, 4, 5, 6, 7, 8, 1]))
    twice.update_vectors(np.array([2]), x[:1])
    np.testing.assert_array_equal(twice.reconstruct(2), twice.index.sa_decode(twice.index.sa_encode(x[:1]))[0])
    with pytest.raises(RuntimeError, match="several vectors have the id 1"):
        twice.update_vectors(np.array([1]), x[:1])


@pytest.mark.parametrize("kind", ["remove", "replace"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_interruption_at_any_line_leaves_all_or_nothing(name, kind):
    refused = ("flat", "rotated flat", "lists") if kind == "replace" else ("lists, array",)
    if name in refused:
        return
    ids, x = np.arange(N), naive.normal(np.random.default_rng(8), N + 2, D)
    original = MAKERS[name]()
    original.add(x[:N]) if name in NUMBERED else original.add_with_ids(x[:N], ids)
    keys = np.array([17, 301])
    change = {
        "remove": lambda index: index.remove_ids(keys),
        "replace": lambda index: index.update_vectors(keys, x[N:]),
    }[kind]
    done = copy.deepcopy(original)
    change(done)
    expected = {done.ntotal: done, N: original}
    outcomes = set()
    for line in range(1, 2000):
        index = copy.deepcopy(original)
        index.search(x[:2], 3)
        try:
            interrupted_at(line, lambda index=index: change(index))
        except Interruption:
            interrupted = True
        else:
            interrupted = False
        found = index.search(x[:3], N)
        same = [
            all(np.array_equal(a, b) for a, b in zip(found, each.search(x[:3], N), strict=True))
            for each in (original, done)
        ]
        assert any(same), line
        outcomes.add(same.index(True))
        assert index.ntotal in expected
        if not interrupted:
            break
        if line % 5 == 0 and name not in NUMBERED:  # what is left can be changed on
            assert index.remove_ids(np.array([17, 18])) == (2 if same[0] or kind == "replace" else 1)
            index.add_with_ids(x[:1], np.array([17]))
            assert index.search(x[:1], N)[0].shape == (1, N)
    assert outcomes == {0, 1}


@pytest.mark.parametrize("name", ["IDMap2", "IDMap2 of lists", "lists, hash table"])
def test_readers_of_a_clone_see_no_change(name):
    index, rng = MAKERS[name](), np.random.default_rng(3)
    x, xq = naive.normal(rng, N, D), naive.normal(rng, 5, D)
    index.add_with_ids(x, np.arange(N))
    clone = faiss_dpq.clone_index(index)
    for each in (index, clone):
        inner = each if "IDMap" not in name else each.index
        if isinstance(inner, faiss.IndexIVF):
            inner.nprobe = NLIST
    expected, wrong, over = clone.search(xq, 9), [], threading.Event()

    def read():
        while not over.is_set():
            found = clone.search(xq, 9)
            wrong.extend(1 for a, b in zip(found, expected, strict=True) if not np.array_equal(a, b))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        index.update_vectors(np.array([i, i + 200]), x[rng.integers(0, N, 2)])
        index.remove_ids(np.array([N - 1 - i]))
    over.set()
    reader.join()
    assert not wrong and clone.ntotal == N and index.ntotal == N - 60


@pytest.mark.parametrize("removed", [11, 20])
@pytest.mark.parametrize("description", ["IDMap2,DPQ3x4", "IDMap,DPQ3x4", "IDMap2,IVF4,DPQ3x4", "DPQ3x4"])
def test_a_selector_searched_with_before_is_looked_at_anew(description, removed):
    """The last vector takes the place of the removed one: as many vectors as once before, but not the same.

    There are more than a digest of the ids looks at.
    """
    x = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
    index = faiss_dpq.index_factory(6, description)
    index.train(x, effort="fast")
    params = faiss_dpq.SearchParametersIVFDPQ(nprobe=4) if "IVF" in description else faiss.SearchParameters()
    ids = np.arange(3000) * (3 if "IDMap" in description else 1)
    fixed = faiss_dpq.Filter(faiss.IDSelectorArray(np.r_[ids[10:14], ids[2999]]))
    params.sel = fixed

    def found():
        return set(index.search(x[:1], 20, params=params)[1][0]) - {-1}

    for rows in (slice(0, 2999), slice(2999, 3000)):
        index.add_with_ids(x[rows], ids[rows]) if "IDMap" in description else index.add(x[rows])
        found()
    assert found() == {*ids[10:14], ids[2999]}
    index.remove_ids(ids[removed : removed + 1])
    if description == "DPQ3x4":  # ids are places: those behind move up
        assert found() == set(range(10, 14))
    else:
        assert found() == {*ids[10:14], ids[2999]} - {ids[removed]}
