"""Deep Progressive Quantization for FAISS: IndexDPQ stands where faiss.IndexPQ stood."""

from ._kernels import simd_level
from .index import IndexDPQ, SearchParametersDPQ
from .index_ivf import IndexIVFDPQ, SearchParametersIVFDPQ
from .io import (
    clone_index,
    deserialize_index,
    downcast_index,
    read_index,
    serialize_index,
    write_index,
)
from .quantizer import ProgressiveQuantizer
from .training import TrainStats, train_codebooks

__all__ = [
    "IndexDPQ",
    "IndexIVFDPQ",
    "ProgressiveQuantizer",
    "SearchParametersDPQ",
    "SearchParametersIVFDPQ",
    "TrainStats",
    "clone_index",
    "deserialize_index",
    "downcast_index",
    "read_index",
    "serialize_index",
    "simd_level",
    "train_codebooks",
    "write_index",
]
