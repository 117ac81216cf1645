"""What tools of faiss.contrib need to know of DPQ: how a description names it, and how its codes are decoded.

Those tools ask for an index's exact class. Each function here takes the tool that stands in FAISS, and returns one that
knows DPQ beside all that it knew.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats
from .flat import IndexDPQ
from .ivf import IndexIVFDPQ
from .registry import downcast_index

_CODE = re.compile(r"DPQ([0-9]+)(?:x([0-9]+))?(?:np)?")


def code_size_after(get_code_size: Callable[[int, str], int]) -> Callable[[int, str], int]:
    """faiss.contrib.factory_tools.get_code_size: a DPQ code takes the bytes of the PQ code of the same numbers."""

    @functools.wraps(get_code_size)
    def code_size(d: int, indexkey: str) -> int:
        return get_code_size(d, _CODE.sub(lambda code: f"PQ{code[1]}x{code[2] or 8}", indexkey))

    return code_size


def reverse_factory_after(reverse_index_factory: Callable[[faiss.Index], str]) -> Callable[[faiss.Index], str]:
    """faiss.contrib.factory_tools.reverse_index_factory: the description that an index is made from."""

    @functools.wraps(reverse_index_factory)
    def description(index: faiss.Index) -> str:
        index = downcast_index(index)
        if isinstance(index, IndexDPQ):
            return f"DPQ{index.rq.M}x{index._nbits}"
        if isinstance(index, IndexIVFDPQ):
            lists = faiss.IndexIVFFlat(index.quantizer, index.d, index.nlist)
            coarse = reverse_index_factory(lists).removesuffix(",Flat")
            return f"{coarse},DPQ{index.rq.M}x{index._nbits}"
        return reverse_index_factory(index)

    return description


def block_computer_after(block_computer: type[Any]) -> type[Any]:
    """The class BlockComputer of faiss.contrib.big_batch_search, which decodes and searches one list at a time."""

    class BlockComputer(block_computer):  # type: ignore[misc]
        def __init__(self, index: faiss.Index, method: str = "knn_function", **functions: Any) -> None:
            index = downcast_index(index)
            if not isinstance(index, IndexIVFDPQ):
                super().__init__(index, method, **functions)
                return
            if index.metric_type == faiss.METRIC_INNER_PRODUCT and index.by_residual:
                raise RuntimeError("big_batch_search: codes of residuals are searched with METRIC_L2 only")
            plain = faiss.IndexIVFFlat(faiss.IndexFlat(index.d), index.d, 1)
            super().__init__(plain, method, **functions)
            self.index = index
            self.by_residual = bool(index.by_residual)
            self.index_help = IndexDPQ.from_codebooks(index.codebooks, index.metric_type)
            self.decode_func = None if method == "index" else functools.partial(_decoded, index)

    return BlockComputer


def _decoded(index: IndexIVFDPQ, codes: npt.NDArray[np.uint8]) -> Floats:
    quantizer = index.residual_quantizer
    return quantizer.decode(_kernels.unpack_codes(np.ascontiguousarray(codes), quantizer.M, quantizer.nbits))
