"""Linear transforms of vectors, whatever vectors come with them.

FAISS's products depend in their last bits on how many vectors it is given (on AMD's processors; on others, only whether
it is one): a vector would get one code by itself and another in a batch, and what is built in parts would not be what
is built in one go.
"""

from __future__ import annotations

import faiss
import numpy as np

from ... import _kernels
from ...codec import Floats, threads

_SHAPE = tuple(getattr(faiss.LinearTransform, name).fget for name in ("d_in", "d_out", "have_bias"))
_WORTH_A_THREAD = 1 << 22  # multiplications; several times what it costs to start a task


class LinearProduct:
    """A trained faiss.LinearTransform by our own kernels: x A^T + b."""

    def __init__(self, transform: faiss.LinearTransform) -> None:
        self._address = int(transform.this)
        self._d_out = transform.d_out
        matrix = _kernels.FaissVector(transform.A, np.float32)
        vectors = [(matrix, transform.d_in)]
        self._panels = _kernels.pack_panels(matrix.rows(transform.d_in))
        self._bias = np.zeros(len(self._panels) * _kernels.PANEL, np.float32)
        if transform.have_bias:
            bias = _kernels.FaissVector(transform.b, np.float32)
            vectors.append((bias, 1))
            self._bias[: self._d_out] = bias.rows(1)[:, 0]
        self._unchanged = _kernels.Unchanged(
            [vector.sampled(width) for vector, width in vectors], [(transform, get) for get in _SHAPE]
        )

    def is_of(self, transform: faiss.LinearTransform) -> bool:
        """Whether this is what it was made of."""
        return int(transform.this) == self._address and self._unchanged.holds()

    def apply(self, x: Floats) -> Floats:
        """Of vectors (n, d_in): shape (n, d_out)."""
        out = np.empty((len(x), len(self._bias)), np.float32)

        def multiply(part: slice) -> None:
            _kernels.linear(x[part], self._panels, self._bias, 1.0, out[part])

        threads.run_slices(multiply, len(x), x.size * self._d_out // _WORTH_A_THREAD)
        return np.ascontiguousarray(out[:, : self._d_out])


class Products:
    """What was made of the linear transforms of a chain, kept for as long as they are the same."""

    def __init__(self) -> None:
        self._known: dict[int, LinearProduct] = {}

    def apply(self, place: int, transform: faiss.VectorTransform, x: Floats) -> Floats:
        """As `transform.apply(x)`; the transform's place in the chain tells it from others."""
        if not transform.is_trained or x.shape[1] != transform.d_in:
            return transform.apply(x)  # which refuses it
        transform = faiss.downcast_VectorTransform(transform)
        if isinstance(transform, faiss.ITQTransform):
            x = x - faiss.vector_to_array(transform.mean)
            faiss.normalize_L2(x)
            transform = transform.pca_then_itq
        if not isinstance(transform, faiss.LinearTransform) or not _is_whole(transform):
            return transform.apply(x)
        known = self._known.get(place)
        if known is None or not known.is_of(transform):
            known = self._known[place] = LinearProduct(transform)
        return known.apply(x)


def _is_whole(transform: faiss.LinearTransform) -> bool:
    """Whether it has all the numbers that it should have."""
    whole = transform.A.size() == transform.d_in * transform.d_out
    return whole and (not transform.have_bias or transform.b.size() == transform.d_out)
