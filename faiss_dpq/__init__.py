"""Deep Progressive Quantization for FAISS: IndexDPQ stands where faiss.IndexPQ stood."""

from ._kernels import simd_level
from .factory import index_factory
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
from .parameter_space import ParameterSpace
from .quantizer import ProgressiveQuantizer
from .training import TrainStats, train_codebooks
from .wrappers import (
    IndexIDMap,
    IndexIDMap2,
    IndexPreTransform,
    IndexRefine,
    IndexRefineFlat,
    IndexReplicas,
    IndexShards,
)

__all__ = [
    "IndexDPQ",
    "IndexIDMap",
    "IndexIDMap2",
    "IndexIVFDPQ",
    "IndexPreTransform",
    "IndexRefine",
    "IndexRefineFlat",
    "IndexReplicas",
    "IndexShards",
    "ParameterSpace",
    "ProgressiveQuantizer",
    "SearchParametersDPQ",
    "SearchParametersIVFDPQ",
    "TrainStats",
    "clone_index",
    "deserialize_index",
    "downcast_index",
    "index_factory",
    "read_index",
    "serialize_index",
    "simd_level",
    "train_codebooks",
    "write_index",
]
