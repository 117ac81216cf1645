"""IndexIVFDPQ: the progressive quantizer in inverted lists, where faiss.IndexIVFPQ stood."""

from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import Floats, ProgressiveQuantizer
from ..search import lists as scan
from ..search.derived import Bytes
from ..search.selection import Labels, selector_of
from .base import RangeResult, delivered
from .quantized import ADD_BLOCK, Quantized, has_fitting_codes, search_type
from .registry import downcast_index, stands_for
from .tensors import accepts_tensors, given

_SAMPLE = 8  # centres compared to notice that the coarse quantizer changed, where its codes are not at hand
_FLAT = faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP
#: FAISS's getters, which are asked at every search by one query: as properties they take several times as long.
_STRUCTURE = [faiss.IndexIVF.by_residual.fget, faiss.Index.metric_type.fget]
_PARAMETERS = [faiss.IndexIVF.nprobe.fget, faiss.IndexIVF.max_codes.fget]
_PARTS = [faiss.IndexIVF.quantizer.fget, faiss.IndexIVF.invlists.fget]


class SearchParametersIVFDPQ(faiss.SearchParametersIVF):
    """Parameters of one search of an IndexIVFDPQ: faiss.SearchParametersIVF's, and `levels`.

    Parameters
    ----------
    levels : int
        Compare only this many levels of every code; 0 means the index's own `levels`.
    **parameters
        Of faiss.SearchParametersIVF: `nprobe` (1 unless given), `max_codes`, `sel`, `quantizer_params`.
    """

    levels = 0

    def __init__(self, levels: int = 0, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.levels = levels


@dataclass(frozen=True)
class _Search:
    """What the parameters of one search come to."""

    nprobe: int
    max_codes: int
    levels: int
    selector: faiss.IDSelector | None
    quantizer_params: faiss.SearchParameters | None


@dataclass
class _Known:
    """What searches need besides the lists, and what shows whether it is still true."""

    this: Any
    version: int
    fingerprint: tuple[Any, ...] | None  # of a coarse quantizer whose vectors are not at hand
    unchanged: _kernels.Unchanged
    centres: Floats
    derived: dict[int, scan.DerivedLists] = field(default_factory=dict)  # by levels


@stands_for(faiss.IndexIVFResidualQuantizer, lambda index: has_fitting_codes(index) and index.rq.norm_bits == 0)
class IndexIVFDPQ(Quantized, faiss.IndexIVFResidualQuantizer):
    """Inverted lists of progressive codes of residuals, with FAISS's index interface.

    Takes the place of faiss.IndexIVFPQ: the same calls, code size, shapes, dtypes and padding. A vector is coded by its
    list's centre and M codewords, x ~ c + c_1(k_1) + ... + c_M(k_M). It is a faiss.IndexIVFResidualQuantizer whose
    codebooks are trained, and whose vectors are encoded and searched, by this package; a stock FAISS opens its files
    and returns the same results, only slower. Searches find the nearest codes in the `nprobe` lists nearest to a query,
    by exact asymmetric distances; their parameters are a SearchParametersIVFDPQ or faiss.SearchParametersIVF, in place
    of the index's own `nprobe`, `max_codes` and `levels`.

    Parameters
    ----------
    coarse_quantizer : faiss.Index
        Finds the lists: any index of dimension d, with nlist vectors or empty. An IndexDPQ works too.
    d : int
        Dimension of the vectors; it need not be a multiple of M.
    nlist : int
        Number of lists.
    M : int
        Number of levels of a code; 1 to 1024.
    nbits : int
        Bits a level, 1 to 12. A code takes ceil(M * nbits / 8) bytes.
    metric : int
        faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT.

    Raises
    ------
    ValueError
        If an argument is outside these ranges.
    RuntimeError
        If the coarse quantizer's dimension is not d.
    """

    _coarse: tuple[int, faiss.Index] | None = None
    _known: _Known | None = None

    def __init__(
        self,
        coarse_quantizer: faiss.Index,
        d: int,
        nlist: int,
        M: int,
        nbits: int = 8,
        metric: int = faiss.METRIC_L2,
    ) -> None:
        self._check_shape("IndexIVFDPQ", d, M, nbits, metric)
        if nlist < 1:
            raise ValueError(f"IndexIVFDPQ: nlist is {nlist}, expected at least 1")
        super().__init__(coarse_quantizer, d, nlist, M, nbits, metric, search_type(M, nbits, metric))
        self._coarse = (int(self.quantizer.this), coarse_quantizer)
        self._set_up()

    @classmethod
    def from_codebooks(
        cls, coarse_quantizer: faiss.Index, codebooks: npt.ArrayLike, metric: int = faiss.METRIC_L2
    ) -> "IndexIVFDPQ":
        """A trained, empty index with given lists and codebooks of the residuals.

        Parameters
        ----------
        coarse_quantizer : faiss.Index
            Trained; every vector that it holds is the centre of a list.
        codebooks : array, shape (M, K, d), float32
            K must be a power of two from 2 to 4096.
        metric : int
            faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT.

        Raises
        ------
        ValueError
            If the codebooks' shape does not fit, a value is not finite, or the coarse quantizer is empty.
        RuntimeError
            If the coarse quantizer's dimension is not the codebooks'.
        """
        quantizer = ProgressiveQuantizer(codebooks)
        if not coarse_quantizer.is_trained or coarse_quantizer.ntotal == 0:
            raise ValueError("IndexIVFDPQ.from_codebooks: coarse_quantizer holds no vectors, expected one a list")
        index = cls(coarse_quantizer, quantizer.d, coarse_quantizer.ntotal, quantizer.M, quantizer.nbits, metric)
        index._set_quantizer(quantizer)
        return index

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
        if coarse.ntotal != self.nlist:
            raise RuntimeError(
                f"IndexIVFDPQ: the coarse quantizer holds {coarse.ntotal} vectors, the index has nlist={self.nlist}"
            )
        centres = np.zeros((self.nlist, self.d), np.float32)
        if self.by_residual:
            coarse.reconstruct_n(0, self.nlist, centres)
        return centres

    def _assigned(self, x: Floats) -> Labels:
        """The list of every vector, shape (n,); -1 where the coarse quantizer finds none (NaN)."""
        return self._coarse_quantizer.search(x, 1)[1][:, 0]

    # ---- train, add ----------------------------------------------------------------------------------------------

    @accepts_tensors()
    def train(
        self,
        x: npt.ArrayLike,
        numeric_type: int = faiss.Float32,
        *,
        xq_train: npt.ArrayLike | None = None,
        effort: str | training.Effort = "default",
        weights: npt.ArrayLike | None = None,
        trainer: str = "least-squares",
    ) -> None:
        """Train the coarse quantizer as FAISS does, then learn codebooks of the residuals.

        The first follows `cp`, `quantizer_trains_alone` and `clustering_index`, and is left out if the quantizer has
        its nlist vectors; the second is IndexDPQ.train's.

        Parameters
        ----------
        x : array, shape (n, d)
            At least nlist, and at least 2**nbits vectors.
        numeric_type, xq_train
            As in faiss.Index.train; training queries are not used.
        effort : "fast", "default", "best" or faiss_dpq.training.Effort
            How much work to do for the codebooks.
        weights : array, shape (M,), optional
            As in IndexDPQ.train.
        trainer : "least-squares" or "sgd"
            As in IndexDPQ.train.

        Raises
        ------
        RuntimeError
            If there are too few vectors, a value is NaN or infinite, or the index already holds vectors.
        ValueError
            If `effort` or `trainer` is not a known name, or `weights` do not fit.
        """
        x = self._checked_training(x, numeric_type, xq_train)
        training.check_arguments(x, self.rq.M, self._nbits, effort, weights, trainer)
        self.train_q1(len(x), faiss.swig_ptr(x), self.verbose, self.metric_type)
        # Lists have centres of their own: no shrinkage was seen to rank residuals better.
        self._learn(x - self._list_centres[self._assigned(x)], effort, weights, trainer, shrinkage=1.0)

    def _add(self, x: Floats) -> None:
        self._store(x, None)

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        self._store(x, ids)

    def _store(self, x: Floats, ids: Labels | None) -> None:
        quantizer = self.residual_quantizer
        for start in range(0, len(x), ADD_BLOCK):
            block = x[start : start + ADD_BLOCK]
            block_ids = None if ids is None else ids[start : start + ADD_BLOCK]
            lists = self._assigned(block)
            valid = lists >= 0
            # As in FAISS, what belongs to no list (NaN) is counted and never found.
            if not valid.all():
                numbers = np.arange(self.ntotal, self.ntotal + len(block)) if block_ids is None else block_ids
                block_ids = numbers[valid]
                block, lists = block[valid], lists[valid]
            self.add_sa_codes(self._sa_codes(quantizer, block, lists), block_ids)
            self.ntotal += int((~valid).sum())

    def _codes(self, quantizer: ProgressiveQuantizer, x: Floats, lists: Labels) -> Bytes:
        """Packed codes of vectors in given lists, shape (n, code_size)."""
        residuals = x - self._list_centres[lists]
        codes = quantizer.encode(residuals, self.beam_size, self._prefix_weight, self.parallel_weight, whole=x)
        return _kernels.pack_codes(codes, self._nbits)

    def _sa_codes(self, quantizer: ProgressiveQuantizer, x: Floats, lists: Labels) -> Bytes:
        """The number of the list, lowest byte first, and the code: shape (n, sa_code_size())."""
        numbers = lists.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : self.coarse_code_size()]
        return np.concatenate([numbers, self._codes(quantizer, x, lists)], axis=1)

    def _sa_encode(self, x: Floats, codes: Bytes) -> None:
        quantizer = self.residual_quantizer
        lists = self._assigned(x)
        if (lists < 0).any():
            raise RuntimeError("IndexIVFDPQ.sa_encode: x has vectors that belong to no list (NaN)")
        codes[:] = self._sa_codes(quantizer, x, lists)

    def update_vectors(self, keys: npt.ArrayLike, x: npt.NDArray[Any]) -> None:
        """Replace the vectors with ids `keys`, shape (n,), by `x`, shape (n, d); needs a direct map.

        Raises
        ------
        RuntimeError
            If there is no direct map, or no vector of one of the ids.
        """
        quantizer = self.residual_quantizer
        x = self._checked_vectors(x, "update_vectors")
        keys = self._checked_ids(keys, len(x), "update_vectors", "keys")
        if self.direct_map.type == faiss.DirectMap.Hashtable:
            if len(np.unique(keys)) < len(keys):
                raise RuntimeError("IndexIVFDPQ.update_vectors: keys has an id twice")
            for key in keys.tolist():
                self.direct_map.get(key)  # raises, before anything is removed, where there is none
            self.remove_ids(faiss.IDSelectorArray(keys))
            self.add_with_ids(x, keys)
            return
        if self.direct_map.type != faiss.DirectMap.Array:
            raise RuntimeError("IndexIVFDPQ.update_vectors: the index has no direct map; call make_direct_map() first")
        if len(keys) and not (keys.min() >= 0 and keys.max() < self.ntotal):
            raise RuntimeError(f"IndexIVFDPQ.update_vectors: keys are not all in [0, ntotal={self.ntotal})")
        lists = self._assigned(x)
        if (lists < 0).any():
            raise RuntimeError("IndexIVFDPQ.update_vectors: x has vectors that belong to no list (NaN)")
        codes = self._codes(quantizer, x, lists)
        self.direct_map.update_codes(
            self.invlists, len(keys), faiss.swig_ptr(keys), faiss.swig_ptr(lists), faiss.swig_ptr(codes)
        )
        self.invalidate()

    # ---- search ----------------------------------------------------------------------------------------------------

    def _search_directly(self, x: Any, k: Any, params: faiss.SearchParameters | None) -> tuple[Floats, Labels] | None:
        if self._direct is None or params is not None:
            return None
        return self._direct.search(self.this, self._version, x, k, self._levels)

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        asked = self._asked(params)
        derived = self._derived_lists(asked.levels)
        found = self._search_lists(derived, x, self._probed(x, asked, derived), k, asked)
        if len(x) == 1 and params is None:
            self._prepare_direct(derived, asked)
        return found.D, found.I

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
        asked = self._asked(params)
        found = self._search_lists(self._derived_lists(asked.levels), x, keys, k, asked)
        return delivered((found.D, found.I), (D, I))

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        asked = self._asked(params)
        derived = self._derived_lists(asked.levels)
        return self._range_search_lists(derived, x, thresh, self._probed(x, asked, derived), asked)

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
        return self._range_search_lists(self._derived_lists(asked.levels), x, float(thresh), keys, asked)

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        found, places, codes = self._search_codes(x, k, self._asked(params))
        R = np.full((len(x), k, self.d), np.nan, np.float32)
        here = found.I >= 0
        quantizer = self.residual_quantizer
        unpacked = _kernels.unpack_codes(np.ascontiguousarray(codes[here]), quantizer.M, quantizer.nbits)
        R[here] = quantizer.decode(unpacked) + self._list_centres[places[here] >> 32]
        return found.D, found.I, R

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
        if codes is not None and codes.shape != shape:
            raise AssertionError(
                f"IndexIVFDPQ.search_and_return_codes: codes has shape {codes.shape}, expected {shape}"
            )
        found, places, plain = self._search_codes(x, k, asked)
        codes = np.empty(shape, np.uint8) if codes is None else codes
        numbers = (places >> 32).astype("<i8").view(np.uint8).reshape(len(x), k, 8)
        codes[..., :coarse_size] = numbers[..., :coarse_size]
        codes[..., coarse_size:] = plain
        return (*delivered((found.D, found.I), (D, I)), codes)

    def _asked(self, params: faiss.SearchParameters | None) -> _Search:
        if params is None:
            asked = _Search(self.nprobe, self.max_codes, self.levels, None, None)
        elif not isinstance(params, faiss.SearchParametersIVF):
            raise RuntimeError(
                f"IndexIVFDPQ: params is a {type(params).__name__}, expected SearchParametersIVF or "
                "SearchParametersIVFDPQ"
            )
        else:
            asked = _Search(
                params.nprobe,
                params.max_codes,
                self._asked_levels(params),
                selector_of(params),
                getattr(params, "_sp_field_refs", {}).get("quantizer_params", params.quantizer_params),
            )
        if asked.nprobe < 1:
            raise RuntimeError(f"IndexIVFDPQ: nprobe is {asked.nprobe}, expected at least 1")
        return asked

    def _probed(self, x: Floats, asked: _Search, derived: scan.DerivedLists) -> Labels:
        """The lists nearest to every query, shape (n, nprobe)."""
        nprobe = min(asked.nprobe, len(derived.sizes))
        if self._has_plain_centres and asked.quantizer_params is None:
            return derived.nearest_lists(x, nprobe)
        return self._coarse_quantizer.search(x, nprobe, **given(asked.quantizer_params))[1]

    @property
    def _has_plain_centres(self) -> bool:
        """Whether the lists' own centres, by their distances, are what the coarse quantizer goes by."""
        coarse = self._coarse_quantizer
        plain = type(coarse) in _FLAT and coarse.metric_type == faiss.METRIC_L2
        return plain and self.metric_type == faiss.METRIC_L2 and bool(self.by_residual)

    def _search_lists(self, derived: scan.DerivedLists, x: Floats, keys: Labels, k: int, asked: _Search) -> scan.Found:
        if asked.selector is None:
            few = scan.search_few(derived, self.invlists, x, keys, asked.max_codes, k)
            if few is not None:
                return few
        with scan.opened(self.invlists, keys) as lists:
            counts = scan.scanned_counts(keys, lists.sizes, asked.max_codes)
            return scan.search(derived, lists, asked.selector, x, keys, counts, k)

    def _search_codes(self, x: Floats, k: int, asked: _Search) -> tuple[scan.Found, Labels, Bytes]:
        """A search's results, list << 32 | offset of every one, and the codes there."""
        derived = self._derived_lists(asked.levels)
        keys = self._probed(x, asked, derived)
        places = np.empty((len(x), k), np.int64)
        codes = np.empty((len(x), k, self.code_size), np.uint8)
        with scan.opened(self.invlists, keys) as lists:
            counts = scan.scanned_counts(keys, lists.sizes, asked.max_codes)
            found = scan.search(derived, lists, asked.selector, x, keys, counts, k, places)
            _kernels.gather_codes(places.ravel(), lists.codes, codes.reshape(-1, self.code_size))
        return found, places, codes

    def _range_search_lists(
        self, derived: scan.DerivedLists, x: Floats, thresh: float, keys: Labels, asked: _Search
    ) -> RangeResult:
        with scan.opened(self.invlists, keys) as lists:
            counts = scan.scanned_counts(keys, lists.sizes, asked.max_codes)
            lims, D, I = scan.range_search(derived, lists, asked.selector, x, keys, counts, thresh)
        return lims.astype(np.uint64), D, I

    # ---- what is derived from codebooks, centres and lists ----------------------------------------------------------

    def _derived_lists(self, levels: int) -> scan.DerivedLists:
        """What a search needs besides the lists themselves; true of the codebooks and centres as they are."""
        known, quantizer = self._current(), self.residual_quantizer
        derived = known.derived.get(levels)
        if derived is None or derived.quantizer is not quantizer:
            centres = scan.Centres(known.centres, quantizer, self.metric_type)
            derived = known.derived[levels] = scan.DerivedLists(quantizer, centres, levels)
        return derived

    def _current(self) -> _Known:
        known = self._known
        if (
            known is None
            or known.this is not self.this
            or known.version != self._version
            or not known.unchanged.holds()
            or known.fingerprint != self._fingerprint()
        ):
            centres = self._read_centres()
            known = self._known = _Known(self.this, self._version, self._fingerprint(), self._unchanged(), centres)
        return known

    def _unchanged(self, parameters: bool = False) -> _kernels.Unchanged:
        vectors = [(self.rq.codebooks, np.float32, self.d)]
        coarse = self._coarse_quantizer
        if isinstance(coarse, faiss.IndexFlatCodes):
            vectors.append((coarse.codes, np.uint8, coarse.code_size))
        getters = _STRUCTURE + parameters * _PARAMETERS
        return _kernels.Unchanged(vectors, [(self, get) for get in getters], [(self, get) for get in _PARTS])

    def _fingerprint(self) -> tuple[Any, ...] | None:
        """Changes with the vectors of a coarse quantizer that does not keep codes, but for bad luck."""
        coarse = self._coarse_quantizer
        if isinstance(coarse, faiss.IndexFlatCodes):
            return None
        n = coarse.ntotal
        sample = np.unique(np.linspace(0, n - 1, _SAMPLE, dtype=np.int64)) if n else np.empty(0, np.int64)
        return n, coarse.reconstruct_batch(sample).tobytes()

    def _prepare_direct(self, derived: scan.DerivedLists, asked: _Search) -> None:
        """Let later searches of one query, with the same parameters, go to the kernels at once."""
        if not self._has_plain_centres:
            return
        direct = self._direct
        if direct is None or not direct.is_of(self.this, self._version):
            direct = self._direct = _kernels.DirectSearch(self.this, self._version)
        one_query = direct.scans.get(self._levels)
        if one_query is None or not one_query.is_good():
            direct.scans[self._levels] = scan.one_query_scan(
                derived, self.invlists, asked.nprobe, asked.max_codes, self._unchanged(parameters=True)
            )

    # ---- prefixes, memory ------------------------------------------------------------------------------------------

    def truncate(self, levels: int) -> "IndexIVFDPQ":
        """A new index of the first `levels` levels: the same lists, codebooks and codes, cut; nothing is encoded again.

        Parameters
        ----------
        levels : int
            1 to M.

        Returns
        -------
        index : IndexIVFDPQ
            With the vectors of this one, in codes of ceil(levels * nbits / 8) bytes, and a copy of its coarse
            quantizer.
        """
        levels = self._checked_levels(levels, "levels")
        coarse = faiss.clone_index(self._coarse_quantizer)
        index = IndexIVFDPQ(coarse, self.d, self.nlist, levels, self._nbits, self.metric_type)
        index._set_codebooks_of(self, levels)
        index.by_residual = self.by_residual
        index.nprobe, index.max_codes = self.nprobe, self.max_codes
        with scan.opened(self.invlists, np.arange(self.nlist)) as lists:
            for number in np.flatnonzero(lists.sizes).tolist():
                n = int(lists.sizes[number])
                packed, ids = np.empty((n, self.code_size), np.uint8), np.empty(n, np.int64)
                _kernels.copy_codes(lists.codes[number], packed)
                _kernels.list_ids(np.array([number]), lists, ids)
                codes = _kernels.pack_codes(_kernels.unpack_codes(packed, levels, self._nbits), self._nbits)
                index.invlists.add_entries(number, n, faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        index.ntotal = self.ntotal
        return index

    def memory_usage(self) -> dict[str, int]:
        """Bytes that the index holds: codes and ids, codebooks, and what is derived from either to encode and search.

        Returns
        -------
        usage : dict
            "codes", "ids" and "codebooks", which a file holds too, the codebooks without the coarse quantizer; "tables"
            of the codebooks' products, FAISS's and ours; "derived" from the codes: about five bytes a vector (one, for
            inner products none) for every prefix length that was searched.
        """
        derived = self._known.derived if self._known else {}
        return {
            "codes": self.ntotal * self.code_size,
            "ids": self.ntotal * 8,
            **self._memory_of_codebooks(),
            "derived": sum(lists.nbytes for lists in derived.values()),
        }

    # ---- what Python needs -----------------------------------------------------------------------------------------

    def _checked_keys(self, Iq: npt.ArrayLike, method: str, n: int) -> Labels:
        keys = np.ascontiguousarray(Iq, np.int64)
        if keys.ndim != 2 or len(keys) != n:
            raise AssertionError(f"IndexIVFDPQ.{method}: Iq has shape {keys.shape}, expected ({n}, number of lists)")
        if keys.size and keys.max() >= self.nlist:
            raise RuntimeError(f"IndexIVFDPQ.{method}: Iq has {keys.max()}, the index has nlist={self.nlist}")
        return keys

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self._coarse_quantizer]

    def _described(self) -> list[str]:
        return [f"nlist={self.nlist}", *super()._described()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._coarse = None
        super().__setstate__(state)
