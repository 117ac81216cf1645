"""IndexDPQ: the progressive quantizer as a FAISS index that stands where faiss.IndexPQ stood."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import Codes, Floats, Layout, ProgressiveQuantizer
from ..search import coarse
from ..search import flat as scan
from ..search.derived import Bytes, DerivedCodes, should_store_terms
from ..search.masks import Masks
from ..search.selection import Labels, bits_of, selector_of
from ..search.stored import Step, StoredCodes
from .base import RangeResult
from .quantized import ADD_BLOCK, Quantized, has_fitting_codes, search_type
from .registry import stands_for
from .removal import Removed, counted, listed_ids
from .tensors import accepts_tensors

_DERIVED_AT_ONCE = 1 << 10  # vectors that are added together, at least, where their terms are derived with their codes


class SearchParametersDPQ(faiss.SearchParameters):
    """Parameters of one search of an IndexDPQ.

    Parameters
    ----------
    levels : int
        Compare only this many levels of every code; 0 means the index's own `levels`.
    sel : faiss.IDSelector, optional
        Search only the vectors whose ids it admits.
    coarse_levels : int, optional
        Find candidates by this many levels first, as `IndexDPQ.coarse_levels` says; 0: compare all vectors. By default
        the index's own.
    k_factor : float, optional
        Candidates a result; by default the index's own.
    """

    levels = 0
    coarse_levels: int | None = None
    k_factor: float | None = None

    def __init__(
        self,
        levels: int = 0,
        sel: faiss.IDSelector | None = None,
        coarse_levels: int | None = None,
        k_factor: float | None = None,
    ) -> None:
        super().__init__(sel=sel)
        self.levels, self.coarse_levels, self.k_factor = levels, coarse_levels, k_factor


@stands_for(faiss.IndexResidualQuantizer, has_fitting_codes)
class IndexDPQ(Quantized, faiss.IndexResidualQuantizer):
    """Progressive (additive, residual) quantization with FAISS's index interface.

    Takes the place of faiss.IndexPQ: the same constructor arguments, calls, code size, shapes, dtypes and padding. It
    is a faiss.IndexResidualQuantizer whose codebooks are trained, and whose vectors are encoded and searched, by this
    package; a stock FAISS opens its files and returns the same results, only slower. Searches find the nearest codes by
    exact asymmetric distances (Eq. 30), equal ones by ascending id; their parameters are a SearchParametersDPQ or
    faiss.SearchParameters.

    Parameters
    ----------
    d : int
        Dimension of the vectors; it need not be a multiple of M.
    M : int
        Number of levels, i.e. of codebooks and of codeword numbers in a code; 1 to 1024.
    nbits : int
        Bits a level, 1 to 12: every codebook has 2**nbits codewords. A code takes ceil(M * nbits / 8) bytes.
    metric : int
        faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT.

    Raises
    ------
    ValueError
        If an argument is outside these ranges.
    """

    _derived: dict[int, DerivedCodes] | None = None  # by levels
    _vector: tuple[Any, _kernels.FaissVector] | None = None
    _masks: Masks | None = None

    def __init__(self, d: int, M: int, nbits: int = 8, metric: int = faiss.METRIC_L2) -> None:
        self._check_shape("IndexDPQ", d, M, nbits, metric)
        super().__init__(d, M, nbits, metric, search_type(M, nbits, metric))
        self._set_up()

    @classmethod
    def from_codebooks(cls, codebooks: npt.ArrayLike, metric: int = faiss.METRIC_L2) -> "IndexDPQ":
        """A trained, empty index with given codebooks.

        Parameters
        ----------
        codebooks : array, shape (M, K, d), float32
            K must be a power of two from 2 to 4096.
        metric : int
            faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT.

        Raises
        ------
        ValueError
            If the shape does not fit or a value is not finite.
        """
        quantizer = ProgressiveQuantizer(codebooks)
        index = cls(quantizer.d, quantizer.M, quantizer.nbits, metric)
        index._set_quantizer(quantizer)
        return index

    # ---- train, encode -----------------------------------------------------------------------------------------

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
        shrinkage: float | None = None,
        parallel_weight: float | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Learn the codebooks from vectors: residual k-means, then annealed alternation of encoding and least squares.

        Deterministic for a given `rq.cp.seed`. See `faiss_dpq.training.train_codebooks`.

        Parameters
        ----------
        x : array, shape (n, d)
            At least 2**nbits vectors.
        numeric_type
            faiss.Float32: like IndexPQ, this index takes no other.
        xq_train : array, shape (nq, d), optional
            Training queries, as faiss.Index.train takes them; they are not used.
        effort : "fast", "default", "best" or faiss_dpq.training.Effort
            How much work to do; "best" makes three times the turns of "default", with twice the beam.
        weights : array, shape (M,), optional
            The weight of the error at every prefix length; M, M - 1, ..., 1 by default, which is best at full length
            too.
        trainer : "least-squares" or "sgd"
            "sgd" goes on with the paper's own optimiser, in torch; see `faiss_dpq.training.train_codebooks`.
        shrinkage : float, optional
            How far reconstructions are moved towards their centre at last. By default the factor by which training
            vectors rank each other best, see `faiss_dpq.training.Ranking`; 1 gives the least squared error. Inner
            products are ranked alike by all, and it is 1.
        parallel_weight : float, optional
            The index's `parallel_weight` from now on. Unless given, or set as an attribute before, the one by which
            training vectors rank each other best; 0 gives the least squared error.
        layout : faiss_dpq.codec.Layout, optional
            For experts: the subspace of each level. By default, it follows from d, M, nbits and the number of vectors.

        Raises
        ------
        RuntimeError
            If there are fewer vectors than codewords in a codebook, a value is NaN or infinite, the index already holds
            vectors, or numeric_type is another one of FAISS's.
        ValueError
            If `effort` or `trainer` is not a known name, `weights` are not M finite numbers >= 0 of which the last
            is > 0, `shrinkage` is not above 0 and at most 1, `parallel_weight` is not a number >= 0, or `layout` is for
            another d, M or nbits.
        """
        x = self._checked_training(x, numeric_type, xq_train)
        if shrinkage is not None and not 0 < shrinkage <= 1:
            raise ValueError(f"IndexDPQ.train: shrinkage is {shrinkage}, expected above 0 and at most 1")
        if self.metric_type == faiss.METRIC_INNER_PRODUCT:
            shrinkage = 1.0
        self._all_or_untrained(lambda: self._learn(x, effort, weights, trainer, shrinkage, layout, parallel_weight))

    def _add(self, x: Floats) -> None:
        for start in range(0, len(x), ADD_BLOCK):
            block = x[start : start + ADD_BLOCK]
            self.add_sa_codes(self.sa_encode(block))
            self._derive_added(len(block))

    def _derive_added(self, n: int) -> None:
        """Derive the terms of many codes of many levels with the codes: else the first search would wait for them."""
        if n < _DERIVED_AT_ONCE or self.levels <= _kernels.FEW_LEVELS:
            return
        derived = self._derived_codes(self.residual_quantizer, self.levels)
        if derived.fits and (n == self.ntotal or derived.sample is not None):  # and not of all that was there before
            derived.view(self._codes_in_memory, self.code_size, self._version)

    def _sa_encode(self, x: Floats, codes: Bytes) -> None:
        quantizer = self.residual_quantizer
        weights = self._prefix_weight, self.parallel_weight, self._parallel_rest
        unpacked = quantizer.encode(x, self.beam_size, *weights, x if self._along_whole else None)
        if self.rq.norm_bits == 0:
            codes[:] = _kernels.pack_codes(unpacked, self._nbits)
        else:
            # A stock index that stores norms beside its codes keeps doing so.
            packed = np.empty_like(codes)
            numbers = unpacked.astype(np.int32)
            self.rq.pack_codes(len(x), faiss.swig_ptr(numbers), faiss.swig_ptr(packed))
            codes[:] = packed

    # ---- search ------------------------------------------------------------------------------------------------

    def _plain(self, params: faiss.SearchParameters) -> tuple[int | None, _kernels.SelectorMask | None]:
        if type(params) is SearchParametersDPQ and not params.coarse_levels:
            return params.levels or self._levels, self._mask(params, in_place=True)
        if type(params) is faiss.SearchParameters:
            return self._levels, self._mask(params, in_place=True)
        return None, None

    def _mask(self, params: faiss.SearchParameters | None, in_place: bool = False) -> _kernels.SelectorMask | None:
        """Which vectors a search with these parameters looks at; None for all."""
        selector = selector_of(params)
        if selector is None:
            return None
        if self._masks is None:
            self._masks = Masks()
        return self._masks.of(selector, self.ntotal, self._version, in_place)

    def _search_finite(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        derived, view, mask = self._searched(params)
        narrowed = self._asked_coarse(params, derived.levels)
        if narrowed is not None and not isinstance(view, np.ndarray):
            prefix = self._derived_codes(derived.quantizer, narrowed.levels, stores_terms=True)
            prefix_view = prefix.view(self._codes_in_memory, self.code_size, self._version)
            return coarse.search(narrowed, (prefix, prefix_view), (derived, view), mask, x, k)
        found = scan.search(derived, view, mask, x, k)
        if len(x) == 1 and not isinstance(view, np.ndarray):
            self._prepare_direct(derived, view, params)
        return found

    def _range_search_finite(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        lims, D, I = scan.range_search(*self._searched(params), x, thresh)
        return lims.astype(np.uint64), D, I

    def _search_and_reconstruct_finite(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        D, I = self._search_finite(x, k, params)
        R = np.full((*I.shape, self.d), np.nan, np.float32)
        found = I >= 0
        codes = np.ascontiguousarray(self._packed_codes()[I[found]])
        R[found] = self.residual_quantizer.decode(_kernels.unpack_codes(codes, self._asked_levels(params), self._nbits))
        return D, I, R

    def _searched(
        self, params: faiss.SearchParameters | None
    ) -> tuple[DerivedCodes, _kernels.CodeView | Bytes, _kernels.Mask | None]:
        """What a search with these parameters compares: codes without a view where nothing derived may be kept."""
        # Those of a wrapper or of lists may hold a selector that this index would not see.
        known = params is None or type(params) is faiss.SearchParameters or isinstance(params, SearchParametersDPQ)
        if not known:
            raise RuntimeError(
                f"IndexDPQ: params is a {type(params).__name__}, expected SearchParameters or SearchParametersDPQ"
            )
        derived = self._derived_codes(self.residual_quantizer, self._asked_levels(params))
        if not derived.fits:
            return derived, self._packed_codes(), self._mask(params)
        return derived, derived.view(self._codes_in_memory, self.code_size, self._version), self._mask(params)

    def _derived_codes(self, quantizer: ProgressiveQuantizer, levels: int, stores_terms: bool = False) -> DerivedCodes:
        if self._derived is None:
            self._derived = {}
        others = sum(each.nbytes for at, each in list(self._derived.items()) if at != levels)
        room = self.derived_bytes_per_vector - others / max(self.ntotal, 1)
        kept = self._derived.get(levels)
        if (
            kept is None
            or kept.quantizer is not quantizer
            or kept.metric != self.metric_type
            or (stores_terms and not kept.stores_terms)
            or (kept.stores_terms and not stores_terms and not kept.fits_into(room))
        ):
            stores_terms |= should_store_terms(levels, room)
            kept = self._derived[levels] = DerivedCodes(quantizer, levels, self.metric_type, stores_terms)
        kept.room = room
        return kept

    def _prepare_direct(
        self, derived: DerivedCodes, view: _kernels.CodeView, params: faiss.SearchParameters | None
    ) -> None:
        """Let later searches of one query, with the same parameters, go to the kernels at once."""
        levels = self._levels if params is None else self._plain(params)[0]
        if levels is None or self._coarse_levels:  # which a direct search would not look at
            return
        direct = self._direct
        if direct is None or not direct.is_of(self.this, self._version):
            direct = self._direct = _kernels.DirectSearch(self.this, self._version)
        one_query = direct.scans.get(levels)
        if one_query is None or not one_query.is_good():
            vectors = [(self._codes_in_memory, derived.sample), self._sampled_codebooks()]
            unchanged = _kernels.Unchanged(vectors, [(self, faiss.Index.metric_type.fget)])
            direct.scans[levels] = scan.one_query_scan(derived, view, unchanged)

    def _packed_codes(self) -> Bytes:
        """A view of the stored codes, shape (ntotal, code_size)."""
        return self._codes_in_memory.rows(self.code_size)

    @property
    def _codes_in_memory(self) -> _kernels.FaissVector:
        if self._vector is None or self._vector[0] is not self.this:
            self._vector = (self.this, _kernels.FaissVector(self.codes))
        return self._vector[1]

    def memory_usage(self) -> dict[str, int]:
        """Bytes that the index holds: its codes, its codebooks, and what is derived from either to encode and search.

        Returns
        -------
        usage : dict
            "codes" and "codebooks", which a file holds too; "tables" of the codebooks' products, FAISS's and ours;
            "derived" from the codes, for every prefix length that was searched: about a byte a vector, five from eight
            levels on, and once some single queries were searched about levels + 9 more (8-bit codes); of more than 16
            levels 4 bytes, and once single queries are searched as many as a code has (for inner products the byte and
            the 4 bytes less); "masks" of the selectors searched with last, a bit a vector each, and copies of the codes
            that one lets through, if these are few.
        """
        scans = list(self._direct.scans.values()) if self._direct else ()
        return {
            "codes": self.codes.size(),
            **self._memory_of_codebooks(),
            "derived": sum(each.nbytes for each in list((self._derived or {}).values())),
            "masks": (self._masks.nbytes if self._masks else 0) + sum(scan.nbytes for scan in scans if scan),
        }

    def _let_go_of_derived(self) -> None:
        self._derived = self._direct = None

    # ---- remove, replace ---------------------------------------------------------------------------------------

    def remove_ids(self, x: Removed) -> int:
        """Remove the vectors that a selector admits, or of the given ids; those behind move up. Their number."""
        self._check_writable("remove_ids")
        ntotal, listed = self.ntotal, listed_ids(x, self._call("remove_ids"))
        if listed is None:
            places = _kernels.Mask(bits_of(x, ntotal), ntotal).ids()
        else:
            places = listed[np.searchsorted(listed, 0) : np.searchsorted(listed, ntotal)]
        if len(places):
            self._forget_places()
            self._stored().remove(places, [counted(self, ntotal - len(places))])
        return len(places)

    def _put_last_into(self, removed: Labels, holes: Labels, fillers: Labels, more: list[Step]) -> bool:
        """Take vectors out whose places an index around this one hides; the last ones fill the gaps."""
        n = self.ntotal - len(removed)
        self._forget_places()
        self._stored().fill(holes, fillers, n, [counted(self, n), *more])
        return True

    def _replace(self, places: Labels, x: Floats) -> None:
        """Make x, shape (n, d), the vectors at some places."""
        order = np.argsort(places)
        codes = self.sa_encode(x)[order]
        self._forget_places()
        self._stored().replace(places[order], codes)

    def _forget_places(self) -> None:
        """Before vectors change their places: forget what knows them by these."""
        self._direct = self._masks = None

    def _stored(self) -> StoredCodes:
        derived = (self._derived or {}).values()
        return StoredCodes(self._codes_in_memory, self.code_size, self._version, derived)

    # ---- storage, as FAISS has it, without its traps ------------------------------------------------------------

    def permute_entries(self, perm: npt.NDArray[np.int64]) -> None:
        """Put the vectors in another order.

        Parameters
        ----------
        perm : array, shape (ntotal,), int64
            The i-th vector will be the one that perm[i] was.

        Raises
        ------
        RuntimeError
            If the index is mapped from a file, or has no vector that perm names.
        """
        self._check_writable("permute_entries")
        self._check_keys(perm, "permute_entries")
        try:
            super().permute_entries(perm)
        finally:
            self._forget_derived(codebooks=False)

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another index behind those of this one.

        Raises
        ------
        RuntimeError
            As `check_compatible_for_merge`, or if `add_id` is not 0.
        """
        self._require_another(otherIndex)
        self.check_compatible_for_merge(otherIndex)
        super().merge_from(otherIndex, add_id)

    def check_compatible_for_merge(self, otherIndex: faiss.Index) -> None:
        """Raise a RuntimeError unless the other index has the same class in C++, d, code size and codebooks.

        FAISS does not compare codebooks; vectors in codes of other ones would be garbled.
        """
        super().check_compatible_for_merge(otherIndex)
        self._require_same_codebooks(faiss.downcast_index(otherIndex).rq)

    def get_FlatCodesDistanceComputer(self) -> faiss.FlatCodesDistanceComputer:
        """Distances of one query to one stored vector at a time, and among stored vectors, from their reconstructions.

        FAISS has none for the search types that IndexDPQ's files say, but for decompressed codes it has. Like
        FAISS's, it must not be used after a change of the index.
        """
        search_type = self.rq.search_type
        try:
            self.rq.search_type = faiss.AdditiveQuantizer.ST_decompress
            computer = super().get_FlatCodesDistanceComputer()
        finally:
            self.rq.search_type = search_type
        computer.index = self  # whose memory it reads
        return computer

    get_distance_computer = get_FlatCodesDistanceComputer

    # ---- prefixes ----------------------------------------------------------------------------------------------

    def truncate(self, levels: int) -> "IndexDPQ":
        """A new index of the first `levels` levels: the same codebooks and codes, cut; nothing is encoded again.

        Parameters
        ----------
        levels : int
            1 to M.

        Returns
        -------
        index : IndexDPQ
            With the vectors of this one, in codes of ceil(levels * nbits / 8) bytes.
        """
        levels = self._checked_levels(levels, "levels")
        index = IndexDPQ(self.d, levels, self._nbits, self.metric_type)
        index._set_codebooks_of(self, levels)
        for start in range(0, self.ntotal, ADD_BLOCK):
            codes = self._unpacked_codes(slice(start, start + ADD_BLOCK), levels)
            index.add_sa_codes(_kernels.pack_codes(codes, self._nbits))
        return index

    def _unpacked_codes(self, part: slice, levels: int) -> Codes:
        return _kernels.unpack_codes(self._packed_codes()[part], levels, self._nbits)
