"""Shards of one machine: an index out of a folder."""

import os

import faiss

from ..codec import Floats
from ..index.base import RangeResult
from ..index.io import read_index
from ..index.tensors import if_any
from ..index.wrappers import IndexShards
from ..search.selection import Labels
from .manifest import Manifest, read_manifest
from .merge import merge_ranges, merge_results, search_shard
from .records import Refused

#: Codes and lists stay in the file, and are read as searches need them.
MAPPED = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)


class OrderedShards(IndexShards):
    """An IndexShards whose results are in the order of (distance, id), as those of one index are."""

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        results = [search_shard(self.at(i), x, k, params) for i in range(self.count())]
        D, I = zip(*results, strict=True)
        return merge_results(D, I, k, self.metric_type)

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        results = [self.at(i).range_search(x, thresh, **if_any(params)) for i in range(self.count())]
        return merge_ranges(results, self.metric_type)


def read_shards(path: str | os.PathLike[str], *, mmap: bool = False) -> IndexShards:
    """The shards of a folder as one index, on this machine.

    Parameters
    ----------
    path : str or path
        A folder that `build_shards` has filled.
    mmap : bool
        Whether codes and inverted lists stay in the files (IO_FLAG_MMAP_IFC); checksums are then not compared.

    Returns
    -------
    index : IndexShards
        Search results are those of one index that holds all vectors, equal distances by ascending id.

    Raises
    ------
    FileNotFoundError
        If there is no manifest: the build is not finished, or there is none.
    RuntimeError
        If the manifest is of a newer version, or a shard is missing, damaged or of another build.
    """
    manifest = read_manifest(path)
    shards = OrderedShards(manifest["d"], False, False)
    for number in range(len(manifest["shards"])):
        shards.add_shard(read_shard(path, manifest, number, mmap=mmap))
    return shards


def read_shard(path: str | os.PathLike[str], manifest: Manifest, number: int, *, mmap: bool = False) -> faiss.Index:
    """One shard of a folder.

    Raises
    ------
    RuntimeError
        If it is not what the manifest says.
    """
    entry = manifest["shards"][number]
    name = os.path.join(path, entry["file"])
    shard = read_index(name, MAPPED if mmap else 0)
    metric = faiss.METRIC_L2 if manifest["metric"] == "l2" else faiss.METRIC_INNER_PRODUCT
    found = {"d": shard.d, "ntotal": shard.ntotal, "metric_type": shard.metric_type}
    expected = {"d": manifest["d"], "ntotal": entry["rows"][1] - entry["rows"][0], "metric_type": metric}
    if found != expected:
        raise Refused(f"{name}: not the shard of the manifest: {found}, expected {expected}")
    return shard
