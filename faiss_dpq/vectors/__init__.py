"""Vectors in files, folders and arrays: opened, described, and read some rows at a time.

Every reader of vectors in this package is here: `open_sources` opens what is named, `sample_sources` draws rows evenly,
`read` reads a file whole, `checked_ids` and `read_neighbours` the numbers that go with vectors. None knows an index.
"""

from .ids import Ids, checked_ids, read_neighbours
from .rows import ArrayRows, Description, NotFinite, Source
from .sampling import sample_sources
from .sources import Sources, open_sources, read

__all__ = [
    "ArrayRows",
    "Description",
    "Ids",
    "NotFinite",
    "Source",
    "Sources",
    "checked_ids",
    "open_sources",
    "read",
    "read_neighbours",
    "sample_sources",
]
