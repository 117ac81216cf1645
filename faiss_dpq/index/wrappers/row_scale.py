"""Codes of vectors whose values are first scaled to [0, 1], row by row: faiss.IndexRowwiseMinMax."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats
from ...search.selection import Labels
from ..arguments import require_index
from ..base import Base, RangeResult
from ..registry import stands_for
from ..tensors import accepts_tensors
from .wrapper import WrapperOfOne


class _RowwiseMinMax(WrapperOfOne):
    """What the two classes share. A codec, as FAISS's: it trains, encodes and decodes, and stores nothing."""

    _scale_type: npt.DTypeLike  # of the two numbers before every code: the row's width, and its least value

    def __init__(self, index: faiss.Index) -> None:
        require_index(index, f"{type(self).__name__}: index")
        super().__init__(index)
        self._keep(index)

    def _scaled(self, x: Floats) -> tuple[Floats, npt.NDArray[Any]]:
        """Rows between 0 and 1, and the width and the least value of each as they are stored."""
        least = x.min(axis=1)
        scales = np.stack([x.max(axis=1) - least, least], axis=1).astype(self._scale_type)
        width, least = scales.astype(np.float32).T
        width = np.where(width == 0, np.float32(1), width)
        return (x - least[:, None]) / width[:, None], scales

    @accepts_tensors()
    def train(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32, **options: Any) -> None:
        """Train the index within, which gets all `options`, on the scaled rows."""
        x = self._checked_training(x, numeric_type, options.get("xq_train"))

        def train() -> None:
            self.index.train(self._scaled(x)[0], **options)
            self.is_trained = True

        self._all_or_untrained(train)

    def _sa_encode(self, x: Floats, codes: npt.NDArray[np.uint8]) -> None:
        scaled, scales = self._scaled(x)
        codes[:] = np.hstack([scales.view(np.uint8), self.index.sa_encode(scaled)])

    def _check_codes(self, codes: npt.NDArray[np.uint8], method: str) -> None:
        if isinstance(self.index, Base):
            self.index._check_codes(codes[:, 2 * np.dtype(self._scale_type).itemsize :], method)

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        raise self._not_searched()

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        raise self._not_searched()

    def _not_searched(self) -> RuntimeError:
        return RuntimeError(f"{type(self).__name__}: it encodes and decodes vectors, and cannot be searched")


@stands_for(faiss.IndexRowwiseMinMax)
class IndexRowwiseMinMax(_RowwiseMinMax, faiss.IndexRowwiseMinMax):
    """faiss.IndexRowwiseMinMax: before every code stand the row's width and least value in float32.

    Parameters
    ----------
    index : faiss.Index
        Encodes the scaled rows.
    """

    _scale_type = np.float32


@stands_for(faiss.IndexRowwiseMinMaxFP16)
class IndexRowwiseMinMaxFP16(_RowwiseMinMax, faiss.IndexRowwiseMinMaxFP16):
    """faiss.IndexRowwiseMinMaxFP16: before every code stand the row's width and least value in float16.

    Parameters
    ----------
    index : faiss.Index
        Encodes the scaled rows.
    """

    _scale_type = np.float16
