"""The trained, empty index that all parts are encoded by: which there may be, its bytes, and how it becomes a shard.

A shard is an IndexIVFDPQ, whose lists hold ids, or an IndexIDMap of an IndexDPQ; either may be in an IndexPreTransform.
An IndexIDMap, not an IndexIDMap2: this one's map back from ids takes five times the memory of codes of 8 bytes.
"""

import functools
import hashlib

import faiss
import numpy as np
import numpy.typing as npt

from ..index import IndexDPQ, IndexIVFDPQ
from ..index.io import deserialize_index, serialize_index
from ..index.registry import downcast_index
from ..index.wrappers import IndexIDMap, IndexPreTransform
from ..search.selection import Labels
from .records import Refused

Bytes = npt.NDArray[np.uint8]


def leaf_of(index: faiss.Index) -> IndexDPQ | IndexIVFDPQ:
    """The index that holds the codes, within others."""
    while isinstance(index, IndexPreTransform | IndexIDMap):
        index = index.index
    return index


def bytes_of(trained: faiss.Index) -> bytes:
    """The file of a trained, empty index.

    Raises
    ------
    TypeError
        If it is of a class that cannot be built in shards.
    ValueError
        If it is not trained, or holds vectors.
    """
    trained = downcast_index(trained)
    leaf = trained
    while isinstance(leaf, IndexPreTransform):
        leaf = leaf.index
    if not isinstance(leaf, IndexDPQ | IndexIVFDPQ):
        raise TypeError(
            f"build_shards: trained is an {type(trained).__name__} (of an {type(leaf).__name__}), expected an IndexDPQ "
            "or IndexIVFDPQ, by itself or in an IndexPreTransform"
        )
    if not trained.is_trained or not leaf.is_trained:
        raise ValueError("build_shards: trained is not trained; call train(x) first")
    if leaf.ntotal:
        raise ValueError(f"build_shards: trained holds {leaf.ntotal} vectors, expected none")
    return serialize_index(trained).tobytes()


def hash_of_bytes(data: bytes) -> str:
    """What names a codec: the SHA-256 of its file."""
    return hashlib.sha256(data).hexdigest()


def read_trained(path: str, codec: str) -> faiss.Index:
    """The trained index in a file, made anew.

    Raises
    ------
    Refused
        If its bytes are not those with the hash `codec`.
    """
    with open(path, "rb") as file:
        data = file.read()
    if hash_of_bytes(data) != codec:
        raise Refused(f"{path}: another codec than that of this build, or damaged: its SHA-256 is not {codec}")
    return deserialize_index(np.frombuffer(data, np.uint8))


#: `read_trained` of the last few, for tasks that encode one part after the other in one process.
shared_trained = functools.lru_cache(2)(read_trained)


class Filling:
    """A shard that codes are put into, in the order of their ids."""

    def __init__(self, trained: faiss.Index) -> None:
        self._outer, self._leaf = trained, leaf_of(trained)
        self._ids: list[Labels] = []

    def add(self, codes: Bytes, ids: Labels) -> None:
        """Put codes, shape (n, sa_code_size()), under ids, shape (n,), behind those that are there."""
        if isinstance(self._leaf, IndexIVFDPQ):
            self._leaf.add_sa_codes(codes, ids)
        else:
            self._leaf.add_sa_codes(codes)
            self._ids.append(ids)

    def finished(self) -> faiss.Index:
        """The shard."""
        if isinstance(self._leaf, IndexIVFDPQ):
            self._outer.ntotal = self._leaf.ntotal
            return self._outer
        n, self._leaf.ntotal = self._leaf.ntotal, 0  # FAISS's map of ids is put around empty indexes only
        self._outer.ntotal = 0
        shard = IndexIDMap(self._outer)
        self._leaf.ntotal = self._outer.ntotal = shard.ntotal = n
        faiss.copy_array_to_vector(np.concatenate([np.empty(0, np.int64), *self._ids]), shard.id_map)
        return shard
