"""Vectors that go through transforms first: faiss.IndexPreTransform."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats
from ...search.selection import Labels, selector_of
from ..arguments import require_index
from ..base import Base, RangeResult
from ..changes import completed
from ..registry import downcast_index, stands_for
from ..removal import require_removal
from ..tensors import accepts_tensors, if_any
from .linear import Products
from .selectors import selected
from .wrapper import Wrapper, WrapperOfOne, inner_parameters, stand_in_of


@stands_for(faiss.IndexPreTransform)
class IndexPreTransform(WrapperOfOne, faiss.IndexPreTransform):
    """faiss.IndexPreTransform: vectors go through a chain of faiss.VectorTransform (PCA, OPQ, rotation, norm) first.

    Parameters
    ----------
    transform : faiss.VectorTransform, optional
    index : faiss.Index
        The last argument; an index of transform.d_out dimensions, of this package or FAISS's.
    """

    _settings = ("_untrained_rotations",)
    _products: Products | None = None

    def __init__(self, *args: Any) -> None:
        if args:
            require_index(args[-1], f"{type(self).__name__}: index")
        super().__init__(*args)
        self._keep(args[-1])

    def _forget_derived(self, codebooks: bool) -> None:
        super()._forget_derived(codebooks)
        if codebooks:
            self._products = None

    def _transforms(self) -> list[faiss.VectorTransform]:
        return [self.chain.at(i) for i in range(self.chain.size())]

    @property
    def _untrained_rotations(self) -> list[list[int]]:
        """Place, M, niter and niter_pq of every OPQMatrix that is not trained.

        Files of FAISS make a LinearTransform of it, which cannot be trained.
        """
        transforms = [faiss.downcast_VectorTransform(transform) for transform in self._transforms()]
        return [
            [place, rotation.M, rotation.niter, rotation.niter_pq]
            for place, rotation in enumerate(transforms)
            if isinstance(rotation, faiss.OPQMatrix) and not rotation.is_trained
        ]

    @_untrained_rotations.setter
    def _untrained_rotations(self, rotations: list[list[int]]) -> None:
        transforms = self._transforms()
        for place, M, niter, niter_pq in rotations:
            if not (0 <= place < len(transforms) and 1 <= M <= transforms[place].d_in):
                raise ValueError(f"an OPQMatrix at {place} with M={M}")
            read = faiss.downcast_VectorTransform(transforms[place])
            if type(read) is faiss.LinearTransform and not read.is_trained:
                rotation = faiss.OPQMatrix(read.d_in, M, read.d_out)
                rotation.niter, rotation.niter_pq = niter, niter_pq
                rotation.this.disown()  # the C++ object that was read owns its transforms
                transforms[place] = rotation
        if rotations:
            self.chain.clear()
            for transform in transforms:
                self.chain.push_back(transform)

    def _shell(self) -> Wrapper:
        shell = IndexPreTransform(stand_in_of(self.index))
        for transform in reversed(self._transforms()):
            shell.prepend_transform(transform)
        return shell

    def _prepare_writing(self) -> None:
        for transform in map(faiss.downcast_VectorTransform, self._transforms()):
            # FAISS reads no ITQTransform without a mean: an untrained one gets zeros.
            if isinstance(transform, faiss.ITQTransform) and not transform.is_trained:
                transform.mean.resize(transform.d_in)
        super()._prepare_writing()

    def _apply(self, x: Floats, method: str) -> Floats:
        self._require_trained(method)
        for place, transform in enumerate(self._transforms()):
            x = self._product(place, transform, x)
        return x

    def _product(self, place: int, transform: faiss.VectorTransform, x: Floats) -> Floats:
        if self._products is None:
            self._products = Products()
        return self._products.apply(place, transform, x)

    @accepts_tensors()
    def train(
        self,
        x: npt.ArrayLike,
        numeric_type: int = faiss.Float32,
        *,
        xq_train: npt.ArrayLike | None = None,
        **options: Any,
    ) -> None:
        """Train the transforms, each on what those before it make of x, then the index within, where needed.

        Parameters
        ----------
        x : array, shape (n, d)
        xq_train : array, shape (n_queries, d), optional
            Transformed, and passed to the `train` of the index within, as are all `options`.
        """
        x = self._checked_training(x, numeric_type, xq_train)
        queries = None if xq_train is None else self._checked_vectors(xq_train, "train")
        self._all_or_untrained(lambda: self._train(x, queries, options))

    def _train(self, x: Floats, queries: Floats | None, options: dict[str, Any]) -> None:
        inner, transforms = self.index, self._transforms()
        trained = [transform.is_trained for transform in transforms] + [inner.is_trained]
        for i, transform in enumerate(transforms):
            if all(trained[i:]):
                break
            if not trained[i]:
                transform.train(x)
            x = self._product(i, transform, x)
            queries = None if queries is None else self._product(i, transform, queries)
        if not trained[-1]:
            inner.train(x, **options, **({} if queries is None else {"xq_train": queries}))
        self.is_trained = True

    def _add(self, x: Floats) -> None:
        inner = self._agreeing("add")
        inner.add(self._apply(x, "add"))
        self.ntotal = inner.ntotal

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        inner = self._agreeing("add_with_ids")
        inner.add_with_ids(self._apply(x, "add_with_ids"), ids)
        self.ntotal = inner.ntotal

    def remove_ids(self, x: npt.NDArray[np.int64] | faiss.IDSelector) -> int:
        """Remove the vectors that a selector admits, or of the given ids. Their number."""
        self._check_writable("remove_ids")
        require_removal(x, self._call("remove_ids"))
        inner = self.index
        if not isinstance(inner, Base):
            return super().remove_ids(x)

        def count() -> None:
            self.ntotal = inner.ntotal

        return completed(lambda: inner.remove_ids(x), count)

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another IndexPreTransform with the same transforms behind those of this one.

        Raises
        ------
        RuntimeError
            If the indexes do not fit together. Nothing is moved then.
        """
        self._require_another(otherIndex)
        other = downcast_index(otherIndex)
        self.check_compatible_for_merge(other)
        inner, other_inner = self.index, other.index

        def count() -> None:
            self.ntotal, other.ntotal = inner.ntotal, other_inner.ntotal

        completed(lambda: inner.merge_from(other_inner, add_id), count)

    def check_compatible_for_merge(self, otherIndex: faiss.Index) -> None:
        """Raise a RuntimeError unless vectors of the other index can be moved into this one."""
        super().check_compatible_for_merge(otherIndex)
        self.index.check_compatible_for_merge(downcast_index(otherIndex).index)

    def _check_codes(self, codes: npt.NDArray[np.uint8], method: str) -> None:
        if isinstance(self.index, Base):
            self.index._check_codes(codes, method)

    def _sa_encode(self, x: Floats, codes: npt.NDArray[np.uint8]) -> None:
        self.index.sa_encode(self._apply(x, "sa_encode"), codes)

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        inner = self._agreeing("search")
        return inner.search(self._apply(x, "search"), k, **if_any(self._inner_params(params)))

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        inner = self._agreeing("range_search")
        return inner.range_search(self._apply(x, "range_search"), thresh, **if_any(self._inner_params(params)))

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        transformed = self._apply(x, "search_and_reconstruct")
        D, I, found = self._agreeing("search_and_reconstruct").search_and_reconstruct(
            transformed, k, **if_any(self._inner_params(params))
        )
        found = found.reshape(len(x) * k, transformed.shape[1])
        for transform in reversed(self._transforms()):
            found = transform.reverse_transform(found)
        return D, I, found.reshape(len(x), k, self.d)

    def _inner_params(self, params: faiss.SearchParameters | None) -> faiss.SearchParameters | None:
        if isinstance(params, faiss.SearchParametersPreTransform):
            return selected(self.index, inner_parameters(params, "index_params"), selector_of(params))
        return params
