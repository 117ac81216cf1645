"""Results compared again by a second, more exact index: faiss.IndexRefine and IndexRefineFlat."""

import itertools
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats
from ...search.flat import MISSING
from ...search.selection import Labels, selector_of
from ..arguments import require_index
from ..base import RangeResult
from ..registry import stands_for
from ..tensors import accepts_tensors, if_any
from .selectors import selected
from .wrapper import Wrapper, inner_parameters, stand_in_of

_RECONSTRUCTED_BYTES = 16 << 20  # of vectors that refinement holds at a time


@stands_for(faiss.IndexRefine)
class IndexRefine(Wrapper, faiss.IndexRefine):
    """faiss.IndexRefine: what one index finds is compared again by a second, more exact one.

    Its search parameters are faiss.IndexRefineSearchParameters: `k_factor`, at least 1, and `base_index_params` for the
    searched index. Distances are the refining index's.

    Parameters
    ----------
    base_index, refine_index : faiss.Index
        The first is searched for k * k_factor vectors; the second one's distances sort them.
    """

    def __init__(self, base_index: faiss.Index, refine_index: faiss.Index) -> None:
        for name, index in (("base_index", base_index), ("refine_index", refine_index)):
            require_index(index, f"{type(self).__name__}: {name}")
        super().__init__(base_index, refine_index)
        self._keep(base_index)
        self._keep(refine_index)

    _pointers = (("base_index", "own_fields"), ("refine_index", "own_refine_index"))

    def _shell(self) -> Wrapper:
        base = stand_in_of(self.base_index)
        flat = isinstance(self, IndexRefineFlat)
        shell: Any = IndexRefineFlat(base) if flat else IndexRefine(base, stand_in_of(self.refine_index))
        shell.k_factor = self.k_factor
        return shell  # type: ignore[no-any-return]

    @property
    def base_index(self) -> faiss.Index:
        """The index that is searched, as the Python object that was put there."""
        return self._python_object(super().base_index)

    @base_index.setter
    def base_index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexRefine.base_index, index)

    @property
    def refine_index(self) -> faiss.Index:
        """The index that refines, as the Python object that was put there."""
        return self._python_object(super().refine_index)

    @refine_index.setter
    def refine_index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexRefine.refine_index, index)

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.base_index, self.refine_index]

    @accepts_tensors()
    def train(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32, **options: Any) -> None:
        """Train the searched index, which gets all `options`, then the refining one."""
        x = self._checked_training(x, numeric_type, options.get("xq_train"))

        def train() -> None:
            self.base_index.train(x, **options)
            self.refine_index.train(x)
            self.is_trained = True

        self._all_or_untrained(train)

    def _add(self, x: Floats) -> None:
        self._require_trained("add")
        self._require_equal_counts("add")
        self.base_index.add(x)
        self.refine_index.add(x)
        self.ntotal = self.refine_index.ntotal

    def _sa_encode(self, x: Floats, codes: npt.NDArray[np.uint8]) -> None:
        codes[:] = np.hstack([self.base_index.sa_encode(x), self.refine_index.sa_encode(x)])

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        self._require_trained("search")
        base_params, k_factor = self._refinement(params, "search")
        k_base = int(np.float32(k) * np.float32(k_factor))
        if k_base < k:
            raise RuntimeError(f"{self._call('search')}: 'k_base >= k' failed: k_factor is {k_factor}")
        _, candidates = self.base_index.search(x, k_base, **if_any(base_params))
        worst = self._missing()
        refined = np.where(candidates < 0, worst, self._refined(x, candidates))
        order = np.lexsort((candidates, np.copysign(1, worst) * refined))[:, :k]
        return np.take_along_axis(refined, order, axis=1), np.take_along_axis(candidates, order, axis=1)

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        """Of all vectors within thresh * k_factor by the searched index, those within thresh by the refining one."""
        self._require_trained("range_search")
        base_params, k_factor = self._refinement(params, "range_search")
        lims, _, I = self.base_index.range_search(x, thresh * k_factor, **if_any(base_params))
        parts = [I[None, begin:end] for begin, end in itertools.pairwise(lims)]
        refined = [self._refined(x[q : q + 1], part)[0] for q, part in enumerate(parts)]
        D = np.concatenate([np.empty(0, np.float32), *refined])
        near = thresh < D if self.metric_type == faiss.METRIC_INNER_PRODUCT else thresh > D
        kept_before = np.concatenate([[0], np.cumsum(near)]).astype(lims.dtype)
        return kept_before[lims], D[near], I[near]

    def _require_equal_counts(self, method: str) -> None:
        counts = {"base_index": self.base_index.ntotal, "refine_index": self.refine_index.ntotal}
        self._require_agreement(method, counts)

    def _refinement(self, params: faiss.SearchParameters | None, method: str) -> tuple[Any, float]:
        """The searched index's parameters, and k_factor."""
        self._require_equal_counts(method)
        if params is None:
            return None, self.k_factor
        if not isinstance(params, faiss.IndexRefineSearchParameters):
            raise RuntimeError(
                f"{type(self).__name__}.{method}: IndexRefine params have incorrect type: {type(params).__name__}, "
                "expected IndexRefineSearchParameters"
            )
        base_params = inner_parameters(params, "base_index_params")
        return selected(self.base_index, base_params, selector_of(params)), params.k_factor

    def _missing(self) -> np.float32:
        return -MISSING if self.metric_type == faiss.METRIC_INNER_PRODUCT else MISSING

    def _refined(self, x: Floats, candidates: Labels) -> Floats:
        """The refining index's distances of queries, shape (n, d), to vectors, shape (n, k); undefined for ids < 0."""
        refine_index = self.refine_index
        candidates = np.ascontiguousarray(candidates)
        distances = np.zeros(candidates.shape, np.float32)
        if not candidates.size:
            return distances
        if isinstance(refine_index, faiss.IndexFlat):
            pointers = (faiss.swig_ptr(distances), faiss.swig_ptr(candidates))
            refine_index.compute_distance_subset(len(x), faiss.swig_ptr(x), candidates.shape[1], *pointers)
            return distances
        try:
            distance_to = refine_index.get_distance_computer()
        except RuntimeError:
            # FAISS has none for many classes, additive quantizers without stored norms (IndexDPQ) among them.
            return self._distances_to_reconstructions(x, candidates)
        for i in range(len(x)):
            distance_to.set_query(faiss.swig_ptr(x[i]))
            found = np.flatnonzero(candidates[i] >= 0)
            distances[i, found] = [distance_to(id) for id in candidates[i, found].tolist()]
        return distances

    def _distances_to_reconstructions(self, x: Floats, candidates: Labels) -> Floats:
        distances = np.zeros(candidates.shape, np.float32)
        queries, places = np.nonzero(candidates >= 0)
        step = max(1, _RECONSTRUCTED_BYTES // (4 * self.d))
        for start in range(0, len(queries), step):
            part = queries[start : start + step], places[start : start + step]
            vectors, xq = self.refine_index.reconstruct_batch(candidates[part]), x[part[0]]
            if self.metric_type == faiss.METRIC_INNER_PRODUCT:
                distances[part] = np.einsum("nd,nd->n", xq, vectors)
            else:
                differences = xq - vectors
                distances[part] = np.einsum("nd,nd->n", differences, differences)
        return distances


@stands_for(faiss.IndexRefineFlat)
class IndexRefineFlat(IndexRefine, faiss.IndexRefineFlat):
    """faiss.IndexRefineFlat: what an index finds is compared again with the vectors themselves.

    Parameters
    ----------
    base_index : faiss.Index
        Searched for k * k_factor vectors.
    xb : SWIG pointer to float, optional
        The vectors that base_index holds already; without it, it must be empty.
    """

    def __init__(self, base_index: faiss.Index, *xb: Any) -> None:
        require_index(base_index, f"{type(self).__name__}: base_index")
        super(IndexRefine, self).__init__(base_index, *xb)
        self._keep(base_index)
