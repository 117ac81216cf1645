"""FAISS's wrapper indexes with this package's fast path."""

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
    "IndexIDMap",
    "IndexIDMap2",
    "IndexPreTransform",
    "IndexRefine",
    "IndexRefineFlat",
    "IndexReplicas",
    "IndexShards",
]
