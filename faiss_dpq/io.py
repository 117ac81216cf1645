"""Reading, writing and copying indexes: FAISS's functions, giving back this package's classes.

The files are FAISS's own: a stock faiss.read_index opens what write_index wrote.
"""

import os
import tempfile
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .index import MAX_LEVELS, IndexDPQ
from .index_ivf import IndexIVFDPQ


def downcast_index(index: faiss.Index) -> faiss.Index:
    """The index as its own class: an IndexDPQ or IndexIVFDPQ for FAISS's residual quantizers that it can search.

    Parameters
    ----------
    index : faiss.Index
        The result shares its C++ object, so that both see what is added to either.

    Returns
    -------
    index : faiss.Index
        An IndexDPQ if `index` is a faiss.IndexResidualQuantizer whose levels have 1 to 12 bits each, the same number
        for all, and whose metric is L2 or inner product; an IndexIVFDPQ if it is such a faiss.IndexIVFResidualQuantizer
        without norms in its codes; else what faiss.downcast_index returns.
    """
    if isinstance(index, IndexDPQ | IndexIVFDPQ):
        return index
    specific = index if type(index) is not faiss.Index else faiss.downcast_index(index)
    if not isinstance(specific, faiss.IndexResidualQuantizer | faiss.IndexIVFResidualQuantizer):
        return specific
    nbits = set(faiss.vector_to_array(specific.rq.nbits).tolist())
    metrics = (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)
    fits = len(nbits) == 1 and max(nbits) <= 12 and specific.rq.M <= MAX_LEVELS
    ours_class: type[IndexDPQ] | type[IndexIVFDPQ] = IndexDPQ
    if isinstance(specific, faiss.IndexIVFResidualQuantizer):
        ours_class = IndexIVFDPQ
        fits = fits and specific.rq.norm_bits == 0
    if not fits or specific.metric_type not in metrics:
        return specific
    ours = ours_class.__new__(ours_class)
    ours.this = specific.this
    ours.referenced_objects = [index]
    return ours


def write_index(index: faiss.Index, f: Any, io_flags: int = 0) -> None:
    """faiss.write_index; given a path, the file appears whole or not at all (written aside, then renamed)."""
    if not isinstance(f, str | os.PathLike):
        faiss.write_index(index, f, io_flags)
        return
    path = os.path.abspath(os.fspath(f))
    handle, aside = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path))
    os.close(handle)
    try:
        faiss.write_index(index, aside, io_flags)
        _copy_mode(path, aside)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _copy_mode(path: str, aside: str) -> None:
    """The permissions that an ordinary write to `path` would leave: mkstemp's are the owner's alone."""
    if os.path.exists(path):
        mode = os.stat(path).st_mode & 0o7777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    os.chmod(aside, mode)


def read_index(f: Any, io_flags: int = 0) -> faiss.Index:
    """faiss.read_index, then `downcast_index`."""
    return downcast_index(faiss.read_index(os.fspath(f) if isinstance(f, os.PathLike) else f, io_flags))


def serialize_index(index: faiss.Index, io_flags: int = 0) -> npt.NDArray[np.uint8]:
    """faiss.serialize_index: the bytes of the file, as an array."""
    return faiss.serialize_index(index, io_flags)


def deserialize_index(data: npt.NDArray[np.uint8], io_flags: int = 0) -> faiss.Index:
    """faiss.deserialize_index, then `downcast_index`."""
    return downcast_index(faiss.deserialize_index(data, io_flags))


def clone_index(index: faiss.Index) -> faiss.Index:
    """faiss.clone_index, then `downcast_index`; ours keep their `levels` and `train_stats`."""
    clone = downcast_index(faiss.clone_index(index))
    if isinstance(index, IndexDPQ | IndexIVFDPQ):
        clone._levels, clone._train_stats = index._levels, index._train_stats
    return clone
