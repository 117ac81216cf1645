"""What is known of inverted lists from search to search."""

import functools
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np

from .. import _kernels
from ..codec import Floats
from ..search import lists as scan
from ..search.centres import NearestCentres

_FLAT = faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP


@dataclass
class KnownLists:
    """What searches need besides the codes in the lists, and what shows whether it is still true."""

    this: Any
    version: int
    unchanged: _kernels.Unchanged
    coarse: faiss.Index
    fingerprint: tuple[Any, ...] | None  # of a coarse quantizer whose vectors are not at hand
    centres: Floats
    reader: _kernels.ListReader | None  # of a faiss.ArrayInvertedLists
    derived: dict[int, scan.DerivedLists] = field(default_factory=dict)  # by levels
    removed: int = 0  # vectors, since something was derived of them

    @functools.cached_property
    def nearest(self) -> NearestCentres | None:
        """Finds the lists of vectors; None if the coarse quantizer is not a flat one."""
        coarse = self.coarse
        if type(coarse) not in _FLAT or coarse.metric_type not in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
            return None
        centres = np.empty((coarse.ntotal, coarse.d), np.float32)
        coarse.reconstruct_n(0, coarse.ntotal, centres)  # given, since faiss.contrib.torch_utils would return a tensor
        return NearestCentres(centres, coarse.metric_type)

    def has_room(self, ntotal: int, bytes_per_vector: float, *more: scan.DerivedLists) -> bool:
        """Whether what is derived, and more, may be kept. Of removed vectors, too, memory is held."""
        most = sum(derived.most_per_vector for derived in (*self.derived.values(), *more))
        return most * (ntotal + self.removed) <= bytes_per_vector * ntotal
