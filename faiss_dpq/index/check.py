"""Do the parts of an index that FAISS has read fit together? Asked before any kernel or method of FAISS touches it.

FAISS's reader compares little, and its searches nothing: an id that a file names is an offset into memory. So every
index is looked at, those within any other too: sizes and dimensions against one another and against the index around
it, numbers that must be finite, ids that must be in a range.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import MAX_BEAM_SIZE
from .quantized import MAX_LEVELS
from .shrinkage_mark import shrinkage_of
from .structure import parts
from .walk import NORM_BITS, NORM_TABLES, QUANTIZED_NORMS

_ADDITIVE = (faiss.IndexResidualQuantizer, faiss.IndexIVFResidualQuantizer)

_MOST_K_FACTOR = 1e6  # a search for 10 then has 120 MB of candidates a query

_WIDEST_SEARCH = 1 << 24  # candidates of a graph's search, whose memory FAISS takes at once


class _Role(NamedTuple):
    """What the index around one asks of it."""

    n_ids: int | None = None  # the ids that it returns are numbers below this
    is_coarse: bool = False  # its vectors are the centres of lists


def check(index: faiss.Index, name: str) -> None:
    """Raise a RuntimeError that says what is wrong, if the index cannot be whole.

    Parameters
    ----------
    index : faiss.Index
        Of any class, with others within or not.
    name : str
        The file's, for the message.
    """
    specific = faiss.downcast_index(index) if type(index) is faiss.Index else index
    for path, damage in _damages(specific, "", _Role()):
        raise RuntimeError(f"{name}: corrupt: {f'in {path}: ' if path else ''}{damage}")


def _damages(index: faiss.Index, path: str, role: _Role) -> Iterator[tuple[str, str]]:
    """Where and what is wrong. Only the first is asked for: what follows it may rely on its absence."""
    for faiss_class, look in _LOOKS:
        if isinstance(index, faiss_class):
            for damage in look(index, role):
                yield path, f"{type(index).__name__}: {damage}"
    for field, part in parts(index):
        yield from _damages(part, f"{path}.{field}" if path else field, _role_of(index, field, role))


def _role_of(outer: faiss.Index, field: str, role: _Role) -> _Role:
    if isinstance(outer, faiss.IndexIDMap):
        return role._replace(n_ids=outer.ntotal)
    if field in ("base_index", "refine_index", "storage"):
        return role._replace(n_ids=outer.ntotal)
    if isinstance(outer, faiss.IndexIVF):
        return _Role(n_ids=outer.nlist, is_coarse=True)
    return role


def _look_at_any(index: faiss.Index, role: _Role) -> Iterator[str]:
    if index.d < 1 or index.ntotal < 0:
        yield f"d is {index.d} and ntotal is {index.ntotal}"
    if role.n_ids is not None and index.ntotal > role.n_ids:
        yield f"it holds {index.ntotal} vectors, expected at most {role.n_ids}"


def _look_at_id_map(index: faiss.IndexIDMap, role: _Role) -> Iterator[str]:
    yield from _same(index, "index", index.index)
    ids = _values(index.id_map, np.int64)
    if len(ids) != index.ntotal:
        yield f"ntotal is {index.ntotal}, id_map has {len(ids)} ids"
    if role.n_ids is not None:
        yield from _ids_beyond(ids, role.n_ids)


def _look_at_pre_transform(index: faiss.IndexPreTransform, role: _Role) -> Iterator[str]:
    d = index.d
    for i in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(i))
        name = f"chain.at({i}), a {type(transform).__name__},"
        if transform.d_in != d:
            yield f"{name} has d_in={transform.d_in}, expected {d}"
        if transform.d_out < 1:
            yield f"{name} has d_out={transform.d_out}"
        yield from (f"{name} {damage}" for damage in _look_at_transform(transform))
        d = transform.d_out
    if index.index is None:
        yield "it has no index"
    if index.index.d != d:
        yield f"index has d={index.index.d}, expected {d}"
    if index.index.ntotal != index.ntotal:
        yield f"ntotal is {index.ntotal}, {index.index.ntotal} in index"


def _look_at_transform(transform: faiss.VectorTransform) -> Iterator[str]:
    d_in, d_out = transform.d_in, transform.d_out
    if isinstance(transform, faiss.LinearTransform):
        sizes = {"A": d_in * d_out, "b": d_out if transform.have_bias else 0}
    elif isinstance(transform, faiss.CenteringTransform):
        sizes = {"mean": d_in}
    elif isinstance(transform, faiss.RemapDimensionsTransform):
        sources = _values(transform.map, np.int32)
        if len(sources) != d_out or (len(sources) and not -1 <= sources.min() <= sources.max() < d_in):
            yield f"has a map of {len(sources)} dimensions, expected {d_out} numbers from -1 to {d_in - 1}"
        return
    elif isinstance(transform, faiss.NormalizationTransform):
        if not np.isfinite(transform.norm) or d_in != d_out:
            yield f"has norm={transform.norm}, d_in={d_in} and d_out={d_out}"
        return
    else:
        return
    for field, size in sizes.items():
        values = _values(getattr(transform, field), np.float32)
        if transform.is_trained and len(values) < size:
            yield f"has {len(values)} values in {field}, expected {size}"
        if not np.isfinite(values).all():
            yield f"has NaN or infinite values in {field}"


def _look_at_refine(index: faiss.IndexRefine, role: _Role) -> Iterator[str]:
    yield from _same(index, "base_index", index.base_index)
    yield from _same(index, "refine_index", index.refine_index)
    if not 0 <= index.k_factor <= _MOST_K_FACTOR:
        yield f"k_factor is {index.k_factor}, expected 0 to {_MOST_K_FACTOR}"


def _look_at_graph(index: faiss.IndexHNSW, role: _Role) -> Iterator[str]:
    if index.storage is not None:
        yield from _same(index, "storage", index.storage)
    for field in ("efSearch", "efConstruction"):
        width = getattr(index.hnsw, field)
        if not 0 <= width <= _WIDEST_SEARCH:
            yield f"hnsw.{field} is {width}, expected 0 to {_WIDEST_SEARCH}"
    yield from _look_at_storeys(index.hnsw)


def _look_at_storeys(graph: faiss.HNSW) -> Iterator[str]:
    """Whether every way on a storey leads to vectors of it; FAISS asks only whether there are such vectors at all."""
    heights = _values(graph.levels, np.int32)  # the storeys that a vector stands on
    entry, top = graph.entry_point, graph.max_level
    if entry >= 0 and top >= heights[entry]:
        yield f"hnsw.max_level is {top}, but its entry_point {entry} has levels below {heights[entry]} only"
    offsets, neighbors = _values(graph.offsets, np.uint64), _values(graph.neighbors, np.int32)
    for storey in range(1, heights.max(initial=0)):
        standing = np.flatnonzero(heights > storey)
        slots = np.arange(graph.cum_nb_neighbors(storey), graph.cum_nb_neighbors(storey + 1), dtype=np.uint64)
        found = neighbors[offsets[standing, None] + slots]
        if (heights[found[found >= 0]] <= storey).any():
            yield f"hnsw.neighbors of level {storey} names vectors that are not on it"


def _look_at_codes(index: faiss.IndexFlatCodes, role: _Role) -> Iterator[str]:
    if index.codes.size() != index.ntotal * index.code_size:
        yield f"{index.codes.size()} bytes of codes for {index.ntotal} vectors of {index.code_size}"


def _look_at_vectors(index: Any, role: _Role) -> Iterator[str]:
    if index.code_size != 4 * index.d:
        yield f"code_size is {index.code_size}, expected {4 * index.d} for d={index.d}"
    elif (
        role.is_coarse
        and isinstance(index, faiss.IndexFlat)
        and not np.isfinite(_kernels.FaissVector(index.codes).rows(index.code_size).view("<f4")).all()
    ):
        yield "the centres of lists have NaN or infinite values"


def _look_at_product_quantizer(index: Any, role: _Role) -> Iterator[str]:
    if index.code_size != index.pq.code_size or index.pq.d != index.d:
        yield f"code_size is {index.code_size} and d is {index.d}, {index.pq.code_size} and {index.pq.d} in pq"
    if not np.isfinite(_values(index.pq.centroids, np.float32)).all():
        yield "pq.centroids has NaN or infinite values"


def _look_at_scalar_quantizer(index: Any, role: _Role) -> Iterator[str]:
    if index.code_size != index.sq.code_size or index.sq.d != index.d:
        yield f"code_size is {index.code_size} and d is {index.d}, {index.sq.code_size} and {index.sq.d} in sq"
    if not np.isfinite(_values(index.sq.trained, np.float32)).all():
        yield "sq.trained has NaN or infinite values"


def _look_at_residual_quantizer(index: Any, role: _Role) -> Iterator[str]:
    rq = index.rq
    nbits = faiss.vector_to_array(rq.nbits).tolist()
    if rq.d != index.d:
        yield f"d is {index.d}, rq.d is {rq.d}"
        return
    if not 1 <= rq.M <= MAX_LEVELS or len(nbits) != rq.M or min(nbits) < 1 or max(nbits) > 24:
        yield f"rq.M is {rq.M}, rq.nbits has {len(nbits)} entries: {sorted(set(nbits))[:8]}"
        return
    if rq.search_type not in NORM_BITS:
        yield f"rq.search_type is {rq.search_type}"
        return
    expected = (sum(nbits) + NORM_BITS[rq.search_type] + 7) // 8
    if index.code_size != expected:
        yield f"code_size is {index.code_size}, expected {expected} for {rq.M} levels of rq.nbits"
    if bool(index.is_trained) != bool(rq.is_trained):
        yield f"is_trained is {index.is_trained} and rq.is_trained is {rq.is_trained}"
    codebooks = _values(rq.codebooks, np.float32)
    n_values = index.d * sum(1 << bits for bits in nbits)
    if len(codebooks) != n_values and (index.is_trained or len(codebooks)):
        yield f"rq.codebooks has {len(codebooks)} values, expected {n_values}"
    if not np.isfinite(codebooks).all():
        yield "rq.codebooks has NaN or infinite values"
    if not 1 <= rq.max_beam_size <= MAX_BEAM_SIZE:
        yield f"rq.max_beam_size is {rq.max_beam_size}, expected 1 to {MAX_BEAM_SIZE}"
    if not 0 < shrinkage_of(rq) <= 1:
        yield f"rq.norm_max, the shrinkage, is {rq.norm_max}"
    yield from _norm_damages(rq)


def _norm_damages(rq: faiss.ResidualQuantizer) -> Iterator[str]:
    # FAISS would end the process when it misses the tables in a search.
    has_tables = not rq.train_type & faiss.ResidualQuantizer.Skip_codebook_tables
    if rq.search_type == faiss.AdditiveQuantizer.ST_norm_from_LUT and not has_tables:
        yield f"rq.train_type {rq.train_type} skips the tables that rq.search_type {rq.search_type} needs"
    if rq.is_trained and rq.search_type in QUANTIZED_NORMS:
        n_norms = 1 << NORM_BITS[rq.search_type]
        if not rq.qnorm.ntotal == rq.qnorm.codes.size() // 4 == n_norms:
            yield f"rq.qnorm has {rq.qnorm.ntotal} norms, expected {n_norms}"
    if rq.is_trained and rq.search_type in NORM_TABLES and rq.norm_tabs.size() < 32:
        yield f"rq.norm_tabs has {rq.norm_tabs.size()} values, expected 32"


def _look_at_lists(index: faiss.IndexIVF, role: _Role) -> Iterator[str]:
    if index.quantizer is None:
        yield "it has no coarse quantizer"
    if index.quantizer.d != index.d:
        yield f"d is {index.d}, {index.quantizer.d} in quantizer"
    if not 1 <= index.nlist < 1 << 31:
        yield f"nlist is {index.nlist}"
        return
    if index.invlists is None:  # the file was read without its lists
        return
    invlists = faiss.downcast_InvertedLists(index.invlists)
    if invlists.nlist != index.nlist:
        yield f"nlist is {index.nlist}, there are {invlists.nlist} lists"
        return
    if invlists.code_size not in (index.code_size, faiss.InvertedLists.INVALID_CODE_SIZE):
        yield f"code_size is {index.code_size}, {invlists.code_size} in the lists"
        return
    sizes = np.array([invlists.list_size(number) for number in range(index.nlist)])
    if isinstance(invlists, faiss.OnDiskInvertedLists):
        yield from _look_at_places_on_disk(invlists)
    if role.n_ids is not None:
        ids = _ids_in_lists(invlists, sizes)
        yield from _ids_beyond(ids, role.n_ids)
        is_there = np.zeros(role.n_ids, bool)
        is_there[ids] = True
        if np.count_nonzero(is_there) < len(ids):
            yield "an id is in the lists twice"
    # Vectors of no list (NaN) are counted, too.
    if int(sizes.sum()) > index.ntotal:
        yield f"the lists hold {int(sizes.sum())} vectors, ntotal is {index.ntotal}"
    yield from _look_at_direct_map(index, sizes)


def _ids_in_lists(invlists: faiss.InvertedLists, sizes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    found = [np.empty(0, np.int64)]
    for number in np.flatnonzero(sizes).tolist():
        ids = invlists.get_ids(number)
        found.append(faiss.rev_swig_ptr(ids, int(sizes[number])).copy())
        invlists.release_ids(number, ids)
    return np.concatenate(found)


def _look_at_places_on_disk(invlists: faiss.OnDiskInvertedLists) -> Iterator[str]:
    # No name: they are within the index's own file (IO_FLAG_MMAP), which is mapped as a whole.
    on_disk = os.path.getsize(invlists.filename) if invlists.filename else invlists.totsize
    if on_disk < invlists.totsize:
        yield f"{invlists.filename} has {on_disk} bytes, expected {invlists.totsize}"
    for number in range(invlists.nlist):
        place = invlists.lists.at(number)
        end = place.offset + place.capacity * (invlists.code_size + 8)
        if place.size and (place.size > place.capacity or end > invlists.totsize):
            yield f"list {number} ends at byte {end} of {invlists.totsize}"


def _look_at_direct_map(index: faiss.IndexIVF, sizes: npt.NDArray[Any]) -> Iterator[str]:
    direct_map = index.direct_map
    if direct_map.type == faiss.DirectMap.Array:
        places = _values(direct_map.array, np.int64)
        if len(places) != index.ntotal:
            yield f"direct_map.array has {len(places)} entries, ntotal is {index.ntotal}"
        places = places[places != -1]
        numbers, offsets = places >> 32, places & 0xFFFFFFFF
        known = (numbers >= 0) & (numbers < len(sizes))
        if not known.all() or (offsets >= sizes[numbers]).any():
            yield "direct_map.array has places beyond the lists"
    elif direct_map.type == faiss.DirectMap.Hashtable:
        # Python cannot look into the table. Made anew, it holds what is in the lists.
        index.set_direct_map_type(faiss.DirectMap.NoMap)
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
    elif direct_map.type != faiss.DirectMap.NoMap:
        yield f"direct_map.type is {direct_map.type}"


def _same(outer: faiss.Index, field: str, inner: faiss.Index | None) -> Iterator[str]:
    if inner is None:
        yield f"it has no {field}"
    elif (inner.d, inner.ntotal) != (outer.d, outer.ntotal):
        yield f"d={outer.d} and ntotal={outer.ntotal}, in {field} d={inner.d} and ntotal={inner.ntotal}"


def _ids_beyond(ids: npt.NDArray[Any], n_ids: int) -> Iterator[str]:
    wrong = ids[(ids < 0) | (ids >= n_ids)]
    if len(wrong):
        yield f"it has id {wrong[0]}, expected 0 to {n_ids - 1}"


def _values(vector: Any, dtype: Any) -> npt.NDArray[Any]:
    """The contents of a vector of FAISS's, in place."""
    return faiss.rev_swig_ptr(vector.data(), vector.size()) if vector.size() else np.empty(0, dtype)


_LOOKS: list[tuple[Any, Callable[[Any, _Role], Iterator[str]]]] = [
    (faiss.Index, _look_at_any),
    (faiss.IndexIDMap, _look_at_id_map),
    (faiss.IndexPreTransform, _look_at_pre_transform),
    (faiss.IndexRefine, _look_at_refine),
    (faiss.IndexHNSW, _look_at_graph),
    (faiss.IndexFlatCodes, _look_at_codes),
    ((faiss.IndexFlat, faiss.IndexIVFFlat), _look_at_vectors),
    ((faiss.IndexPQ, faiss.IndexIVFPQ), _look_at_product_quantizer),
    ((faiss.IndexScalarQuantizer, faiss.IndexIVFScalarQuantizer), _look_at_scalar_quantizer),
    (_ADDITIVE, _look_at_residual_quantizer),
    (faiss.IndexIVF, _look_at_lists),
]
