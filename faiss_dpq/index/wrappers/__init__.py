"""FAISS's wrapper indexes with this package's fast path: one file a wrapper."""

from .id_map import IndexIDMap, IndexIDMap2
from .pre_transform import IndexPreTransform
from .refine import IndexRefine, IndexRefineFlat
from .row_scale import IndexRowwiseMinMax, IndexRowwiseMinMaxFP16
from .shards import IndexReplicas, IndexShards

__all__ = [
    "IndexIDMap",
    "IndexIDMap2",
    "IndexPreTransform",
    "IndexRefine",
    "IndexRefineFlat",
    "IndexReplicas",
    "IndexRowwiseMinMax",
    "IndexRowwiseMinMaxFP16",
    "IndexShards",
]
