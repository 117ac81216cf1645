"""Stored codes taken out, moved and overwritten in place. What is derived from them follows, and is not made anew.

Each change of FAISS's memory is one call of the kernels, which no interrupt divides. Nothing derived counts as true
meanwhile: after an interrupt in between, the next search derives all anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import _kernels
from .derived import Bytes, DerivedCodes
from .selection import Labels

#: A function of a compiled module, and its arguments.
Step = tuple[Any, ...]


class StoredCodes:
    """The codes of one index, to be changed.

    Parameters
    ----------
    codes : FaissVector
    code_size, version : int
        Of the index.
    derived : DerivedCodes of the index
    """

    def __init__(
        self, codes: _kernels.FaissVector, code_size: int, version: int, derived: Iterable[DerivedCodes]
    ) -> None:
        self._codes, self._code_size, self._version = codes, code_size, version
        self._derived = list(derived)

    def _rows(self) -> Bytes:
        return self._codes.rows(self._code_size)

    def remove(self, places: Labels, more: Iterable[Step]) -> None:
        """Take the codes at ascending places out: those behind move up. `more` steps belong to the same change."""
        n = len(self._rows()) - len(places)
        self._shorten(lambda rows: (_kernels.close_gaps, rows, places), n, more, places, True)

    def fill(self, holes: Labels, fillers: Labels, n: int, more: Iterable[Step]) -> None:
        """Put the codes at the places `fillers` into `holes`, and keep the first n. `more`: as for `remove`."""
        self._shorten(lambda rows: (_kernels.copy_rows, rows, holes, fillers), n, more, holes, False)

    def _shorten(
        self, step: Callable[[list[Any]], Step], n: int, more: Iterable[Step], touched: Labels, behind: bool
    ) -> None:
        views = [(each, each.given_up(self._codes, self._version)) for each in self._derived]
        arrays = [array for _, view in views if view is not None for array in (view.bins, view.terms)]
        rows = [self._rows(), *(array for array in arrays if array is not None)]
        _kernels.in_one_step(step(rows), (self._codes.resize, n * self._code_size), *more)
        for each, view in views:
            if view is not None:
                each.follow(view, self._rows(), self._version, touched, behind)

    def replace(self, places: Labels, packed: Bytes) -> None:
        """Overwrite the codes at ascending places by others, shape (n, code_size)."""
        views = [(each, each.given_up(self._codes, self._version)) for each in self._derived]
        _kernels.in_one_step((_kernels.write_rows, [self._rows()], places, [packed]))
        for each, view in views:
            if view is not None:
                each.replace(view, self._rows(), self._version, places)
