"""Deep Progressive Quantization for FAISS: IndexDPQ stands where faiss.IndexPQ stood."""

from typing import TYPE_CHECKING, Any

from . import requirements as _requirements  # first, since it says what is wrong with the FAISS that is installed
from ._kernels import simd_level
from .codec import ProgressiveQuantizer
from .index import IndexDPQ, IndexIVFDPQ, SearchParametersDPQ, SearchParametersIVFDPQ
from .index.factory import index_factory
from .index.installation import install, uninstall
from .index.io import (
    clone_index,
    deserialize_index,
    read_index,
    serialize_index,
    write_index,
)
from .index.parameters import ParameterSpace
from .index.registry import downcast_index
from .index.tuning import tune_coarse
from .index.wrappers import (
    IndexIDMap,
    IndexIDMap2,
    IndexPreTransform,
    IndexRefine,
    IndexRefineFlat,
    IndexReplicas,
    IndexRowwiseMinMax,
    IndexRowwiseMinMaxFP16,
    IndexShards,
)
from .search.selection import Filter
from .training import Effort, TrainStats, registry, train_codebooks

if TYPE_CHECKING:
    from .lab.suggest import suggest
else:

    def __getattr__(name: str) -> Any:
        # Loaded when it is asked for: what measures is no part of an index.
        if name == "suggest":
            from .lab.suggest import suggest

            return suggest
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"


# `train(x, trainer="sgd")` works without an import of faiss_dpq.nn; torch is loaded then, and not before.
registry.announce("sgd", module="faiss_dpq.nn.unlabelled")
del registry, _requirements

__all__ = [
    "Effort",
    "Filter",
    "IndexDPQ",
    "IndexIDMap",
    "IndexIDMap2",
    "IndexIVFDPQ",
    "IndexPreTransform",
    "IndexRefine",
    "IndexRefineFlat",
    "IndexReplicas",
    "IndexRowwiseMinMax",
    "IndexRowwiseMinMaxFP16",
    "IndexShards",
    "ParameterSpace",
    "ProgressiveQuantizer",
    "SearchParametersDPQ",
    "SearchParametersIVFDPQ",
    "TrainStats",
    "__version__",
    "clone_index",
    "deserialize_index",
    "downcast_index",
    "index_factory",
    "install",
    "read_index",
    "serialize_index",
    "simd_level",
    "suggest",
    "train_codebooks",
    "tune_coarse",
    "uninstall",
    "write_index",
]
