"""A plan: the parts that a build consists of, each a range of rows of one source."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..search.selection import Labels
from ..vectors import ArrayRows, Description, Source, Sources, checked_ids, open_sources

ROWS_PER_PART = 500_000


@dataclass(frozen=True)
class Part:
    """A range of rows of one source. It can be pickled; rows of an array go with it, those of a file do not.

    Attributes
    ----------
    number : int
        Parts are numbered from 0 in the order of the sources.
    source : Source
    start, stop : int
        Rows of the source.
    first : int
        Number of the first row among those of all sources.
    description : dict
        What was known of the source when the plan was made.
    ids : array, shape (stop - start,), int64, optional
        By default, ids are the numbers of the rows among those of all sources.
    """

    number: int
    source: Source
    start: int
    stop: int
    first: int
    description: Description = field(repr=False)
    ids: Labels | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"part {self.number} (rows {self.start} to {self.stop} of {self.source.name})"


@dataclass(frozen=True)
class Plan:
    """All parts of some sources, in order.

    Attributes
    ----------
    parts : list of Part
    description : dict
        Sources, rows and ids, as JSON; what two plans must have in common to be one.
    n, d : int
        Number of vectors in all, and of their dimensions.
    ascending : bool
        Whether ids ascend with the rows.
    """

    parts: list[Part]
    description: Description
    n: int
    d: int
    ascending: bool

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __getitem__(self, number: int) -> Part:
        return self.parts[number]


def plan_parts(
    sources: Sources,
    rows_per_part: int = ROWS_PER_PART,
    *,
    ids: npt.ArrayLike | str | os.PathLike[str] | None = None,
    column: str | None = None,
) -> Plan:
    """Cut sources into parts. No vector is read but a few, by which a change of the sources will be noticed.

    Parameters
    ----------
    sources : str, path, array, or a sequence of them
        Files (.npy, .npz, .fvecs, .bvecs, .ivecs, .parquet), folders and globs of files (in the order of their names),
        arrays of shape (n, d).
    rows_per_part : int
        The most rows of a part.
    ids : array or path of an .npy file, shape (n,), integers >= 0, optional
        Of the vectors, in the order of the sources; by default 0, 1, 2, ...
    column : str, optional
        Of parquet and .npz files, the column (array) with the vectors; needed only where there are several.

    Raises
    ------
    ValueError
        If a source is not of vectors, dimensions differ, there are no rows, or the ids do not fit.
    FileNotFoundError
        If there is no such file.
    ModuleNotFoundError
        If there are parquet files, and pyarrow is not installed.

    Warns
    -----
    UserWarning
        If numbers are stored otherwise than as float32, to which they are converted.
    """
    if rows_per_part < 1:
        raise ValueError(f"plan_parts: rows_per_part is {rows_per_part}, expected at least 1")
    opened = open_sources(sources, column)
    n = sum(source.n for source in opened)
    if not n:
        raise ValueError(f"plan_parts: the sources hold no rows: {', '.join(source.name for source in opened)}")
    for source in opened:
        if source.dtype != "float32":
            warnings.warn(f"{source.name}: {source.dtype} is converted to float32", stacklevel=2)
    labels = checked_ids(ids, n, "plan_parts: ids")
    parts: list[Part] = []
    described, first = [], 0
    for source in opened:
        description = source.describe()
        described.append(description)
        for start in range(0, source.n, rows_per_part):
            stop = min(start + rows_per_part, source.n)
            of_part = source.part(start, stop) if isinstance(source, ArrayRows) else source
            own_ids = None if labels is None else labels[first + start : first + stop]
            parts.append(Part(len(parts), of_part, start, stop, first + start, description, own_ids))
        first += source.n
    description = {"sources": described, "rows_per_part": rows_per_part, "n": n, "d": opened[0].d, "ids": _hash(labels)}
    return Plan(parts, description, n, opened[0].d, labels is None or bool((labels[1:] > labels[:-1]).all()))


def _hash(labels: Labels | None) -> str | None:
    return None if labels is None else hashlib.sha256(np.ascontiguousarray(labels, np.int64).data).hexdigest()


def hash_of(description: Description) -> str:
    """What names a description: 16 digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
