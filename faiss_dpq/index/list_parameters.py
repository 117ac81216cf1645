"""Parameters of one search of inverted lists."""

from typing import Any

import faiss


class SearchParametersIVFDPQ(faiss.SearchParametersIVF):
    """Parameters of one search of an IndexIVFDPQ: faiss.SearchParametersIVF's, and those of SearchParametersDPQ.

    Parameters
    ----------
    levels : int
        Compare only this many levels of every code; 0 means the index's own `levels`.
    coarse_levels, k_factor : int and float, optional
        As in SearchParametersDPQ.
    **parameters
        Of faiss.SearchParametersIVF: `nprobe` (1 unless given), `max_codes`, `sel`, `quantizer_params`.
    """

    levels = 0
    coarse_levels: int | None = None
    k_factor: float | None = None

    def __init__(
        self, levels: int = 0, coarse_levels: int | None = None, k_factor: float | None = None, **parameters: Any
    ) -> None:
        super().__init__(**parameters)
        self.levels, self.coarse_levels, self.k_factor = levels, coarse_levels, k_factor
