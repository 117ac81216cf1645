"""The quantizers that ``faiss-dpq bench`` measures: makers of empty indexes from d and the bytes a vector.

Each gets all the training vectors that it is given: FAISS's limit of 256 vectors a codeword is lifted.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import faiss
import numpy.typing as npt

from .. import IndexDPQ, IndexIVFDPQ

NLIST = 1024

_NO_LIMIT = 1 << 20  # vectors a codeword
_RESIDUALS = 2048  # a codeword, of all beam entries: RQ clusters beam_size times as many as there are vectors


def _residual_quantizer(d: int, size: int, beam_size: int) -> faiss.Index:
    """FAISS's RQ, trained and encoding with one beam; without norms, so that its bytes are ours."""
    index = faiss.IndexResidualQuantizer(d, size, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_from_LUT)
    _set_up_beam(index.rq, beam_size)
    return index


def _set_up_beam(rq: faiss.ResidualQuantizer, beam_size: int) -> None:
    rq.max_beam_size = beam_size
    rq.use_beam_LUT = 1  # the same codes up to rounding, in half of the time or less
    rq.cp.max_points_per_centroid = _RESIDUALS


# FAISS 1.15 fills no table of norms for these two, and ST_norm_from_LUT aborts the process: codes are decoded instead.
_DECODED = faiss.AdditiveQuantizer.ST_decompress


def _local_search_quantizer(d: int, size: int) -> faiss.Index:
    return faiss.IndexLocalSearchQuantizer(d, size, 8, faiss.METRIC_L2, _DECODED)


def _product_residual_quantizer(d: int, size: int) -> faiss.Index | None:
    """As many sub-vectors as leave each four levels or more, and at least two."""
    fitting = [splits for splits in range(2, max(2, size // 4) + 1) if d % splits == 0 and size % splits == 0]
    if not fitting:
        return None
    splits = max(fitting)
    index = faiss.IndexProductResidualQuantizer(d, splits, size // splits, 8, faiss.METRIC_L2, _DECODED)
    for m in range(splits):
        faiss.downcast_AdditiveQuantizer(index.prq.subquantizer(m)).cp.max_points_per_centroid = _NO_LIMIT
    return index


def _product_quantizer(d: int, size: int) -> faiss.Index | None:
    if d % size:
        return None
    index = faiss.IndexPQ(d, size, 8)
    index.pq.cp.max_points_per_centroid = _NO_LIMIT
    return index


def _fast_scan(d: int, size: int) -> faiss.Index | None:
    return None if d % (2 * size) else faiss.IndexPQFastScan(d, 2 * size, 4)


def _random_bits(d: int, size: int) -> faiss.Index | None:
    """RaBitQ. Of every vector it stores two numbers beside the bits: fewer bytes have no room for these.

    Where a bit for each of d dimensions does not fit, there are as many principal dimensions, turned at random, as fit;
    where more than one bit fits, there are more.
    """
    bits_of = {bits: faiss.IndexRaBitQ(d, faiss.METRIC_L2, bits).code_size for bits in range(1, 10)}
    fitting = [bits for bits, code_size in bits_of.items() if code_size <= size]
    if fitting:
        return _turned(d, d, faiss.IndexRaBitQ(d, faiss.METRIC_L2, max(fitting)))
    n_bytes = size - (bits_of[1] - -(-d // 8))
    return _turned(d, 8 * n_bytes, faiss.IndexRaBitQ(8 * n_bytes)) if n_bytes > 0 else None


def _turned(d: int, d_out: int, index: faiss.Index) -> faiss.Index:
    rotation = faiss.PCAMatrix(d, d_out, 0, True) if d_out < d else faiss.RandomRotationMatrix(d, d)
    turned = faiss.IndexPreTransform(rotation, index)
    turned.referenced_objects = [rotation, index]
    return turned


def _rotated(make: Callable[[int, int], faiss.Index | None], d: int, size: int) -> faiss.Index:
    """OPQ; the rotation pads d to a multiple of the number of sub-vectors."""
    padded = -(-d // size) * size
    pq = make(padded, size)
    rotation = faiss.OPQMatrix(d, size, padded)
    rotation.max_train_points = _NO_LIMIT
    index = faiss.IndexPreTransform(rotation, pq)
    index.referenced_objects = [rotation, pq]
    return index


class _Trained(IndexDPQ):
    """IndexDPQ with arguments of `train`."""

    _arguments: dict[str, Any] | None = None

    def train(self, x: npt.ArrayLike, *args: Any, **arguments: Any) -> None:
        super().train(x, *args, **(self._arguments or {}) | arguments)


def _trained(d: int, size: int, **arguments: Any) -> IndexDPQ:
    index = _Trained(d, size, 8)
    index._arguments = arguments
    return index


def _descent_trained(d: int, size: int) -> faiss.Index | None:
    return _trained(d, size, trainer="sgd") if find_spec("torch") else None


def _best_trained(d: int, size: int) -> faiss.Index:
    index = _trained(d, size, effort="best")
    index.beam_size = 64
    return index


def _trained_for_full_length(d: int, size: int) -> faiss.Index:
    """What the prefixes of IndexDPQ cost."""
    index = _trained(d, size, weights=[0] * (size - 1) + [1])
    index.prefix_weight = 0
    return index


def _inverted_lists(make: Callable[[faiss.Index, int, int], faiss.Index], d: int, size: int) -> faiss.Index:
    coarse = faiss.IndexFlatL2(d)
    index = make(coarse, d, size)
    index.referenced_objects = [coarse]
    index.cp.max_points_per_centroid = _NO_LIMIT
    return index


def _ivf_dpq(d: int, size: int) -> faiss.Index:
    return _inverted_lists(lambda coarse, d, size: IndexIVFDPQ(coarse, d, NLIST, size, 8), d, size)


def _ivf_pq(d: int, size: int) -> faiss.Index | None:
    if d % size:
        return None
    return _inverted_lists(lambda coarse, d, size: faiss.IndexIVFPQ(coarse, d, NLIST, size, 8), d, size)


def _ivf_fast_scan(d: int, size: int) -> faiss.Index | None:
    if d % (2 * size):
        return None
    return _inverted_lists(lambda coarse, d, size: faiss.IndexIVFPQFastScan(coarse, d, NLIST, 2 * size, 4), d, size)


def _ivf_residual_quantizer(d: int, size: int) -> faiss.Index:
    search_type = faiss.AdditiveQuantizer.ST_norm_from_LUT

    def make(coarse: faiss.Index, d: int, size: int) -> faiss.Index:
        return faiss.IndexIVFResidualQuantizer(coarse, d, NLIST, size, 8, faiss.METRIC_L2, search_type)

    index = _inverted_lists(make, d, size)
    _set_up_beam(index.rq, 5)
    return index


#: Makers of empty indexes from the dimension and the bytes a vector; None where the method does not fit them.
METHODS: dict[str, Callable[[int, int], faiss.Index | None]] = {
    "IndexDPQ": lambda d, size: IndexDPQ(d, size, 8),
    "IndexDPQ, sgd": _descent_trained,
    "IndexDPQ, effort best, beam 64": _best_trained,
    "IndexDPQ, full length only": _trained_for_full_length,
    "PQ": _product_quantizer,
    "PQFastScan": _fast_scan,
    "OPQ": partial(_rotated, _product_quantizer),
    "RQ beam 5": lambda d, size: _residual_quantizer(d, size, 5),
    "RQ beam 32": lambda d, size: _residual_quantizer(d, size, 32),
    "LSQ": _local_search_quantizer,
    "PRQ": _product_residual_quantizer,
    "RaBitQ": _random_bits,
    "IVF DPQ": _ivf_dpq,
    "IVF PQ": _ivf_pq,
    "IVF PQFastScan": _ivf_fast_scan,
    "IVF OPQ": partial(_rotated, _ivf_pq),
    "IVF RQ beam 5": _ivf_residual_quantizer,
}

#: Names that `--against` takes besides those of METHODS.
SHORT_NAMES = {"DPQ": "IndexDPQ", "RQ": "RQ beam 5", "IVF RQ": "IVF RQ beam 5"}
