"""IndexIVFDPQ: the progressive quantizer in inverted lists, where faiss.IndexIVFPQ stood."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import Floats, ProgressiveQuantizer, default_beam_size
from ..search import lists as _lists
from ..search import selection as _selection
from ..search.flat import Labels
from . import watch as _watch
from .flat import PYTHON_STATE, IndexDPQ, _search_type, check_arguments, check_output
from .tensors import accepts_tensors, given

_ADD_BLOCK = 1 << 16  # vectors encoded and stored at a time: bounds the memory of `add`
_SAMPLE = 8  # centres compared to notice that the coarse quantizer changed, where its codes are not at hand
_FINGERPRINT = 512  # bytes compared, where they are

_FLAT = faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP

Bytes = npt.NDArray[np.uint8]


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


class IndexIVFDPQ(faiss.IndexIVFResidualQuantizer):
    """Inverted lists of progressive codes of residuals, with FAISS's index interface.

    Takes the place of faiss.IndexIVFPQ: the same calls, code size, shapes, dtypes and padding. A vector is coded by its
    list's centre and M codewords, x ~ c + c_1(k_1) + ... + c_M(k_M). It is a faiss.IndexIVFResidualQuantizer whose
    codebooks are trained, and whose vectors are encoded and searched, by this package; a stock FAISS opens its files
    and returns the same results, only slower.

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

    # Class attributes: FAISS's __setattr__ refuses names that the class does not have.
    _cached: tuple[bytes, ProgressiveQuantizer] | None = None
    _coarse: tuple[int, faiss.Index] | None = None
    _centres: tuple[tuple[Any, ...], Floats] | None = None
    _derived_by_levels: dict[int, tuple[Floats, _lists.DerivedLists]] | None = None
    _watched: _kernels.Watch | None = None
    _levels: int = 0
    _known_M: int = 0
    _prefix_weight: float = IndexDPQ._prefix_weight
    _parallel_weight: float | None = None
    _train_stats: training.TrainStats | None = None

    def __init__(
        self,
        coarse_quantizer: faiss.Index,
        d: int,
        nlist: int,
        M: int,
        nbits: int = 8,
        metric: int = faiss.METRIC_L2,
    ) -> None:
        check_arguments("IndexIVFDPQ", d, M, nbits, metric)
        if nlist < 1:
            raise ValueError(f"IndexIVFDPQ: nlist is {nlist}, expected at least 1")
        super().__init__(coarse_quantizer, d, nlist, M, nbits, metric, _search_type(M, nbits, metric))
        self._coarse = (int(self.quantizer.this), coarse_quantizer)
        self.rq.max_beam_size = default_beam_size(M)
        if self.rq.search_type == faiss.AdditiveQuantizer.ST_decompress:
            self.rq.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables

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

    # ---- codebooks and parameters: IndexDPQ's, which ask for nothing but `rq`, `d` and `is_trained` ------------------

    _codebook_values = IndexDPQ._codebook_values
    _fingerprint = IndexDPQ._fingerprint
    _set_quantizer = IndexDPQ._set_quantizer
    shrinkage = IndexDPQ.shrinkage
    _require_empty = IndexDPQ._require_empty
    _learn = IndexDPQ._learn
    _nbits = IndexDPQ._nbits
    _M = IndexDPQ._M
    _checked_levels = IndexDPQ._checked_levels
    _checked_vectors = IndexDPQ._checked_vectors
    levels = IndexDPQ.levels
    beam_size = IndexDPQ.beam_size
    prefix_weight = IndexDPQ.prefix_weight
    parallel_weight = IndexDPQ.parallel_weight
    train_stats = IndexDPQ.train_stats
    assign = IndexDPQ.assign
    #: The trained quantizer of the residuals; FAISS's `quantizer` is the coarse one.
    residual_quantizer = IndexDPQ.residual_quantizer

    @property
    def codebooks(self) -> Floats:
        """A copy of the residuals' codebooks: array, shape (M, K, d), float32."""
        return self.residual_quantizer.codebooks.copy()

    # ---- the coarse quantizer ------------------------------------------------------------------------------------

    @property
    def _coarse_quantizer(self) -> faiss.Index:
        """`quantizer` as an object of its own class: the one that was given, if it still is the same."""
        from .io import downcast_index  # which knows this class in turn

        address = int(self.quantizer.this)
        if self._coarse is None or self._coarse[0] != address:
            self._coarse = (address, downcast_index(self.quantizer))
        return self._coarse[1]

    @property
    def _list_centres(self) -> Floats:
        """The centre that codes of each list are residuals to: array, shape (nlist, d)."""
        coarse = self._coarse_quantizer
        fingerprint = (self.by_residual, *_centre_fingerprint(coarse))
        if self._centres is None or self._centres[0] != fingerprint:
            if coarse.ntotal != self.nlist:
                raise RuntimeError(
                    f"IndexIVFDPQ: the coarse quantizer holds {coarse.ntotal} vectors, the index has nlist={self.nlist}"
                )
            centres = np.zeros((self.nlist, self.d), np.float32)
            if self.by_residual:
                coarse.reconstruct_n(0, self.nlist, centres)
            self._centres = (fingerprint, centres)
        return self._centres[1]

    def _assigned(self, x: Floats) -> Labels:
        """The list of every vector, shape (n,); -1 where the coarse quantizer finds none (NaN)."""
        return self._coarse_quantizer.search(x, 1)[1][:, 0]

    # ---- train, add ----------------------------------------------------------------------------------------------

    @accepts_tensors
    def train(
        self,
        x: npt.NDArray[Any],
        *,
        numeric_type: int = faiss.Float32,
        xq_train: Any = None,
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
        x = self._checked_vectors(x, "train", numeric_type)
        self._require_empty()
        training.check_arguments(x, self.rq.M, self._nbits, effort, weights, trainer)
        self.train_q1(len(x), faiss.swig_ptr(x), self.verbose, self.metric_type)
        # Lists have centres of their own: no shrinkage was seen to rank residuals better.
        self._learn(x - self._list_centres[self._assigned(x)], effort, weights, trainer, shrinkage=1.0)

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Encode vectors, shape (n, d), and store their codes under the ids ntotal, ntotal + 1, ..."""
        self._add(self._checked_vectors(x, "add", numeric_type), None)

    @accepts_tensors
    def add_with_ids(self, x: npt.NDArray[Any], ids: npt.ArrayLike, numeric_type: int = faiss.Float32) -> None:
        """Encode vectors, shape (n, d), and store their codes under the given ids, shape (n,), int64."""
        x = self._checked_vectors(x, "add_with_ids", numeric_type)
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.shape != (len(x),):
            raise AssertionError(f"IndexIVFDPQ.add_with_ids: ids has shape {ids.shape}, expected {(len(x),)}")
        self._add(x, ids)

    def _add(self, x: Floats, ids: Labels | None) -> None:
        quantizer = self.residual_quantizer
        for start in range(0, len(x), _ADD_BLOCK):
            block = x[start : start + _ADD_BLOCK]
            block_ids = None if ids is None else ids[start : start + _ADD_BLOCK]
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

    @accepts_tensors
    def sa_encode(self, x: npt.NDArray[Any], codes: Bytes | None = None) -> Bytes:
        """Codes of vectors as FAISS packs them, list number and code: (n, d) to (n, sa_code_size()), uint8."""
        quantizer = self.residual_quantizer
        x = self._checked_vectors(x, "sa_encode")
        shape = (len(x), self.sa_code_size())
        if codes is None:
            codes = np.empty(shape, np.uint8)
        else:
            check_output(codes, shape, np.uint8, "IndexIVFDPQ.sa_encode", "codes")
        lists = self._assigned(x)
        if (lists < 0).any():
            raise RuntimeError("IndexIVFDPQ.sa_encode: x has vectors that belong to no list (NaN)")
        codes[:] = self._sa_codes(quantizer, x, lists)
        return codes

    def update_vectors(self, keys: npt.ArrayLike, x: npt.NDArray[Any]) -> None:
        """Replace the vectors with ids `keys`, shape (n,), by `x`, shape (n, d); needs a direct map.

        Raises
        ------
        RuntimeError
            If there is no direct map, or no vector of one of the ids.
        """
        quantizer = self.residual_quantizer
        x = self._checked_vectors(x, "update_vectors")
        keys = np.ascontiguousarray(keys, np.int64)
        if keys.shape != (len(x),):
            raise AssertionError(f"IndexIVFDPQ.update_vectors: keys has shape {keys.shape}, expected {(len(x),)}")
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

    # ---- search ----------------------------------------------------------------------------------------------------

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest codes in the `nprobe` lists nearest to each query, by exact asymmetric distances.

        Parameters
        ----------
        x : array, shape (n, d)
        k : int
        params : faiss.SearchParametersIVF or SearchParametersIVFDPQ, optional
            In place of the index's own `nprobe`, `max_codes` and `levels`; `sel` restricts the search to some ids.
        D, I : arrays, shape (n, k), float32 and int64, optional
            Where to put the result.

        Returns
        -------
        D : array, shape (n, k), float32
            Squared L2 distances or inner products, best first; +-FLT_MAX where fewer than k vectors were found.
        I : array, shape (n, k), int64
            Ids; -1 where fewer than k vectors were found.

        Raises
        ------
        RuntimeError
            If the index is not trained, nprobe < 1, or `params` are of another kind of index.
        AssertionError
            If x has other than d columns, k < 1, or D or I has a wrong shape.
        ValueError
            If x is not two-dimensional or `levels` is not between 1 and M.
        """
        watched = self._watched
        if watched is not None and params is D is I is None and numeric_type == faiss.Float32:
            single = watched.search(self.this, x, k, self._levels)
            if single is not None:
                return single
        x = self._checked_vectors(x, "search", numeric_type)
        self._check_outputs("search", len(x), k, D=D, I=I)
        asked = self._asked(params)
        derived = self._derived_lists(asked.levels)
        found = self._search(derived, x, self._probed(x, asked, derived), k, asked)
        if len(x) == 1 and params is None:
            self._prepare_single(derived, asked)
        return _delivered(found, D, I)

    @accepts_tensors
    def search_preassigned(
        self,
        x: npt.NDArray[Any],
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
        self._check_outputs("search_preassigned", len(x), k, D=D, I=I)
        keys = self._checked_keys(Iq, "search_preassigned", len(x))
        asked = self._asked(params)
        found = self._search(self._derived_lists(asked.levels), x, keys, k, asked)
        return _delivered(found, D, I)

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
        """All codes in the probed lists nearer than a threshold; of each query nearest first.

        Parameters
        ----------
        x : array, shape (n, d)
        thresh : float
            Squared L2 distances below it are found, or inner products above it.
        params : faiss.SearchParametersIVF or SearchParametersIVFDPQ, optional
            As in `search`.

        Returns
        -------
        lims : array, shape (n + 1,), uint64
            The results of query i are D[lims[i]:lims[i + 1]] and I[lims[i]:lims[i + 1]].
        D : array, shape (lims[n],), float32
        I : array, shape (lims[n],), int64
        """
        x = self._checked_vectors(x, "range_search")
        asked = self._asked(params)
        derived = self._derived_lists(asked.levels)
        return self._range_search(derived, x, thresh, self._probed(x, asked, derived), asked)

    def range_search_preassigned(
        self,
        x: npt.NDArray[Any],
        thresh: float,
        Iq: npt.ArrayLike,
        Dq: npt.ArrayLike | None = None,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
        """`range_search` in given lists: `Iq`, shape (n, any number), int64, -1 for none. `Dq` is not needed."""
        x = self._checked_vectors(x, "range_search_preassigned")
        keys = self._checked_keys(Iq, "range_search_preassigned", len(x))
        asked = self._asked(params)
        return self._range_search(self._derived_lists(asked.levels), x, thresh, keys, asked)

    @accepts_tensors
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and the reconstructions of the vectors found, shape (n, k, d); NaN where none was found."""
        x = self._checked_vectors(x, "search_and_reconstruct")
        self._check_outputs("search_and_reconstruct", len(x), k, D=D, I=I, R=R)
        asked = self._asked(params)
        derived = self._derived_lists(asked.levels)
        found, places, codes = self._search_codes(derived, x, self._probed(x, asked, derived), k, asked)
        if R is None:
            R = np.empty((len(x), k, self.d), np.float32)
        here = found.I >= 0
        quantizer = self.residual_quantizer
        R[~here] = np.nan
        unpacked = _kernels.unpack_codes(np.ascontiguousarray(codes[here]), quantizer.M, quantizer.nbits)
        R[here] = quantizer.decode(unpacked) + self._list_centres[places[here] >> 32]
        return (*_delivered(found, D, I), R)

    def search_and_return_codes(
        self,
        x: npt.NDArray[Any],
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
        self._check_outputs("search_and_return_codes", len(x), k, D=D, I=I)
        asked = self._asked(params)
        coarse_size = self.coarse_code_size() if include_listnos else 0
        shape = (len(x), k, coarse_size + self.code_size)
        if codes is not None and codes.shape != shape:
            raise AssertionError(
                f"IndexIVFDPQ.search_and_return_codes: codes has shape {codes.shape}, expected {shape}"
            )
        derived = self._derived_lists(asked.levels)
        found, places, plain = self._search_codes(derived, x, self._probed(x, asked, derived), k, asked)
        codes = np.empty(shape, np.uint8) if codes is None else codes
        numbers = (places >> 32).astype("<i8").view(np.uint8).reshape(len(x), k, 8)
        codes[..., :coarse_size] = numbers[..., :coarse_size]
        codes[..., coarse_size:] = plain
        return (*_delivered(found, D, I), codes)

    def _asked(self, params: faiss.SearchParameters | None) -> _Search:
        if params is None:
            asked = _Search(self.nprobe, self.max_codes, self.levels, None, None)
        elif not isinstance(params, faiss.SearchParametersIVF):
            raise RuntimeError(
                f"IndexIVFDPQ: params is a {type(params).__name__}, expected SearchParametersIVF or "
                "SearchParametersIVFDPQ"
            )
        else:
            levels = getattr(params, "levels", 0)
            asked = _Search(
                params.nprobe,
                params.max_codes,
                self._checked_levels(levels, "params.levels") if levels else self.levels,
                _selection.selector_of(params),
                getattr(params, "_sp_field_refs", {}).get("quantizer_params", params.quantizer_params),
            )
        if asked.nprobe < 1:
            raise RuntimeError(f"IndexIVFDPQ: nprobe is {asked.nprobe}, expected at least 1")
        return asked

    def _probed(self, x: Floats, asked: _Search, derived: _lists.DerivedLists) -> Labels:
        """The lists nearest to every query, shape (n, nprobe)."""
        nprobe = min(asked.nprobe, len(derived.sizes))
        if self._is_flat and asked.quantizer_params is None:
            return derived.nearest(x, nprobe)
        return self._coarse_quantizer.search(x, nprobe, **given(asked.quantizer_params))[1]

    def _search(self, derived: _lists.DerivedLists, x: Floats, keys: Labels, k: int, asked: _Search) -> _lists.Found:
        if asked.selector is None:
            few = _lists.search_few(derived, self.invlists, x, keys, asked.max_codes, k)
            if few is not None:
                return few
        with _lists.opened(self.invlists, keys) as lists:
            counts = _lists.scanned_counts(keys, lists.sizes, asked.max_codes)
            return _lists.search(derived, lists, asked.selector, x, keys, counts, k)

    def _prepare_single(self, derived: _lists.DerivedLists, asked: _Search) -> None:
        """Let later searches of one query, with the same parameters, go to the kernels at once."""
        watched = self._watched
        if watched is not None and self._is_flat and self._levels not in watched.singles:
            single = _lists.single_scan(derived, self.invlists, asked.nprobe, asked.max_codes)
            watched.singles[self._levels] = single

    def _search_codes(
        self, derived: _lists.DerivedLists, x: Floats, keys: Labels, k: int, asked: _Search
    ) -> tuple[_lists.Found, Labels, Bytes]:
        """`_search`, list << 32 | offset of every result, and the codes there."""
        places = np.empty((len(x), k), np.int64)
        codes = np.empty((len(x), k, self.code_size), np.uint8)
        with _lists.opened(self.invlists, keys) as lists:
            counts = _lists.scanned_counts(keys, lists.sizes, asked.max_codes)
            found = _lists.search(derived, lists, asked.selector, x, keys, counts, k, places)
            _kernels.gather_codes(places.ravel(), lists.codes, codes.reshape(-1, self.code_size))
        return found, places, codes

    def _range_search(
        self, derived: _lists.DerivedLists, x: Floats, thresh: float, keys: Labels, asked: _Search
    ) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
        with _lists.opened(self.invlists, keys) as lists:
            counts = _lists.scanned_counts(keys, lists.sizes, asked.max_codes)
            lims, D, I = _lists.range_search(derived, lists, asked.selector, x, keys, counts, float(thresh))
        return lims.astype(np.uint64), D, I

    def _derived_lists(self, levels: int) -> _lists.DerivedLists:
        """What a search needs besides the lists themselves, brought up to date with codebooks and centres."""
        if self._derived_by_levels is None:
            self._derived_by_levels = {}
        kept, watched = self._derived_by_levels, self._watched
        if watched is not None and watched.is_same(self.this) and levels in kept:
            return kept[levels][1]
        quantizer, centres = self.residual_quantizer, self._list_centres
        for number, (its_centres, derived) in list(kept.items()):
            if its_centres is not centres or not derived.is_of(quantizer, self.metric_type):
                kept.pop(number, None)
        if levels not in kept:
            derived = _lists.DerivedLists(quantizer, _lists.Centres(centres, quantizer, self.metric_type), levels)
            kept[levels] = (centres, derived)
        self._watched = self._start_watch()
        return kept[levels][1]

    @property
    def _is_flat(self) -> bool:
        """Whether the lists' own centres, by their distances, are what the coarse quantizer goes by."""
        return self._watched is not None and self.metric_type == faiss.METRIC_L2 and bool(self.by_residual)

    def _start_watch(self) -> _kernels.Watch | None:
        """What all but the codes, which are looked at list by list, is known by; None if it is not to be seen there.

        It is, if the coarse quantizer is plain vectors.
        """
        coarse, layout = self._coarse_quantizer, _lists.vector_layout()
        if layout is None or type(coarse) not in _FLAT or coarse.metric_type != self.metric_type:
            return None
        codebooks, centres, invlists = self.rq.codebooks, coarse.codes, faiss.downcast_InvertedLists(self.invlists)
        spans = [_watch.up_to(self, int(codebooks.this)), _watch.up_to(coarse, int(centres.this), 8 * layout[0])]
        if isinstance(invlists, faiss.ArrayInvertedLists):
            spans.append(_watch.up_to(invlists, int(invlists.ids)))
        spans += [_watch.sample(codebooks, 4), _watch.sample(centres, 1)]
        return _kernels.Watch(self.this, np.array(spans, np.uint64))

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
        codebooks = self.residual_quantizer.codebooks[:levels]
        coarse = faiss.clone_index(self._coarse_quantizer)
        index = IndexIVFDPQ.from_codebooks(coarse, codebooks, self.metric_type)
        index.beam_size, index.by_residual = self.beam_size, self.by_residual
        index.nprobe, index.max_codes = self.nprobe, self.max_codes
        with _lists.opened(self.invlists, np.arange(self.nlist)) as lists:
            for number in np.flatnonzero(lists.sizes).tolist():
                n = int(lists.sizes[number])
                packed, ids = np.empty((n, self.code_size), np.uint8), np.empty(n, np.int64)
                _kernels.copy_codes(lists.codes[number], packed)
                _kernels.gather_ids(np.array([number]), lists.ids, lists.sizes, ids)
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
        faiss_tables = 4 * (self.rq.codebook_cross_products.size() + self.rq.centroid_norms.size())
        quantizer = self._cached[1] if self._cached else None
        return {
            "codes": self.ntotal * self.code_size,
            "ids": self.ntotal * 8,
            "codebooks": 4 * self.rq.codebooks.size() + (quantizer.codebooks.nbytes if quantizer else 0),
            "tables": faiss_tables + (quantizer.derived_bytes() if quantizer else 0),
            "derived": sum(derived.nbytes for _, derived in (self._derived_by_levels or {}).values()),
        }

    # ---- what Python needs -----------------------------------------------------------------------------------------

    def _check_outputs(self, method: str, n: int, k: int, **outputs: npt.NDArray[Any] | None) -> None:
        if k < 1:
            raise AssertionError(f"IndexIVFDPQ.{method}: k is {k}, expected at least 1")
        for name, out in outputs.items():
            if out is not None:
                shape = (n, k, self.d) if name == "R" else (n, k)
                check_output(out, shape, np.int64 if name == "I" else np.float32, f"IndexIVFDPQ.{method}", name)

    def _checked_keys(self, Iq: npt.ArrayLike, method: str, n: int) -> Labels:
        keys = np.ascontiguousarray(Iq, np.int64)
        if keys.ndim != 2 or len(keys) != n:
            raise AssertionError(f"IndexIVFDPQ.{method}: Iq has shape {keys.shape}, expected ({n}, number of lists)")
        if keys.size and keys.max() >= self.nlist:
            raise RuntimeError(f"IndexIVFDPQ.{method}: Iq has {keys.max()}, the index has nlist={self.nlist}")
        return keys

    def __getstate__(self) -> dict[str, Any]:
        # __getstate__ of FAISS holds what a file would; ours adds what only the Python object knows.
        return super().__getstate__() | {name: getattr(self, name) for name in PYTHON_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in PYTHON_STATE:
            setattr(self, name, state[name])
        self._watched = self._coarse = None


def _delivered(found: _lists.Found, D: Floats | None, I: Labels | None) -> tuple[Floats, Labels]:
    if D is not None:
        D[:] = found.D
    if I is not None:
        I[:] = found.I
    return found.D if D is None else D, found.I if I is None else I


def _centre_fingerprint(coarse: faiss.Index) -> tuple[Any, ...]:
    """Changes, but for bad luck, with the coarse quantizer's vectors."""
    n = coarse.ntotal
    if isinstance(coarse, faiss.IndexFlatCodes) and n:
        codes = faiss.rev_swig_ptr(coarse.codes.data(), coarse.codes.size())
        return coarse.this, n, codes[:: max(1, len(codes) // _FINGERPRINT)].tobytes()
    sample = np.unique(np.linspace(0, n - 1, _SAMPLE, dtype=np.int64)) if n else np.empty(0, np.int64)
    return coarse.this, n, coarse.reconstruct_batch(sample).tobytes()
