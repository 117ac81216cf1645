"""Searches of inverted lists: which lists a query probes, and what is known of them from search to search."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from ..search import lists as scan
from ..search.centres import Centres
from ..search.coarse import search_lists
from ..search.derived import Bytes
from ..search.flat import MISSING
from ..search.list_masks import ListMasks
from ..search.masks import admits_all
from ..search.selection import Labels, selector_of
from .arguments import require_float32, require_integer
from .base import RangeResult, delivered
from .finite import nearest_of_finite, range_of_finite
from .list_known import KnownLists
from .list_limits import probed_until_full, scanned_counts, stop_after_empty_lists
from .list_parameters import ListSearch, SearchParametersIVFDPQ
from .quantized import Quantized
from .registry import downcast_index
from .tensors import accepts_tensors, if_any

_SAMPLE = 8  # centres compared to notice that the coarse quantizer changed, where its codes are not at hand
_PREPARED = 8  # combinations of parameters that searches of one query are prepared for
#: FAISS's getters, which are asked at every search by one query: as properties they take several times as long.
_STRUCTURE = [faiss.IndexIVF.by_residual.fget, faiss.Index.metric_type.fget]
_PARAMETERS = [faiss.IndexIVF.nprobe.fget, faiss.IndexIVF.max_codes.fget]
_ASKED = [faiss.SearchParametersIVF.nprobe.fget, faiss.SearchParametersIVF.max_codes.fget]
_TURNED_ON = [faiss.SearchParametersIVF.ensure_topk_full.fget, faiss.SearchParametersIVF.quantizer_params.fget]
_PARTS = [faiss.IndexIVF.quantizer.fget, faiss.IndexIVF.invlists.fget]


class ListsSearched(Quantized):
    """The searches of IndexIVFDPQ."""

    _coarse: tuple[int, faiss.Index] | None = None
    _known: KnownLists | None = None
    _list_masks: ListMasks | None = None
    _owned_lists: int | None = None  # the address of lists that are known not to be mapped from a file

    # ---- the coarse quantizer ------------------------------------------------------------------------------------

    @property
    def _coarse_quantizer(self) -> faiss.Index:
        """`quantizer` as an object of its own class: the one that was given, if it still is the same."""
        address = int(self.quantizer.this)
        if self._coarse is None or self._coarse[0] != address:
            self._coarse = (address, downcast_index(self.quantizer))
        return self._coarse[1]

    @property
    def _list_centres(self) -> Floats:
        """The centre that codes of each list are residuals to: array, shape (nlist, d)."""
        return self._current().centres

    def _read_centres(self) -> Floats:
        coarse = self._coarse_quantizer
        # A MultiIndexQuantizer that was given its codebooks counts no vectors, and needs none.
        is_multi_index = isinstance(coarse, faiss.MultiIndexQuantizer) and coarse.is_trained
        if coarse.ntotal != self.nlist and not (is_multi_index and coarse.pq.ksub**coarse.pq.M == self.nlist):
            self._require_trained("search")
            raise RuntimeError(
                f"IndexIVFDPQ: the coarse quantizer holds {coarse.ntotal} vectors, the index has nlist={self.nlist}"
            )
        centres = np.zeros((self.nlist, self.d), np.float32)
        if self.by_residual:
            coarse.reconstruct_n(0, self.nlist, centres)
        return centres

    # ---- search ----------------------------------------------------------------------------------------------------

    def _search_finite(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        asked, known = self._asked(params), self._current()
        derived = self._derived_lists(known, asked.levels)
        found = self._search_lists(known, derived, x, self._probed_for(k, x, asked, known, derived), k, asked)
        if len(x) == 1:
            self._prepare_direct(known, derived, asked, params)
        return found.D, found.I

    def _plain(self, params: faiss.SearchParameters) -> tuple[Any, _kernels.SelectorMask | None]:
        kind = type(params)
        levels: int | None = self._levels
        if kind is SearchParametersIVFDPQ:
            levels = None if params.coarse_levels or params.max_nprobe else params.levels or levels
        elif kind is not faiss.SearchParametersIVF:
            levels = None
        if levels is None or any(get(params.this) for get in _TURNED_ON):
            return None, None
        nprobe, max_codes = (get(params.this) for get in _ASKED)
        mask = self._mask(selector_of(params))
        # Of those with a selector, only what it admits counts towards max_codes.
        return (None if mask is not None and max_codes else (levels, nprobe, max_codes)), mask

    def _mask(self, selector: faiss.IDSelector | None) -> _kernels.ListsSelector | None:
        """What a search of few lists is masked by; None if all that they hold takes part."""
        return None if admits_all(selector) else self._masks_of_lists().of_few(selector, self.nlist, self._version)

    def _kept_mask(self, selector: faiss.IDSelector | None) -> _kernels.ListsMask | None:
        """The same, for other searches of this selector too."""
        return None if admits_all(selector) else self._masks_of_lists().of(selector, self.nlist, self._version)

    def _masks_of_lists(self) -> ListMasks:
        if self._list_masks is None:
            self._list_masks = ListMasks()
        return self._list_masks

    @accepts_tensors()
    def search_preassigned(
        self,
        x: npt.ArrayLike,
        k: int,
        Iq: npt.ArrayLike,
        Dq: npt.ArrayLike | None = None,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
    ) -> tuple[Floats, Labels]:
        """`search` in given lists: `Iq`, shape (n, any number), int64, -1 for none. `Dq` is not needed."""
        x = self._checked_vectors(x, "search_preassigned")
        self._check_outputs("search_preassigned", len(x), k, D, I)
        keys = self._checked_keys(Iq, "search_preassigned", len(x))
        asked, known = self._asked(params), self._current()
        derived = self._derived_lists(known, asked.levels)

        def search(x: Floats) -> tuple[Floats, Labels]:
            found = self._search_lists(known, derived, x, keys, k, asked)
            return found.D, found.I

        return delivered(nearest_of_finite(x, self.metric_type, search), (D, I))

    def _range_search_finite(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        asked, known = self._asked(params), self._current()
        derived = self._derived_lists(known, asked.levels)
        return self._range_search_lists(derived, x, thresh, self._probed(x, asked, known), asked)

    @accepts_tensors()
    def range_search_preassigned(
        self,
        x: npt.ArrayLike,
        thresh: float,
        Iq: npt.ArrayLike,
        Dq: npt.ArrayLike | None = None,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> RangeResult:
        """`range_search` in given lists: `Iq`, shape (n, any number), int64, -1 for none. `Dq` is not needed."""
        x = self._checked_vectors(x, "range_search_preassigned")
        keys = self._checked_keys(Iq, "range_search_preassigned", len(x))
        asked = self._asked(params)
        derived = self._derived_lists(self._current(), asked.levels)
        thresh = require_float32(thresh, f"{self._call('range_search_preassigned')}: thresh")
        return range_of_finite(x, lambda x: self._range_search_lists(derived, x, thresh, keys, asked))

    def _search_and_reconstruct_finite(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        D, I, places, codes = self._search_codes(x, k, self._asked(params))
        R = np.full((len(x), k, self.d), np.nan, np.float32)
        here = places >= 0  # ids may be negative
        quantizer = self.residual_quantizer
        unpacked = _kernels.unpack_codes(np.ascontiguousarray(codes[here]), self._asked_levels(params), quantizer.nbits)
        R[here] = quantizer.decode(unpacked) + self._list_centres[places[here] >> 32]
        return D, I, R

    @threads.without_openmp()
    def search_and_return_codes(
        self,
        x: npt.ArrayLike,
        k: int,
        *,
        include_listnos: bool = False,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        codes: Bytes | None = None,
    ) -> tuple[Floats, Labels, Bytes]:
        """`search`, and the codes found, shape (n, k, code_size), after their list's number if that is asked for."""
        x = self._checked_vectors(x, "search_and_return_codes")
        self._check_outputs("search_and_return_codes", len(x), k, D, I)
        asked = self._asked(params)
        coarse_size = self.coarse_code_size() if include_listnos else 0
        shape = (len(x), k, coarse_size + self.code_size)
        self._check_output(codes, shape, np.uint8, "search_and_return_codes", "codes")
        nearest, labels, places, plain = nearest_of_finite(
            x, self.metric_type, lambda x: self._search_codes(x, k, asked)
        )
        overflowed = np.abs(nearest) == MISSING
        places[overflowed], plain[overflowed] = -1, 255
        codes = np.empty(shape, np.uint8) if codes is None else codes
        numbers = (places >> 32).astype("<i8").view(np.uint8).reshape(len(x), k, 8)
        codes[..., :coarse_size] = numbers[..., :coarse_size]
        codes[..., coarse_size:] = plain
        return (*delivered((nearest, labels), (D, I)), codes)

    @threads.without_openmp()
    def probed_lists(self, x: npt.ArrayLike, *, params: faiss.SearchParameters | None = None) -> Labels:
        """The lists that `search` probes for every query, nearest first: shape (n, nprobe), int64, -1 for none."""
        x = self._checked_vectors(x, "probed_lists")
        return self._probed(x, self._asked(params), self._current())

    def _lists(self) -> faiss.InvertedLists:
        invlists = self.invlists
        if invlists is None:
            raise RuntimeError("IndexIVFDPQ: there are no inverted lists; call replace_invlists first")
        return invlists

    def _asked(self, params: faiss.SearchParameters | None) -> ListSearch:
        if params is None:
            asked = ListSearch(self.nprobe, self.max_codes, self.levels, self._asked_coarse(None, self.levels))
        elif not isinstance(params, faiss.SearchParametersIVF):
            raise RuntimeError(
                f"IndexIVFDPQ: params is a {type(params).__name__}, expected SearchParametersIVF or "
                "SearchParametersIVFDPQ"
            )
        else:
            levels = self._asked_levels(params)
            asked = ListSearch(
                params.nprobe,
                params.max_codes,
                levels,
                self._asked_coarse(params, levels),
                selector_of(params),
                getattr(params, "_sp_field_refs", {}).get("quantizer_params", params.quantizer_params),
                bool(params.ensure_topk_full),
                getattr(params, "max_nprobe", 0),
                params.max_empty_result_buckets,
            )
        if asked.nprobe < 1:
            raise RuntimeError(f"IndexIVFDPQ: nprobe is {asked.nprobe}, expected at least 1")
        require_integer(asked.max_nprobe, "IndexIVFDPQ: max_nprobe")
        if asked.max_nprobe < 0:
            raise ValueError(f"IndexIVFDPQ: max_nprobe is {asked.max_nprobe}, expected 0 (all lists) or more")
        return asked

    def _probed(self, x: Floats, asked: ListSearch, known: KnownLists) -> Labels:
        """The lists nearest to every query, shape (n, nprobe)."""
        nprobe, centres = min(asked.nprobe, len(known.centres)), known.nearest
        if asked.quantizer_params is None and centres is not None:
            return centres.of(x, nprobe)
        return known.coarse.search(x, nprobe, **if_any(asked.quantizer_params))[1]

    def _probed_for(
        self, k: int, x: Floats, asked: ListSearch, known: KnownLists, derived: scan.DerivedLists
    ) -> Labels:
        """The lists that a search for k results probes: with `ensure_topk_full`, until there are so many."""
        probed = self._probed(x, asked, known)
        if not asked.ensure_topk_full:
            return probed

        def more(queries: npt.NDArray[np.intp], nprobe: int) -> Labels:
            return self._probed(x[queries], replace(asked, nprobe=nprobe), known)

        def admitted(keys: Labels) -> Labels:
            with self._opened(keys, derived, asked) as lists:
                counts = lists.sizes if lists.admitted is None else lists.admitted
                return np.where(keys >= 0, counts[keys], 0)

        return probed_until_full(probed, k, min(asked.max_nprobe or self.nlist, self.nlist), more, admitted)

    @contextlib.contextmanager
    def _opened(self, keys: Labels, derived: scan.DerivedLists, asked: ListSearch) -> Iterator[_kernels.OpenLists]:
        """The lists that `keys` name, with what the selector admits of them."""
        with scan.opened(self._lists(), keys) as lists:
            mask = self._kept_mask(asked.selector)
            if mask is not None:
                derived.update(lists)
                mask.apply(asked.selector, lists, derived.digests[:, 0])
            yield lists

    def _search_lists(
        self, known: KnownLists, derived: scan.DerivedLists, x: Floats, keys: Labels, k: int, asked: ListSearch
    ) -> scan.Found:
        mask = self._mask(asked.selector)
        plain = asked.coarse is None and not asked.ensure_topk_full and (mask is None or not asked.max_codes)
        if plain and known.reader is not None:
            few = scan.search_few(derived, known.reader, x, keys, asked.max_codes, k, mask)
            if few is not None:
                return few
        with self._opened(keys, derived, asked) as lists:
            counts = scanned_counts(keys, lists, asked.max_codes, k if asked.ensure_topk_full else 0)
            found = self._search_open(known, derived, lists, x, keys, counts, k, asked)
        _count(counts)
        return found

    def _search_open(
        self,
        known: KnownLists,
        derived: scan.DerivedLists,
        lists: _kernels.OpenLists,
        x: Floats,
        keys: Labels,
        counts: Labels,
        k: int,
        asked: ListSearch,
        places: Labels | None = None,
    ) -> scan.Found:
        if asked.coarse is None:
            return scan.search(derived, lists, x, keys, counts, k, places)
        prefix = self._derived_lists(known, asked.coarse.levels)
        return search_lists(asked.coarse, prefix, derived, lists, x, keys, counts, k, places)

    def _search_codes(self, x: Floats, k: int, asked: ListSearch) -> tuple[Floats, Labels, Labels, Bytes]:
        """A search's results D and I, list << 32 | offset of every one, and the codes there."""
        known = self._current()
        derived = self._derived_lists(known, asked.levels)
        keys = self._probed_for(k, x, asked, known, derived)
        places = np.empty((len(x), k), np.int64)
        codes = np.empty((len(x), k, self.code_size), np.uint8)
        with self._opened(keys, derived, asked) as lists:
            counts = scanned_counts(keys, lists, asked.max_codes, k if asked.ensure_topk_full else 0)
            found = self._search_open(known, derived, lists, x, keys, counts, k, asked, places)
            _kernels.gather_codes(places.ravel(), lists.codes, codes.reshape(-1, self.code_size))
        _count(counts)
        return found.D, found.I, places, codes

    def _range_search_lists(
        self, derived: scan.DerivedLists, x: Floats, thresh: float, keys: Labels, asked: ListSearch
    ) -> RangeResult:
        with self._opened(keys, derived, asked) as lists:
            counts = scan.scanned_counts(keys, lists.sizes, 0)  # FAISS, too, limits no range search by max_codes
            if asked.max_empty_result_buckets:
                stop_after_empty_lists(counts, asked.max_empty_result_buckets, derived, lists, x, keys, thresh)
            lims, D, I = scan.range_search(derived, lists, x, keys, counts, thresh)
        _count(counts)
        return lims.astype(np.uint64), D, I

    # ---- what is derived from codebooks, centres and lists ----------------------------------------------------------

    def _current(self) -> KnownLists:
        """What is known, brought up to date with codebooks, centres and which lists there are."""
        known = self._known
        if (
            known is None
            or known.this is not self.this
            or known.version != self._version
            or not known.unchanged.holds()
            or known.fingerprint != _fingerprint(known.coarse)
        ):
            coarse = self._coarse_quantizer
            invlists = None if self.invlists is None else faiss.downcast_InvertedLists(self.invlists)
            known = KnownLists(
                self.this,
                self._version,
                self._unchanged(),
                coarse,
                _fingerprint(coarse),
                self._read_centres(),
                _kernels.ListReader(invlists) if isinstance(invlists, faiss.ArrayInvertedLists) else None,
            )
            self._known = None if invlists is None else known
        return known

    def _derived_lists(self, known: KnownLists, levels: int) -> scan.DerivedLists:
        """What is derived from lists at a prefix length; for this search alone, where there is no room to keep it."""
        derived = known.derived.get(levels)
        if derived is None:
            quantizer = self.residual_quantizer
            centres = Centres(known.centres, quantizer, self.metric_type)
            derived = scan.DerivedLists(quantizer, centres, levels)
            if known.has_room(self.ntotal, self.derived_bytes_per_vector, derived):
                known.derived[levels] = derived
        return derived

    def _let_go_of_derived(self) -> None:
        self._direct = None
        if self._known is not None:
            self._known.derived.clear()
            self._known.removed = 0

    def _count_removed(self, n: int) -> None:
        """Let go of what is derived where too much of it is of vectors that are gone, or in other lists now."""
        if self._known is not None:
            self._known.removed += n
            if not self._known.has_room(self.ntotal, self.derived_bytes_per_vector):
                self._let_go_of_derived()

    def _unchanged(self, *more: tuple[Any, Any]) -> _kernels.Unchanged:
        """Whether codebooks, centres and lists are the same, and what `more` getters of FAISS's objects give."""
        vectors, coarse = [self._sampled_codebooks()], self._coarse_quantizer
        if isinstance(coarse, faiss.IndexFlatCodes):
            vectors.append(_kernels.FaissVector(coarse.codes).sampled(coarse.code_size))
        values, pointers = ([(self, get) for get in getters] for getters in (_STRUCTURE, _PARTS))
        return _kernels.Unchanged(vectors, [*values, *more], [part for part in pointers if part[1](self) is not None])

    def _prepare_direct(
        self, known: KnownLists, derived: scan.DerivedLists, asked: ListSearch, params: faiss.SearchParameters | None
    ) -> None:
        """Let later searches of one query, with the same parameters, go to the kernels at once."""
        kept = known.derived.get(asked.levels) is derived
        centres = known.nearest
        if self._coarse_levels or not kept or known.reader is None or centres is None:
            return
        key = self._levels if params is None else self._plain(params)[0]
        if key is None:
            return
        direct = self._direct
        if direct is None or not direct.is_of(self.this, self._version):
            direct = self._direct = _kernels.DirectSearch(self.this, self._version)
        one_query = direct.scans.get(key)
        if one_query is None or not one_query.is_good():
            if len(direct.scans) == _PREPARED:
                direct.scans.clear()
            parameters = [(self, get) for get in _PARAMETERS] if params is None else []
            direct.scans[key] = scan.one_query_scan(
                derived, known.reader, centres, asked.nprobe, asked.max_codes, self._unchanged(*parameters)
            )

    def _checked_keys(self, Iq: npt.ArrayLike, method: str, n: int) -> Labels:
        keys = np.ascontiguousarray(Iq, np.int64)
        if keys.ndim != 2 or len(keys) != n:
            raise AssertionError(f"IndexIVFDPQ.{method}: Iq has shape {keys.shape}, expected ({n}, number of lists)")
        if keys.size and keys.max() >= self.nlist:
            raise RuntimeError(f"IndexIVFDPQ.{method}: Iq has {keys.max()}, the index has nlist={self.nlist}")
        return np.maximum(keys, -1)


def _count(counts: Labels) -> None:
    """Count a search where FAISS does; searches of few queries are counted by the kernels."""
    stats = faiss.cvar.indexIVF_stats
    stats.nq += len(counts)
    stats.nlist += int((counts > 0).sum())
    stats.ndis += int(counts.sum())


_kernels.count_searches_at(int(faiss.cvar.indexIVF_stats.this))


def _fingerprint(coarse: faiss.Index) -> tuple[Any, ...] | None:
    """Changes with the vectors of a coarse quantizer that does not keep codes, but for bad luck."""
    if isinstance(coarse, faiss.IndexFlatCodes):
        return None
    n = coarse.ntotal
    sample = np.unique(np.linspace(0, n - 1, _SAMPLE, dtype=np.int64)) if n else np.empty(0, np.int64)
    return n, coarse.reconstruct_batch(sample).tobytes()
