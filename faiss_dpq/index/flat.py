"""IndexDPQ: the progressive quantizer as a FAISS index that stands where faiss.IndexPQ stood."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import (
    MAX_CROSS_TABLE_BYTES,
    Codes,
    Floats,
    ProgressiveQuantizer,
    cross_table_bytes,
    default_beam_size,
)
from ..search import flat as _scan
from ..search import selection as _selection
from ..search.derived import DerivedCodes
from . import watch as _watch
from .tensors import accepts_tensors

Labels = npt.NDArray[np.int64]

_ADD_BLOCK = 1 << 16  # vectors encoded and stored at a time: bounds the memory of `add`
MAX_LEVELS = 1024  # DPQ_MAX_LEVELS of cython_kernels/dpq_scan.h
#: What the C++ object, and so a file, does not hold.
PYTHON_STATE = ("_levels", "_prefix_weight", "_parallel_weight", "_train_stats")
# On GloVe 2 finds a little more, but less than 0 does on sentence embeddings (d = 384).
_PRODUCTS_PARALLEL_WEIGHT = 1.0
# Half of the levels find about a point of R@10 more than at 0, and all of them as much within the error of measurement.
DEFAULT_PREFIX_WEIGHT = 0.05
_RANKING_BEAM = 8  # of the encoder when `train` chooses the shrinkage
_FINGERPRINT = 512  # codebook values compared to notice that FAISS's C++ changed the codebooks


class SearchParametersDPQ(faiss.SearchParameters):
    """Parameters of one search of an IndexDPQ.

    Parameters
    ----------
    levels : int
        Compare only this many levels of every code; 0 means the index's own `levels`.
    sel : faiss.IDSelector, optional
        Search only the vectors whose ids it admits.
    """

    levels = 0

    def __init__(self, levels: int = 0, sel: faiss.IDSelector | None = None) -> None:
        super().__init__(sel=sel)
        self.levels = levels


def check_arguments(name: str, d: int, M: int, nbits: int, metric: int) -> None:
    """Raise ValueError unless an index of class `name` can be made of these."""
    if d < 1:
        raise ValueError(f"{name}: d is {d}, expected at least 1")
    if not 1 <= M <= MAX_LEVELS:
        raise ValueError(f"{name}: M is {M}, expected 1 to {MAX_LEVELS}")
    if not 1 <= nbits <= 12:
        raise ValueError(f"{name}: nbits is {nbits}, expected 1 to 12")
    if metric not in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
        raise ValueError(f"{name}: metric is {metric}, expected METRIC_L2 or METRIC_INNER_PRODUCT")


class IndexDPQ(faiss.IndexResidualQuantizer):
    """Progressive (additive, residual) quantization with FAISS's index interface.

    Takes the place of faiss.IndexPQ: the same constructor arguments, calls, code size, shapes, dtypes and padding. It
    is a faiss.IndexResidualQuantizer whose codebooks are trained, and whose vectors are encoded and searched, by this
    package; a stock FAISS opens its files and returns the same results, only slower.

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

    # Class attributes: FAISS's __setattr__ refuses names that the class does not have.
    _cached: tuple[bytes, ProgressiveQuantizer] | None = None
    _derived_by_levels: dict[int, DerivedCodes] | None = None
    _watched: _kernels.Watch | None = None
    _levels: int = 0
    _known_M: int = 0
    _prefix_weight: float = DEFAULT_PREFIX_WEIGHT
    _parallel_weight: float | None = None
    _train_stats: training.TrainStats | None = None

    def __init__(self, d: int, M: int, nbits: int = 8, metric: int = faiss.METRIC_L2) -> None:
        check_arguments("IndexDPQ", d, M, nbits, metric)
        super().__init__(d, M, nbits, metric, _search_type(M, nbits, metric))
        self.rq.max_beam_size = default_beam_size(M)
        if self.rq.search_type == faiss.AdditiveQuantizer.ST_decompress:
            self.rq.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables

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

    # ---- codebooks ---------------------------------------------------------------------------------------------

    def _set_quantizer(self, quantizer: ProgressiveQuantizer) -> None:
        faiss.copy_array_to_vector(quantizer.codebooks.ravel(), self.rq.codebooks)
        if not self.rq.train_type & faiss.ResidualQuantizer.Skip_codebook_tables:
            self.rq.compute_codebook_tables()
        if self.rq.norm_bits == 0:
            # Files have no place for it but FAISS's range of stored norms, of which there are none.
            self.rq.norm_min, self.rq.norm_max = float("nan"), float(quantizer.shrinkage)
        self.rq.is_trained = True
        self.is_trained = True
        self._cached = (self._fingerprint(), quantizer)

    def _codebook_values(self) -> Floats:
        codebooks = self.rq.codebooks  # each name takes FAISS's wrapper a microsecond
        return faiss.rev_swig_ptr(codebooks.data(), codebooks.size())

    def _fingerprint(self) -> bytes:
        values = self._codebook_values()
        return values[:: max(1, len(values) // _FINGERPRINT)].tobytes()

    @property
    def residual_quantizer(self) -> ProgressiveQuantizer:
        """The trained quantizer: codebooks, encode, decode, tables.

        Not named `quantizer`: programs tell by that attribute that an index is an IndexIVF.

        Raises
        ------
        RuntimeError
            If the index is not trained.
        """
        if not self.is_trained:
            raise RuntimeError(f"{type(self).__name__}: the index is not trained; call train(x) first")
        fingerprint = self._fingerprint()
        if self._cached is None or self._cached[0] != fingerprint:
            shape = (self.rq.M, 1 << self._nbits, self.d)
            self._cached = (
                fingerprint,
                ProgressiveQuantizer(self._codebook_values().reshape(shape), self.shrinkage),
            )
        return self._cached[1]

    @property
    def codebooks(self) -> Floats:
        """A copy of the codebooks: array, shape (M, K, d), float32."""
        return self.residual_quantizer.codebooks.copy()

    @property
    def _derived(self) -> dict[int, DerivedCodes]:
        if self._derived_by_levels is None:
            self._derived_by_levels = {}
        return self._derived_by_levels

    @property
    def _nbits(self) -> int:
        return int(self.rq.nbits.at(0))

    @property
    def _M(self) -> int:
        """`rq.M`, which an index keeps all its life: asking FAISS costs microseconds of every search."""
        if not self._known_M:
            self._known_M = self.rq.M
        return self._known_M

    # ---- parameters --------------------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """Levels of the codes that a search compares, 1 to M; M unless set. Not stored in files, as nprobe is not."""
        return self._levels or self._M

    @levels.setter
    def levels(self, levels: int) -> None:
        self._levels = self._checked_levels(levels, "levels")

    def _checked_levels(self, levels: int, name: str) -> int:
        if not 1 <= levels <= self.rq.M:
            raise ValueError(f"{type(self).__name__}: {name} is {levels}, the index has M={self.rq.M} levels")
        return int(levels)

    @property
    def beam_size(self) -> int:
        """Prefixes that the encoder keeps at every level: higher is more accurate and slower.

        32 in a new index of up to 12 levels, 384 / M above, at least 8. It is FAISS's rq.max_beam_size, and stored in
        files with it.
        """
        return self.rq.max_beam_size

    @beam_size.setter
    def beam_size(self, beam_size: int) -> None:
        if beam_size < 1:
            raise ValueError(f"{type(self).__name__}: beam_size is {beam_size}, expected at least 1")
        self.rq.max_beam_size = int(beam_size)

    @property
    def prefix_weight(self) -> float:
        """What shorter prefixes count for when vectors are encoded: 0.05 unless set. Not stored in files.

        The encoder's beam is of prefixes with the least squared error plus this weight times their errors at all
        shorter lengths. At 0, the squared error at full length is the least; the more it is, the more searches of a
        part of the levels find, and those of all levels a little less.
        """
        return self._prefix_weight

    @prefix_weight.setter
    def prefix_weight(self, prefix_weight: float) -> None:
        if not 0 <= prefix_weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: prefix_weight is {prefix_weight}, expected a number >= 0")
        self._prefix_weight = float(prefix_weight)

    @property
    def parallel_weight(self) -> float:
        """What errors along a vector count for beyond others when it is encoded. Not stored in files.

        The encoder's beam is of prefixes with the least squared error plus this weight times the square of the error's
        part that is parallel to the vector. That part is what changes the vector's inner products with the queries that
        it is near to: searches by inner product find more, and reconstructions are less near to the vectors. Unless
        set, 1 for METRIC_INNER_PRODUCT and 0 for METRIC_L2. Guo et al., "Accelerating Large-Scale Inference with
        Anisotropic Vector Quantization", ICML 2020; their eta is 1 plus this weight.
        """
        if self._parallel_weight is not None:
            return self._parallel_weight
        return _PRODUCTS_PARALLEL_WEIGHT if self.metric_type == faiss.METRIC_INNER_PRODUCT else 0.0

    @parallel_weight.setter
    def parallel_weight(self, parallel_weight: float) -> None:
        if not 0 <= parallel_weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: parallel_weight is {parallel_weight}, expected a number >= 0")
        self._parallel_weight = float(parallel_weight)

    @property
    def shrinkage(self) -> float:
        """What `train` multiplied the codebooks by, around their centre; vectors are, too, before they are encoded.

        It is kept in files, but a stock FAISS that encodes further vectors does not know of it, and gives them codes
        that rank a little worse.
        """
        return shrinkage_of(self.rq)

    @property
    def train_stats(self) -> training.TrainStats | None:
        """What the last `train` of this object did; None before it and after reading a file."""
        return self._train_stats

    # ---- train, add --------------------------------------------------------------------------------------------

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
        shrinkage: float | None = None,
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
            vectors rank each other best, `faiss_dpq.training.ranking_shrinkage`; 1 gives the least squared error. Inner
            products are ranked alike by all, and it is 1.

        Raises
        ------
        RuntimeError
            If there are fewer vectors than codewords in a codebook, a value is NaN or infinite, the index already holds
            vectors, or numeric_type is another one of FAISS's.
        ValueError
            If `effort` or `trainer` is not a known name, `weights` are not M finite numbers >= 0 of which the last
            is > 0, or `shrinkage` is not above 0 and at most 1.
        """
        x = self._checked_vectors(x, "train", numeric_type)
        if xq_train is not None:
            self._checked_vectors(xq_train, "train", name="xq_train")
        if shrinkage is not None and not 0 < shrinkage <= 1:
            raise ValueError(f"IndexDPQ.train: shrinkage is {shrinkage}, expected above 0 and at most 1")
        self._require_empty()
        if self.metric_type == faiss.METRIC_INNER_PRODUCT:
            shrinkage = 1.0
        self._learn(x, effort, weights, trainer, shrinkage)

    def _require_empty(self) -> None:
        if self.ntotal:
            raise RuntimeError(
                f"{type(self).__name__}.train: the index holds {self.ntotal} vectors, whose codes new codebooks would "
                "garble; call reset() first"
            )

    def _learn(
        self,
        x: Floats,
        effort: str | training.Effort,
        weights: npt.ArrayLike | None,
        trainer: str,
        shrinkage: float | None,
    ) -> None:
        """Train codebooks on what is to be coded by them, and take them over."""
        codebooks, stats = training.train_codebooks(
            x,
            self.rq.M,
            self._nbits,
            seed=self.rq.cp.seed,
            effort=effort,
            weights=weights,
            verbose=self.verbose,
            trainer=trainer,
        )
        quantizer = ProgressiveQuantizer(codebooks)
        if shrinkage is None:
            shrinkage = training.ranking_shrinkage(x, quantizer, min(self.beam_size, _RANKING_BEAM), self.rq.cp.seed)
        stats.shrinkage = shrinkage
        self._set_quantizer(quantizer if shrinkage == 1 else quantizer.shrunk(shrinkage))
        self._train_stats = stats

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Encode vectors, shape (n, d), and store their codes under the ids ntotal, ntotal + 1, ..."""
        x = self._checked_vectors(x, "add", numeric_type)
        for start in range(0, len(x), _ADD_BLOCK):
            self.add_sa_codes(self.sa_encode(x[start : start + _ADD_BLOCK]))

    @accepts_tensors
    def sa_encode(self, x: npt.NDArray[Any], codes: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Codes of vectors as FAISS packs them: (n, d) to (n, sa_code_size()), uint8; written to `codes` if given."""
        quantizer = self.residual_quantizer
        x = self._checked_vectors(x, "sa_encode")
        if codes is None:
            codes = np.empty((len(x), self.code_size), np.uint8)
        else:
            check_output(codes, (len(x), self.code_size), np.uint8, "IndexDPQ.sa_encode", "codes")
        unpacked = quantizer.encode(x, self.beam_size, self._prefix_weight, self.parallel_weight)
        if self.rq.norm_bits == 0:
            codes[:] = _kernels.pack_codes(unpacked, self._nbits)
        else:
            # A stock index that stores norms beside its codes keeps doing so.
            packed = np.empty_like(codes)
            numbers = unpacked.astype(np.int32)
            self.rq.pack_codes(len(x), faiss.swig_ptr(numbers), faiss.swig_ptr(packed))
            codes[:] = packed
        return codes

    # ---- search ------------------------------------------------------------------------------------------------

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> tuple[Floats, Labels]:
        """The k nearest codes of every query, by exact asymmetric distances (Eq. 30); equal ones by ascending id.

        Parameters
        ----------
        x : array, shape (n, d)
        k : int
        D, I : arrays, shape (n, k), float32 and int64, optional
            Where to put the result.
        numeric_type
            faiss.Float32: like IndexPQ, this index takes no other.
        params : faiss.SearchParameters or SearchParametersDPQ, optional
            `sel` restricts the search to some ids; `levels` compares a prefix of the codes.

        Returns
        -------
        D : array, shape (n, k), float32
            Squared L2 distances or inner products, best first; +-FLT_MAX where fewer than k vectors were found.
        I : array, shape (n, k), int64
            Ids; -1 where fewer than k vectors were found.

        Raises
        ------
        RuntimeError
            If the index is not trained, or numeric_type is another one of FAISS's.
        AssertionError
            If x has other than d columns, k < 1, or D or I has a wrong shape.
        TypeError
            If D, I or params is of a wrong type.
        ValueError
            If x is not two-dimensional, D or I is not contiguous, or `levels` is not between 1 and M.
        """
        watched, prefix = self._watched, self._levels if params is None else self._prefix_of(params)
        if watched is not None and prefix is not None and D is I is None and numeric_type == faiss.Float32:
            single = watched.search(self.this, x, k, prefix)
            if single is not None:
                return single
        x = self._checked_vectors(x, "search", numeric_type)
        if k < 1:
            raise AssertionError(f"IndexDPQ.search: k is {k}, expected at least 1")
        if D is not None:
            check_output(D, (len(x), k), np.float32, "IndexDPQ.search", "D")
        if I is not None:
            check_output(I, (len(x), k), np.int64, "IndexDPQ.search", "I")
        distances, labels = _scan.search(*self._searched(params), x, k)
        if len(x) == 1 and prefix is not None:
            self._prepare_single(prefix, params)
        if D is not None:
            D[:] = distances
        if I is not None:
            I[:] = labels
        return distances if D is None else D, labels if I is None else I

    def _prefix_of(self, params: faiss.SearchParameters) -> int | None:
        """The levels that a search compares, 0 for all; None where its parameters say more than that."""
        if type(params) is SearchParametersDPQ and params.sel is None:
            return params.levels or self._levels
        return None

    def _prepare_single(self, prefix: int, params: faiss.SearchParameters | None) -> None:
        """Let later searches of one query, with the same parameters, go to the kernels at once."""
        watched = self._watched
        if watched is None or not watched.is_same(self.this):
            codebooks = self.rq.codebooks
            spans = [_watch.up_to(self, int(codebooks.this)), _watch.sample(codebooks, 4)]
            watched = self._watched = _kernels.Watch(self.this, np.array(spans, np.uint64))
        single = watched.singles.get(prefix)
        if single is None or not single.is_true():
            derived, packed, _ = self._searched(params)
            watched.singles[prefix] = _scan.single_scan(derived, packed)

    def _searched(
        self, params: faiss.SearchParameters | None
    ) -> tuple[DerivedCodes, npt.NDArray[np.uint8], _scan.Selection]:
        """What a search with these parameters compares."""
        if params is not None and not isinstance(params, faiss.SearchParameters):
            raise TypeError(f"IndexDPQ: params is a {type(params).__name__}, expected faiss.SearchParameters")
        levels = getattr(params, "levels", 0)
        levels = self._checked_levels(levels, "params.levels") if levels else self.levels
        quantizer = self.residual_quantizer
        packed = self._packed_codes()
        selection = _selection.select(_selection.selector_of(params), len(packed))
        return self._derived_codes(quantizer, levels), packed, selection

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
        """All codes nearer than a threshold, by exact asymmetric distances; of each query nearest first.

        Parameters
        ----------
        x : array, shape (n, d)
        thresh : float
            Squared L2 distances below it are found, or inner products above it.
        params : faiss.SearchParameters or SearchParametersDPQ, optional
            As in `search`.

        Returns
        -------
        lims : array, shape (n + 1,), uint64
            The results of query i are D[lims[i]:lims[i + 1]] and I[lims[i]:lims[i + 1]].
        D : array, shape (lims[n],), float32
        I : array, shape (lims[n],), int64

        Raises
        ------
        RuntimeError, AssertionError, ValueError
            As `search`.
        """
        x = self._checked_vectors(x, "range_search")
        lims, D, I = _scan.range_search(*self._searched(params), x, float(thresh))
        return lims.astype(np.uint64), D, I

    @accepts_tensors
    def assign(self, x: npt.NDArray[Any], k: int, labels: Labels | None = None) -> Labels:
        """The ids that `search` returns, without the distances."""
        return self.search(x, k, I=labels)[1]

    @accepts_tensors
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and the reconstructions of the vectors found, shape (n, k, d); NaN where none was found."""
        if R is None:
            R = np.empty((len(x), max(k, 0), self.d), np.float32)
        else:
            check_output(R, (len(x), k, self.d), np.float32, "IndexDPQ.search_and_reconstruct", "R")
        D, I = self.search(x, k, D, I, params=params)
        found = I >= 0
        R[~found] = np.nan
        if found.any():
            R[found] = self.reconstruct_batch(I[found])
        return D, I, R

    def _derived_codes(self, quantizer: ProgressiveQuantizer, levels: int) -> DerivedCodes:
        kept = self._derived.get(levels)
        if kept is None or kept.quantizer is not quantizer or kept.metric != self.metric_type:
            kept = self._derived[levels] = DerivedCodes(quantizer, levels, self.metric_type)
        return kept

    def _packed_codes(self) -> npt.NDArray[np.uint8]:
        """A view of the stored codes, shape (ntotal, code_size)."""
        codes, code_size = self.codes, self.code_size
        size = codes.size()
        if size == 0:
            return np.empty((0, code_size), np.uint8)
        return faiss.rev_swig_ptr(codes.data(), size).reshape(-1, code_size)

    def memory_usage(self) -> dict[str, int]:
        """Bytes that the index holds: its codes, its codebooks, and what is derived from either to encode and search.

        Returns
        -------
        usage : dict
            "codes" and "codebooks", which a file holds too; "tables" of the codebooks' products, FAISS's and ours;
            "derived" from the codes: about a byte a vector for every prefix length that was searched.
        """
        faiss_tables = 4 * (self.rq.codebook_cross_products.size() + self.rq.centroid_norms.size())
        quantizer = self._cached[1] if self._cached else None
        return {
            "codes": self.codes.size(),
            "codebooks": 4 * self.rq.codebooks.size() + (quantizer.codebooks.nbytes if quantizer else 0),
            "tables": faiss_tables + (quantizer.derived_bytes() if quantizer else 0),
            "derived": sum(derived.nbytes for derived in self._derived.values()),
        }

    # ---- storage, as FAISS has it, without its traps ------------------------------------------------------------

    def add_sa_codes(self, codes: npt.NDArray[np.uint8], ids: None = None) -> None:
        """Store codes, shape (n, sa_code_size()), under the ids ntotal, ntotal + 1, ..."""
        _check_owned(self, "add_sa_codes")
        super().add_sa_codes(codes, ids)

    def remove_ids(self, x: npt.NDArray[np.int64] | faiss.IDSelector) -> int:
        """Remove the vectors that a selector admits, or of the given ids; later ids move down. Their number."""
        _check_owned(self, "remove_ids")
        return super().remove_ids(x)

    def reset(self) -> None:
        """Remove all vectors; the index stays trained."""
        _check_owned(self, "reset")
        super().reset()

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another index behind those of this one.

        Raises
        ------
        RuntimeError
            As `check_compatible_for_merge`, or if `add_id` is not 0.
        """
        self.check_compatible_for_merge(otherIndex)
        _check_owned(self, "merge_from")
        _check_owned(faiss.downcast_index(otherIndex), "merge_from")
        super().merge_from(otherIndex, add_id)

    def check_compatible_for_merge(self, otherIndex: faiss.Index) -> None:
        """Raise a RuntimeError unless the other index has the same class in C++, d, code size and codebooks.

        FAISS does not compare codebooks; vectors in codes of other ones would be garbled.
        """
        super().check_compatible_for_merge(otherIndex)
        other = faiss.downcast_index(otherIndex).rq
        nbits, codebooks = faiss.vector_to_array(other.nbits), faiss.vector_to_array(other.codebooks)
        own_nbits = faiss.vector_to_array(self.rq.nbits)
        if not (np.array_equal(nbits, own_nbits) and np.array_equal(codebooks, self._codebook_values())):
            raise RuntimeError("IndexDPQ: the other index has other codebooks; its codes mean other vectors")

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
        quantizer = self.residual_quantizer
        index = IndexDPQ(self.d, levels, quantizer.nbits, self.metric_type)
        index._set_quantizer(ProgressiveQuantizer(quantizer.codebooks[:levels], quantizer.shrinkage))
        index.beam_size = self.beam_size
        index._prefix_weight, index._parallel_weight = self._prefix_weight, self._parallel_weight
        for start in range(0, self.ntotal, _ADD_BLOCK):
            codes = self._unpacked_codes(slice(start, start + _ADD_BLOCK), levels)
            index.add_sa_codes(_kernels.pack_codes(codes, self._nbits))
        return index

    def _unpacked_codes(self, part: slice, levels: int) -> Codes:
        return _kernels.unpack_codes(self._packed_codes()[part], levels, self._nbits)

    # ---- what Python needs ---------------------------------------------------------------------------------------

    def _checked_vectors(
        self, x: npt.NDArray[Any], method: str, numeric_type: int = faiss.Float32, name: str = "x"
    ) -> Floats:
        """x as a contiguous float32 array of shape (n, d), or the error that FAISS's wrapper would raise."""
        call = f"{type(self).__name__}.{method}"
        if numeric_type != faiss.Float32:
            known = numeric_type in (faiss.Float16, getattr(faiss, "Int8", faiss.Float16))
            error = RuntimeError if known else ValueError
            raise error(f"{call}: numeric_type is {numeric_type}, only faiss.Float32 is supported")
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{call}: {name} has dtype {x.dtype}, expected float32")
        if x.ndim != 2:
            raise ValueError(f"{call}: {name} has {x.ndim} dimensions, expected 2: (n, {self.d})")
        if x.shape[1] != self.d:
            raise AssertionError(f"{call}: {name} has {x.shape[1]} columns, the index has d={self.d}")
        return np.ascontiguousarray(x, np.float32)

    def __getstate__(self) -> dict[str, Any]:
        # __getstate__ of FAISS holds what a file would; ours adds what only the Python object knows.
        return super().__getstate__() | {name: getattr(self, name) for name in PYTHON_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in PYTHON_STATE:
            setattr(self, name, state[name])


def _check_owned(index: faiss.IndexResidualQuantizer, method: str) -> None:
    # FAISS aborts the process where it is to change codes that it has mapped from a file.
    if not getattr(index.codes, "is_owned", True):
        raise RuntimeError(f"IndexDPQ.{method}: the codes are mapped from a file (IO_FLAG_MMAP_IFC), read-only")


def shrinkage_of(rq: faiss.ResidualQuantizer) -> float:
    """`IndexDPQ.shrinkage`. FAISS's own training sets both ends of the range of norms, `_set_quantizer` only one."""
    given = rq.norm_bits == 0 and np.isnan(rq.norm_min) and not np.isnan(rq.norm_max)
    return float(rq.norm_max) if given else 1.0


def check_output(out: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike, call: str, name: str) -> None:
    """Raise the error that FAISS's wrapper would, if results of `call` cannot go straight into its argument `name`."""
    if out.shape != shape:
        raise AssertionError(f"{call}: {name} has shape {out.shape}, expected {shape}")
    if out.dtype != dtype:
        raise TypeError(f"{call}: {name} has dtype {out.dtype}, expected {np.dtype(dtype)}")
    if not out.flags.c_contiguous:
        raise ValueError(f"{call}: {name} is not C-contiguous")


def _search_type(M: int, nbits: int, metric: int) -> int:
    """How stock FAISS will search the index: without stored norms, so that code_size is IndexPQ's."""
    # FAISS aborts the process where ST_norm_from_LUT meets no cross products at all (M = 1).
    if M == 1 or cross_table_bytes(M, 1 << nbits) > MAX_CROSS_TABLE_BYTES:
        return faiss.AdditiveQuantizer.ST_decompress
    if metric == faiss.METRIC_INNER_PRODUCT:
        return faiss.AdditiveQuantizer.ST_LUT_nonorm
    return faiss.AdditiveQuantizer.ST_norm_from_LUT
