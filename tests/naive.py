"""What the kernels must equal, as plainly as numpy says it."""

import struct

import faiss
import numpy as np

from faiss_dpq import _kernels

FLT_MAX = np.finfo(np.float32).max
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def idx(array):
    """The bytes of an idx file, the format of MNIST and Fashion-MNIST."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def random_codebooks(rng, M, K, d, offset=0.0):
    """Codebooks that shrink from level to level as residual codebooks do; `offset` moves the data from the origin."""
    codebooks = rng.standard_normal((M, K, d)) * 0.7 ** np.arange(M)[:, None, None]
    codebooks[0] += offset
    return codebooks.astype(np.float32)


def decode(codebooks, codes):
    """Reconstructions in float64; codes may be prefixes."""
    return sum(codebooks[l].astype(np.float64)[codes[:, l]] for l in range(codes.shape[1]))


def beam_search(codebooks, x, beam_size, prefix_weight=0, parallel_weight=0, whole=None):
    """Codes of one vector x: the beam_size best prefixes are kept at every level (float64)."""
    x = x.astype(np.float64)
    direction = x if whole is None else whole.astype(np.float64)
    direction = direction / (np.linalg.norm(direction) or 1)

    def error(residual):
        return (residual**2).sum() + parallel_weight * (direction @ residual) ** 2

    beam = [((), x, 0.0)]
    for level, codebook in enumerate(codebooks.astype(np.float64)):
        extended = [
            (
                error(residual - c) + debt,
                (*code, k),
                residual - c,
                debt + prefix_weight * error(residual - c),
            )
            for code, residual, debt in beam
            for k, c in enumerate(codebook)
        ]
        extended.sort(key=lambda entry: entry[0])
        width = 1 if level + 1 == len(codebooks) else beam_size
        beam = [entry[1:] for entry in extended[:width]]
    return beam[0][0]


def pack(codes, nbits):
    """FAISS's packing: level l in bits l * nbits ..., lowest bit first."""
    n, M = codes.shape
    bits = (codes[:, :, None].astype(np.int64) >> np.arange(nbits)) & 1
    bits = bits.reshape(n, M * nbits).astype(np.uint8)
    return np.packbits(bits, axis=1, bitorder="little")


def mask(members):
    """A mask of the kernels, of an array of bools."""
    bits = np.zeros(-(-len(members) // 64), np.uint64)
    packed = np.packbits(members, bitorder="little")
    bits.view(np.uint8)[: len(packed)] = packed
    return _kernels.Mask(bits, len(members))


def scan(tables, constants, terms, codes, ids, k, K, inner_product=False):
    """The k smallest (terms + tables[...]) + constants, added in float32 as the kernel adds; ties to the lower id."""
    nq = len(tables)
    D = np.full((nq, k), np.finfo(np.float32).max, np.float32)
    I = np.full((nq, k), -1, np.int64)
    for q in range(nq):
        total = terms.copy()
        for level in range(codes.shape[1]):
            total = total + tables[q, level * K + codes[:, level]]
        total = total + constants[q]
        total = total if inner_product else np.maximum(total, 0)
        order = np.lexsort((ids, total))[:k]
        D[q, : len(order)] = total[order]
        I[q, : len(order)] = ids[order]
    return D, I


def search(codebooks, codes, xq, k, inner_product=False, members=None):
    """Distances of queries to reconstructions in float64, and the k best."""
    x = decode(codebooks, codes)
    xq = xq.astype(np.float64)
    all_D = -(xq @ x.T) if inner_product else ((xq[:, None] - x[None]) ** 2).sum(2)
    if members is not None:
        all_D[:, ~members] = np.inf
    order = np.argsort(all_D, axis=1, kind="stable")[:, :k]
    D = np.take_along_axis(all_D, order, axis=1)
    return (
        (-D if inner_product else D),
        np.where(np.isinf(D), -1, order),
        (-all_D if inner_product else all_D),
    )
