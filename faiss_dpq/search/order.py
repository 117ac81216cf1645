"""Codes in an order of their own, by which one query's search looks at fewer bytes, and leaves out whole blocks.

Every codebook is halved again and again, so that a codeword's number is a path and near codewords have near numbers.
Vectors with the same first two bits at each of the first levels stand together, by ascending terms: see
cython_kernels/dpq_order.h for the layout, and scan_ordered_impl.h for what is made of it.
"""

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import ProgressiveQuantizer, threads

_LEAST_IN_BUCKET = 768  # vectors, on average: what a bucket costs by itself counts less than what its bits tell
_LEAST_KNOWN = 2  # levels of which bits are known
_PIECE = 256  # blocks: no thread is given a part of so many
_PATH = 8  # bits
_TURNS = 6

Bytes = npt.NDArray[np.uint8]


def order_bytes(levels: int, has_terms: bool) -> int:
    """What an order takes of memory, a vector: about; the last blocks of buckets are not full."""
    return levels + (8 if has_terms else 4) + 1


def order(
    quantizer: ProgressiveQuantizer, packed: Bytes, levels: int, terms: npt.NDArray[np.float32] | None
) -> _kernels.CodeOrder | None:
    """The order of codes.

    Parameters
    ----------
    quantizer : ProgressiveQuantizer
        Of 8 bits a level.
    packed : array, shape (n, code_size), uint8
    levels : int
        That searches compare, 2 to FEW_LEVELS.
    terms : array, shape (n,), float32, optional
        The codes' cross terms, where these count.

    Returns
    -------
    order : CodeOrder or None
        None where there are too few codes.
    """
    known = min(levels, _kernels.ORDER_MOST_KNOWN)
    while known >= _LEAST_KNOWN and _LEAST_IN_BUCKET << 2 * known > len(packed):
        known -= 1
    if known < _LEAST_KNOWN:
        return None
    paths = np.stack([_paths(quantizer.values[level]) for level in range(levels)])
    buckets = np.zeros(len(packed), np.uint32)
    for level in range(known):
        buckets = buckets << np.uint32(2) | (paths[level] >> 6)[packed[:, level]]
    n_buckets = 1 << 2 * known
    sizes = np.bincount(buckets, minlength=n_buckets)
    if terms is None:
        vectors = np.argsort(buckets, kind="stable")
    else:
        vectors = np.argsort(buckets.astype(np.uint64) << np.uint64(32) | _sortable(terms))
    starts = np.zeros(n_buckets + 1, np.uint32)
    np.cumsum(-(-sizes // _kernels.ORDER_BLOCK), out=starts[1:])
    ids = np.full((starts[-1], _kernels.ORDER_BLOCK), np.iinfo(np.uint32).max, np.uint32)
    firsts = np.cumsum(sizes) - sizes  # of every bucket, among the vectors that are sorted
    ids.ravel()[np.arange(len(packed)) + np.repeat(starts[:-1] * _kernels.ORDER_BLOCK - firsts, sizes)] = vectors
    least = np.zeros(len(ids), np.float32) if terms is None else terms[ids[:, 0]]
    bucket_terms = np.where(sizes > 0, least[np.minimum(starts[:-1], len(ids) - 1)], np.float32(np.inf))
    magnitude = 0.0 if terms is None else float(np.abs(terms).max())
    made = _kernels.CodeOrder(
        len(packed), _numbers(paths, known), starts, bucket_terms, least, ids, terms is not None, magnitude
    )
    parts = threads.slices(len(ids), faiss.omp_get_max_threads(), _PIECE)
    threads.run(lambda part: made.fill(packed, terms, part.start, part.stop), [(part,) for part in parts])
    return made


def _paths(codebook: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A path of 8 bits for each of 256 codewords (256, d): sets are halved along the axis that they are longest on."""
    centred = codebook - codebook.mean(axis=0)
    # Coordinates on the principal axes, nearly: some turns of subspace iteration take a hundredth of eigh's time.
    axes = np.random.default_rng(0).standard_normal((len(codebook), _PATH)).astype(np.float32)
    for _ in range(_TURNS):
        axes, _ = np.linalg.qr(centred @ (centred.T @ axes))
    x = axes * np.linalg.norm(centred.T @ axes, axis=0)
    sets = np.arange(len(x))[None]
    while sets.shape[1] > 1:
        spread = x[sets].var(axis=1).argmax(axis=1)
        along = np.take_along_axis(x[sets], spread[:, None, None], axis=2)[:, :, 0]
        sets = np.take_along_axis(sets, along.argsort(axis=1, kind="stable"), axis=1).reshape(2 * len(sets), -1)
    paths = np.empty(len(x), np.uint8)
    paths[sets.ravel()] = np.arange(len(x), dtype=np.uint8)
    return paths


def _numbers(paths: npt.NDArray[np.uint8], known: int) -> npt.NDArray[np.uint8]:
    """The numbers of dpq_order.h: the paths of known levels; of others, the last two bits go to the front."""
    numbers = (paths >> 2 | (paths >> 1 & 1) << 6 | (paths & 1) << 7).astype(np.uint8)
    numbers[:known] = paths[:known]
    return numbers


def _sortable(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Integers in the order of float32 numbers."""
    bits = x.view(np.uint32)
    return (bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))).astype(np.uint64)
