"""Parameters of one search of inverted lists."""

from dataclasses import dataclass
from typing import Any

import faiss

from ..search.coarse import Coarse


class SearchParametersIVFDPQ(faiss.SearchParametersIVF):
    """Parameters of one search of an IndexIVFDPQ: faiss.SearchParametersIVF's, and those of SearchParametersDPQ.

    Parameters
    ----------
    levels : int
        Compare only this many levels of every code; 0 means the index's own `levels`.
    coarse_levels, k_factor : int and float, optional
        As in SearchParametersDPQ.
    max_nprobe : int
        Lists that a query probes at most where `ensure_topk_full` makes it go on; 0: as many as there are.
    **parameters
        Of faiss.SearchParametersIVF: `nprobe` (1 unless given), `max_codes`, `sel`, `quantizer_params`, and
        `ensure_topk_full`: a query whose `nprobe` lists have fewer than k vectors that `sel` admits probes further
        ones, in the order of the coarse quantizer, until they have k.
    """

    levels = 0
    coarse_levels: int | None = None
    k_factor: float | None = None
    max_nprobe = 0

    def __init__(
        self,
        levels: int = 0,
        coarse_levels: int | None = None,
        k_factor: float | None = None,
        max_nprobe: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(**parameters)
        self.levels, self.coarse_levels, self.k_factor = levels, coarse_levels, k_factor
        self.max_nprobe = max_nprobe


@dataclass(frozen=True)
class ListSearch:
    """What the parameters of one search come to."""

    nprobe: int
    max_codes: int
    levels: int
    coarse: Coarse | None
    selector: faiss.IDSelector | None = None
    quantizer_params: faiss.SearchParameters | None = None
    ensure_topk_full: bool = False
    max_nprobe: int = 0
    max_empty_result_buckets: int = 0
