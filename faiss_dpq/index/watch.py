"""What of FAISS's objects in memory is compared before a search, to notice that one has changed.

An object's members stand in the order of their declarations, those of its base classes first. So from the object's
address to the end of one of its last members, everything that the getters of those before it return is in between.
"""

from typing import Any

import faiss

Span = tuple[int, int, int, int]  # as _kernels.Watch takes them: address, bytes, pieces, distance

_SAMPLES = 64  # words compared of an array: each is a cache miss, together a fiftieth of a short search
_VECTOR_BYTES = 16  # of a std::vector: begin and end


def up_to(faiss_object: Any, member: int, n_bytes: int = _VECTOR_BYTES) -> Span:
    """An object's memory as far as a member of n_bytes at address `member`, included."""
    begin = int(faiss_object.this)
    return begin, member + n_bytes - begin, 1, 0


def sample(vector: faiss.FloatVector | faiss.UInt8Vector, item_bytes: int) -> Span:
    """Evenly spaced words of a C++ vector's contents."""
    n_words = vector.size() * item_bytes // 4
    n = min(_SAMPLES, n_words)
    return int(vector.data()), 4, n, 4 * (n_words // n)
