"""Random stacks of indexes under random changes, compared with a model made of numpy arrays.

    python -m bench.stacks [--steps 100000] [--seed 0]

Every step is an addition, a removal, a replacement, a merge, a copy, a file, an interruption at some line of Python, or
a search, of all vectors or of some. The tests take 2,000 steps of the same. A stack that differs from its model is
printed with its seed and its steps.
"""

import argparse
import copy
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import faiss
import numpy as np

import faiss_dpq

D, LISTS = 8, 3
L2, PRODUCTS = faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT
PACKAGE = str(faiss_dpq.__path__[0])
_rng = np.random.default_rng(7)
TRAINING = _rng.standard_normal((200, D)).astype(np.float32)


class Interruption(BaseException):
    """What a KeyboardInterrupt is to a program: no Exception, at any line."""


def _codebooks(d: int) -> np.ndarray:
    rng = np.random.default_rng(d)
    return (rng.standard_normal((3, 8, d)) * np.array([1, 0.5, 0.25])[:, None, None]).astype(np.float32)


def _dpq(d: int, metric: int = L2) -> faiss.Index:
    return faiss_dpq.IndexDPQ.from_codebooks(_codebooks(d), metric)


def _ivf(d: int, metric: int = L2, direct_map: int = faiss.DirectMap.NoMap) -> faiss.Index:
    coarse = faiss.IndexFlat(d, metric)
    coarse.add(np.random.default_rng(d + 1).standard_normal((LISTS, d)).astype(np.float32))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, _codebooks(d) / 2, metric)
    index.set_direct_map_type(direct_map)
    index.nprobe = LISTS
    return index


def _pca(inner: Callable[[int], faiss.Index]) -> faiss.Index:
    transform = faiss.PCAMatrix(D, D - 2)
    transform.train(TRAINING)
    return faiss_dpq.IndexPreTransform(transform, inner(D - 2))


def _l2norm(inner: Callable[[int], faiss.Index]) -> faiss.Index:
    return faiss_dpq.IndexPreTransform(faiss.NormalizationTransform(D, 2.0), inner(D))


def _refined(index: faiss.Index) -> faiss.Index:
    refined = faiss_dpq.IndexRefineFlat(index)
    refined.k_factor = 1000  # all vectors: the result is that of the refining index
    return refined


def _replicas(make: Callable[[], faiss.Index]) -> faiss.Index:
    replicas = faiss_dpq.IndexReplicas(D)
    for _ in range(2):
        replicas.add_replica(make())
    return replicas


def _shards(make: Callable[[], faiss.Index], threaded: bool) -> faiss.Index:
    shards = faiss_dpq.IndexShards(D, threaded, False)
    for _ in range(2):
        shards.add_shard(make())
    return shards


M2, M1 = faiss_dpq.IndexIDMap2, faiss_dpq.IndexIDMap
STACKS: dict[str, Callable[[], faiss.Index]] = {
    "DPQ": lambda: _dpq(D),
    "IVF": lambda: _ivf(D),
    "IDMap2(DPQ)": lambda: M2(_dpq(D)),
    "IDMap2(IVF)": lambda: M2(_ivf(D)),
    "IDMap(IVF)": lambda: M1(_ivf(D)),
    "PCA(DPQ)": lambda: _pca(_dpq),
    "PCA(IVF)": lambda: _pca(_ivf),
    "L2norm(DPQ)": lambda: _l2norm(_dpq),
    "IDMap2(PCA(IVF))": lambda: M2(_pca(_ivf)),
    "IDMap2(L2norm(IVF))": lambda: M2(_l2norm(_ivf)),
    "IDMap2(L2norm(DPQ))": lambda: M2(_l2norm(_dpq)),
    "Refine(DPQ)": lambda: _refined(_dpq(D)),
    "Refine(IVF)": lambda: _refined(_ivf(D)),
    "IDMap2(Refine(DPQ))": lambda: M2(_refined(_dpq(D))),
    "IDMap2(Refine(IVF))": lambda: M2(_refined(_ivf(D))),
    "IDMap(Refine(PCA(DPQ)))": lambda: M1(_refined(_pca(_dpq))),
    "Shards(IDMap2(DPQ))": lambda: _shards(lambda: M2(_dpq(D)), threaded=False),
    "Shards(IDMap2(IVF)), threaded": lambda: _shards(lambda: M2(_ivf(D)), threaded=True),
    "Shards(IVF)": lambda: _shards(lambda: _ivf(D), threaded=False),
    "Replicas(IDMap2(PCA(IVF)))": lambda: _replicas(lambda: M2(_pca(_ivf))),
    "PCA(Refine(IVF))": lambda: _pca(lambda d: _refined(_ivf(d))),
    "IDMap2(PCA(Refine(DPQ)))": lambda: M2(_pca(lambda d: _refined(_dpq(d)))),
    "IDMap(L2norm(IVF with an array))": lambda: M1(_l2norm(lambda d: _ivf(d, L2, faiss.DirectMap.Array))),
    "IDMap2(IVF with a hash table)": lambda: M2(_ivf(D, L2, faiss.DirectMap.Hashtable)),
    "DPQ, products": lambda: _dpq(D, PRODUCTS),
    "IVF, products": lambda: _ivf(D, PRODUCTS),
    "IDMap2(DPQ), products": lambda: M2(_dpq(D, PRODUCTS)),
    "IDMap(IVF), products": lambda: M1(_ivf(D, PRODUCTS)),
}


@dataclass
class Entries:
    """What an index holds: ids, and vectors as distances are measured to them; in the order of addition."""

    ids: np.ndarray
    vectors: np.ndarray

    def plus(self, ids: np.ndarray, vectors: np.ndarray) -> "Entries":
        """These, and more behind them."""
        return Entries(np.append(self.ids, ids), np.concatenate([self.vectors, vectors]))

    def __getitem__(self, kept: np.ndarray | slice) -> "Entries":
        return Entries(self.ids[kept].copy(), self.vectors[kept].copy())


class Stack:
    """An index and its model, and the steps that change both."""

    STEPS = ("add", "remove", "update", "merge", "copy", "file", "interrupt", "search", "filtered")

    def __init__(self, name: str) -> None:
        self.name = name
        self.template = STACKS[name]()
        self.index = STACKS[name]()
        self.takes_ids = "IDMap" in name or ("IVF" in name and "Refine" not in name)
        self.shifts = not self.takes_ids and "IVF" not in name
        self.fresh = 0
        self.entries = Entries(np.empty(0, np.int64), np.empty((0, self.transformed(TRAINING[:1]).shape[1])))

    # ---- the model ---------------------------------------------------------------------------------------------

    def transformed(self, x: np.ndarray) -> np.ndarray:
        """Vectors as the innermost index gets them; as the refining index does, if there is one."""
        index = self.template
        while True:
            if isinstance(index, faiss.IndexRefine):
                return x
            if isinstance(index, faiss.IndexPreTransform):
                for transform in index._transforms():
                    x = transform.apply(x)
            inner = index._inner_indexes() if not isinstance(index, faiss.IndexIVF) else []
            if not inner:
                return x
            index = inner[0]

    def decoded(self, x: np.ndarray) -> np.ndarray:
        """What the index makes of vectors."""
        index = self.template
        while not isinstance(index, faiss.IndexRefine | faiss.IndexIVF) and index._inner_indexes():
            index = index._inner_indexes()[0]
        if isinstance(index, faiss.IndexRefine):
            return self.transformed(x).astype(np.float64)
        return index.sa_decode(index.sa_encode(self.transformed(x))).astype(np.float64)

    def new_ids(self, n: int, seed: int) -> np.ndarray:
        """Ids that were never used, in any order."""
        self.fresh += n
        return np.random.default_rng(seed).permutation(np.arange(self.fresh - n, self.fresh)) * 3 + 5

    # ---- steps -------------------------------------------------------------------------------------------------

    def step(self, name: str, seed: int) -> None:
        """Do one of `STEPS`."""
        getattr(self, name)(np.random.default_rng(seed))

    def _vectors(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        n = int(rng.integers(0, 12))
        ids = self.new_ids(n, int(rng.integers(1 << 30)))
        if not self.takes_ids:
            ids = np.arange(len(self.entries.ids), len(self.entries.ids) + n)
        return rng.standard_normal((n, D)).astype(np.float32), ids

    def _added(self, index: faiss.Index, x: np.ndarray, ids: np.ndarray) -> None:
        index.add_with_ids(x, ids) if self.takes_ids else index.add(x)

    def add(self, rng: np.random.Generator) -> None:
        """Add up to a dozen vectors, or none."""
        x, ids = self._vectors(rng)
        self._added(self.index, x, ids)
        self.entries = self.entries.plus(ids, self.decoded(x))

    def _change(self, rng: np.random.Generator) -> tuple[Callable[[], Any], Entries]:
        """A removal, a replacement, a merge or an addition, and what the index holds after it."""
        kind = rng.choice(["add", "remove", "update", "merge"])
        if kind == "remove":
            some = self.entries.ids[rng.random(len(self.entries.ids)) < 0.3]
            kept = ~np.isin(self.entries.ids, some)
            after = self.entries[kept]
            if self.shifts:
                after = Entries(np.arange(len(after.ids)), after.vectors)
            return lambda: self.index.remove_ids(some), after
        if kind == "update":
            places = rng.permutation(len(self.entries.ids))[: int(rng.integers(0, 6))]
            x, after = rng.standard_normal((len(places), D)).astype(np.float32), self.entries[:]
            after.vectors[places] = self.decoded(x)
            return lambda: self._update(self.entries.ids[places], x), after
        x, ids = self._vectors(rng)
        after = self.entries.plus(ids, self.decoded(x))
        if kind == "add":
            return lambda: self._added(self.index, x, ids), after
        other = STACKS[self.name]()
        self._added(other, x, ids)
        return lambda: self.index.merge_from(other), after

    def _update(self, ids: np.ndarray, x: np.ndarray) -> None:
        if not hasattr(self.index, "update_vectors"):
            raise RuntimeError("the class has no such method")
        self.index.update_vectors(ids, x)

    def _try(self, change: Callable[[], Any], after: Entries) -> None:
        try:
            change()
        except RuntimeError:  # FAISS's wrappers do not have every method: nothing has changed then
            return
        self.entries = after

    def _of_kind(self, kind: str, rng: np.random.Generator) -> None:
        rng = _Chosen(rng, kind)
        self._try(*self._change(rng))

    def remove(self, rng: np.random.Generator) -> None:
        """Remove a third of the vectors."""
        self._of_kind("remove", rng)

    def update(self, rng: np.random.Generator) -> None:
        """Replace a few vectors."""
        self._of_kind("update", rng)

    def merge(self, rng: np.random.Generator) -> None:
        """Merge with another index of the same kind."""
        self._of_kind("merge", rng)

    def copy(self, rng: np.random.Generator) -> None:
        """Go on with a copy, by deepcopy or pickle."""
        if rng.random() < 0.5:
            self.index = copy.deepcopy(self.index)
        else:
            self.index = pickle.loads(pickle.dumps(self.index))
        self._search_all_lists()

    def file(self, rng: np.random.Generator) -> None:
        """Go on with what was written and read again."""
        if not self.name.startswith(("Shards", "Replicas")):  # of which FAISS has no files
            self.index = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(self.index))
            self._search_all_lists()

    def _search_all_lists(self) -> None:
        """`nprobe` is in no file of FAISS's older formats, and a copy may be of a file."""
        stack = [self.index]
        while stack:
            index = stack.pop()
            if isinstance(index, faiss.IndexIVF):
                index.nprobe = LISTS
            else:
                stack += getattr(index, "_inner_indexes", list)()

    def interrupt(self, rng: np.random.Generator) -> None:
        """Interrupt a change at some line."""
        change, after = self._change(rng)
        try:
            interrupted_at(int(rng.integers(1, 150)), change)
        except (Interruption, RuntimeError):
            self.settle(after)
        else:
            self.entries = after
        self.search(rng)

    def settle(self, after: Entries) -> None:
        """After an interruption: all of the change has been made, or nothing."""
        if self.index.ntotal != len(self.entries.ids):
            self.entries = after
        elif len(after.ids) == len(self.entries.ids):  # vectors may have been replaced
            try:
                self._compare(TRAINING[:3], len(after.ids) + 1, self.entries)
            except AssertionError:
                self.entries = after

    def search(self, rng: np.random.Generator) -> None:
        """Searches of k neighbours and of all, for some queries and for one."""
        xq = rng.standard_normal((3, D)).astype(np.float32)
        n = len(self.entries.ids)
        assert self.index.ntotal == n, f"ntotal is {self.index.ntotal}, expected {n}"
        for queries, k in ((xq, int(rng.integers(1, 8))), (xq, n + 2), (xq[:1], int(rng.integers(1, 8)))):
            self._compare(queries, k, self.entries)

    def filtered(self, rng: np.random.Generator) -> None:
        """A search of those that a selector admits; two times, since masks are kept."""
        if "Shards" in self.name and "IDMap" not in self.name:  # selectors are each shard's own
            return
        xq = rng.standard_normal((3, D)).astype(np.float32)
        ids = self.entries.ids
        chosen = np.sort(ids[rng.random(len(ids)) < rng.random()])
        admitted = np.isin(ids, chosen)
        selector = faiss.IDSelectorBatch(chosen)
        if rng.random() < 0.5:
            bounds = sorted(rng.integers(0, 1 + max(ids, default=0), 2).tolist())
            selector, admitted = faiss.IDSelectorRange(*bounds), (ids >= bounds[0]) & (ids < bounds[1])
        for queries in (xq, xq[:1], xq[:1]):
            self._compare(queries, int(rng.integers(1, 8)), self.entries[admitted], selector)

    def _compare(self, xq: np.ndarray, k: int, entries: Entries, selector: faiss.IDSelector | None = None) -> None:
        params = None
        if selector is not None:
            params = faiss.SearchParametersIVF(nprobe=LISTS) if "IVF" in self.name else faiss.SearchParameters()
            if "Refine" in self.name:
                params = faiss.IndexRefineSearchParameters(k_factor=1000.0, base_index_params=params)
            params.sel = selector
        D_found, I = self.index.search(xq, k, params=params)
        queries = self.transformed(xq).astype(np.float64)
        distances = ((queries[:, None] - entries.vectors) ** 2).sum(2)
        if "products" in self.name:
            distances, D_found = -(queries @ entries.vectors.T), -D_found
        n = min(k, len(entries.ids))
        assert (I[:, n:] == -1).all() and (I[:, :n] >= 0).all()
        np.testing.assert_allclose(D_found[:, :n], np.sort(distances, axis=1)[:, :n], rtol=1e-4, atol=1e-4)
        own = {int(i): at for at, i in enumerate(entries.ids)}
        places = np.array([[own[i] for i in row] for row in I[:, :n].tolist()], np.int64).reshape(len(xq), n)
        found = np.take_along_axis(distances, places, axis=1)
        np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :n], rtol=1e-4, atol=1e-4)
        assert all(len(set(row)) == n for row in places.tolist())


class _Chosen:
    """A random generator whose first choice is known."""

    def __init__(self, rng: np.random.Generator, choice: str) -> None:
        self._rng, self._choice = rng, choice

    def choice(self, _: list[str]) -> str:
        return self._choice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)


def interrupted_at(n: int, change: Callable[[], Any]) -> Any:
    """The result of a call; an Interruption is raised before the n-th line of this package that it runs."""
    left = n

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return trace
        if event == "line":
            left -= 1
            if left == 0:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return change()
    finally:
        sys.settrace(before)


def main() -> int:
    """Take steps until there are as many as asked for, or one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, done, started = np.random.default_rng(arguments.seed), 0, time.perf_counter()
    while done < arguments.steps:
        stack, steps = Stack(str(rng.choice(list(STACKS)))), []
        for _ in range(50):
            steps.append((str(rng.choice(Stack.STEPS)), int(rng.integers(1 << 30))))
            try:
                stack.step(*steps[-1])
            except BaseException:
                print(f"{stack.name}: {steps}")
                raise
            done += 1
        if done % 5000 == 0:
            print(f"{done} steps, {time.perf_counter() - started:.0f} s", flush=True)
    print(f"{done} steps, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
