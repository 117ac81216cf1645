"""Where files keep the factor that codebooks were multiplied by."""

import zlib

import faiss
import numpy as np

from .. import _kernels

# Files have no place for the shrinkage but FAISS's range of stored norms, of which there are none: norm_max holds it.
# norm_min is a NaN, which no range has; its free bits say which codebooks are shrunk so. Codebooks that are put in from
# elsewhere have no shrinkage, then.
_NAN, _FREE_BITS = np.uint32(0x7FC00000), np.uint32(0x003FFFFF)


def store_shrinkage(rq: faiss.ResidualQuantizer, shrinkage: float) -> None:
    """Note what the codebooks of a quantizer were multiplied by."""
    rq.norm_min = float(np.array(_NAN | _codebooks_mark(rq)).view(np.float32))
    rq.norm_max = float(shrinkage)


def shrinkage_of(rq: faiss.ResidualQuantizer) -> float:
    """`Quantized.shrinkage`. FAISS's own training sets both ends of the range of norms, `store_shrinkage` only one."""
    if rq.norm_bits or not np.isnan(rq.norm_min) or np.isnan(rq.norm_max):
        return 1.0
    mark = np.array(rq.norm_min, np.float32).view(np.uint32) & _FREE_BITS
    # Release 0.1 left no mark.
    return float(rq.norm_max) if mark in (0, _codebooks_mark(rq)) else 1.0


def _codebooks_mark(rq: faiss.ResidualQuantizer) -> np.uint32:
    """22 bits of a checksum of the codebooks, not all 0."""
    codebooks = _kernels.FaissVector(rq.codebooks, np.float32).rows(1)
    return np.uint32(zlib.crc32(np.ascontiguousarray(codebooks).data)) & _FREE_BITS or np.uint32(1)
