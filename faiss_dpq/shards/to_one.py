"""One ordinary index file out of shards."""

import os

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

from ..index import IndexIVFDPQ
from ..index.io import write_index
from ..index.wrappers import IndexIDMap
from .codec import leaf_of, read_trained
from .manifest import Manifest, read_manifest
from .reading import read_shard


def to_one(path: str | os.PathLike[str], file: str | os.PathLike[str], *, on_disk: bool | None = None) -> None:
    """Write the vectors of all shards to one index file.

    Without ids of one's own, the file is that of an index that was filled in one go, byte for byte; with them, an
    IndexDPQ is in an IndexIDMap.

    Parameters
    ----------
    path : str or path
        A folder that `build_shards` has filled.
    file : str or path
    on_disk : bool, optional
        Whether inverted lists go to a file of their own, `file` with ".lists" appended, which the index maps
        (faiss.OnDiskInvertedLists). This needs no more memory than one list; else all vectors are in memory. By
        default, where the shards are larger than half of this machine's memory.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `read_shards`.
    ValueError
        If `on_disk` is asked for, but there are no inverted lists.
    """
    path, file = os.fspath(path), os.fspath(file)
    manifest = read_manifest(path)
    empty = read_trained(os.path.join(path, "trained.faiss"), manifest["codec"])
    has_lists = isinstance(leaf_of(empty), IndexIVFDPQ)
    if on_disk and not has_lists:
        raise ValueError("to_one: on_disk is True, but the shards have no inverted lists")
    if has_lists and (_is_large(manifest) if on_disk is None else on_disk):
        index = _with_lists_on_disk(path, manifest, empty, file + ".lists")
    else:
        index = read_shard(path, manifest, 0)
        for number in range(1, len(manifest["shards"])):
            index.merge_from(read_shard(path, manifest, number))
    ascending, given = manifest["ids"]["ascending"], manifest["ids"]["given"]
    if has_lists and not ascending:
        _sort_lists(leaf_of(index))
    if not has_lists and not ascending:
        _sort_codes(index)
    write_index(index.index if isinstance(index, IndexIDMap) and not given else index, file)


def _is_large(manifest: Manifest) -> bool:
    if not hasattr(os, "sysconf"):  # Windows
        return False
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * sum(shard["bytes"] for shard in manifest["shards"]) > memory


def _with_lists_on_disk(path: str, manifest: Manifest, empty: faiss.Index, lists: str) -> faiss.Index:
    merge_ondisk(empty, [os.path.join(path, shard["file"]) for shard in manifest["shards"]], lists)
    leaf_of(empty).invalidate()
    return empty


def _sort_lists(leaf: IndexIVFDPQ) -> None:
    """Put the vectors of every list in the order of their ids."""
    for number in range(leaf.nlist):
        n = leaf.invlists.list_size(number)
        if not n:
            continue
        ids, codes = leaf.invlists.get_ids(number), leaf.invlists.get_codes(number)
        held = faiss.rev_swig_ptr(ids, n).copy()
        order = np.argsort(held, kind="stable")
        new_ids = held[order]
        new_codes = faiss.rev_swig_ptr(codes, n * leaf.code_size).reshape(n, -1)[order]
        leaf.invlists.release_ids(number, ids)
        leaf.invlists.release_codes(number, codes)
        leaf.invlists.update_entries(number, 0, n, faiss.swig_ptr(new_ids), faiss.swig_ptr(new_codes))


def _sort_codes(index: IndexIDMap) -> None:
    """Put all vectors in the order of their ids."""
    ids = faiss.vector_to_array(index.id_map)
    order = np.argsort(ids, kind="stable")
    leaf_of(index).permute_entries(order)
    faiss.copy_array_to_vector(ids[order], index.id_map)
