"""What IndexDPQ and IndexIVFDPQ share: FAISS's residual quantizer `rq`, whose codebooks this package trains."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import (
    MAX_BEAM_SIZE,
    Floats,
    Layout,
    ProgressiveQuantizer,
    cross_table_bytes,
    default_beam_size,
    threads,
)
from ..search.coarse import Coarse
from ..search.flat import MISSING
from ..search.selection import Labels
from .arguments import require_integer, require_number, require_whole
from .base import Base, RangeResult
from .derived_bytes import KeepsDerived
from .finite import nearest_of_finite, range_of_finite
from .settings import set_state, settings_of
from .shrinkage_mark import shrinkage_of, store_shrinkage

ADD_BLOCK = 1 << 16  # vectors encoded and stored at a time: bounds the memory of `add`
#: Where FAISS's own cross products would take more bytes than this, stock FAISS decompresses codes instead.
MAX_STOCK_TABLE_BYTES = 64 << 20
MAX_LEVELS = 1024  # DPQ_MAX_LEVELS of cython_kernels/dpq_scan.h
# On GloVe 2 finds a little more, but less than 0 does on sentence embeddings (d = 384).
_PRODUCTS_PARALLEL_WEIGHT = 1.0
# Half of the levels find about a point of R@10 more than at 0, and all of them as much within the error of measurement.
DEFAULT_PREFIX_WEIGHT = 0.05
_RANKING_BEAM = 8  # of the encoder when `train` chooses shrinkage and parallel weight


_OF_LENGTH = ("levels", "coarse_levels")  # settings that a shorter index does not take over


class Quantized(KeepsDerived, Base):
    """An index with codebooks: their parameters, their training, and the quantizer that is made of them."""

    _settings: tuple[str, ...] = (
        "levels",
        "coarse_levels",
        "k_factor",
        "prefix_weight",
        *("parallel_weight", "_weight_is_trained", "parallel_rest"),
        "rq.cp.seed",
        "_derived_bytes",
    )
    _python_state: tuple[str, ...] = ("_train_stats",)
    _cached: tuple[Any, _kernels.Unchanged, ProgressiveQuantizer] | None = None
    _known_M: int = 0
    _coarse_levels: int = 0
    _k_factor: float = 1.0
    _prefix_weight: float = DEFAULT_PREFIX_WEIGHT
    _parallel_weight: float | None = None  # that was set
    _trained_parallel_weight: float | None = None
    _parallel_rest: float = 0.0  # see `ProgressiveQuantizer.encode`
    _train_stats: training.TrainStats | None = None

    @staticmethod
    def _check_shape(name: str, d: int, M: int, nbits: int, metric: int) -> None:
        """Raise ValueError unless an index of class `name` can be made of these."""
        for argument, value in (("d", d), ("M", M), ("nbits", nbits), ("metric", metric)):
            require_integer(value, f"{name}: {argument}")
        if d < 1:
            raise ValueError(f"{name}: d is {d}, expected at least 1")
        if not 1 <= M <= MAX_LEVELS:
            raise ValueError(f"{name}: M is {M}, expected 1 to {MAX_LEVELS}")
        if not 1 <= nbits <= 12:
            raise ValueError(f"{name}: nbits is {nbits}, expected 1 to 12")
        if metric not in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(f"{name}: metric is {metric}, expected METRIC_L2 or METRIC_INNER_PRODUCT")

    def _set_up(self) -> None:
        """What the constructors do after FAISS's."""
        self.rq.max_beam_size = default_beam_size(self.rq.M)
        if self.rq.search_type == faiss.AdditiveQuantizer.ST_decompress:
            self.rq.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables

    # ---- codebooks ---------------------------------------------------------------------------------------------

    @threads.without_openmp()
    def _set_quantizer(self, quantizer: ProgressiveQuantizer) -> None:
        faiss.copy_array_to_vector(quantizer.codebooks.ravel(), self.rq.codebooks)
        if not self.rq.train_type & faiss.ResidualQuantizer.Skip_codebook_tables:
            self.rq.compute_codebook_tables()
        if self.rq.norm_bits == 0:
            store_shrinkage(self.rq, quantizer.shrinkage)
        self.rq.is_trained = True
        self.is_trained = True
        self.invalidate()
        self._cached = (self.this, self._codebooks_unchanged(), quantizer)

    def _codebooks_unchanged(self) -> _kernels.Unchanged:
        return _kernels.Unchanged([self._sampled_codebooks()])

    def _sampled_codebooks(self) -> tuple[_kernels.FaissVector, _kernels.Sample]:
        return _kernels.FaissVector(self.rq.codebooks, np.float32).sampled(self.d)

    def _codebook_values(self) -> Floats:
        return _kernels.FaissVector(self.rq.codebooks, np.float32).rows(self.d)

    def _forget_derived(self, codebooks: bool) -> None:
        super()._forget_derived(codebooks)
        if codebooks:
            self._cached = None

    @property
    def residual_quantizer(self) -> ProgressiveQuantizer:
        """The trained quantizer: codebooks, encode, decode, tables. In lists, it is that of the residuals.

        Not named `quantizer`: programs tell by that attribute that an index is an IndexIVF, whose coarse quantizer it
        is.

        Raises
        ------
        RuntimeError
            If the index is not trained.
        """
        if not self.is_trained:
            raise RuntimeError(f"{type(self).__name__}: the index is not trained; call train(x) first")
        cached = self._cached
        if cached is None or cached[0] is not self.this or not cached[1].holds():
            values = self._codebook_values().reshape(self.rq.M, 1 << self._nbits, self.d)
            quantizer = ProgressiveQuantizer(values, self.shrinkage)
            if quantizer.shrinkage != 1:
                store_shrinkage(self.rq, quantizer.shrinkage)  # files of release 0.1 lack the mark
            cached = self._cached = (self.this, self._codebooks_unchanged(), quantizer)
        return cached[2]

    @property
    def codebooks(self) -> Floats:
        """A copy of the codebooks (in lists, those of the residuals): array, shape (M, K, d), float32."""
        return self.residual_quantizer.codebooks.copy()

    @property
    def _nbits(self) -> int:
        return int(self.rq.nbits.at(0))

    @property
    def _M(self) -> int:
        """`rq.M`, which an index keeps all its life: asking FAISS costs microseconds of every search."""
        if not self._known_M:
            self._known_M = self.rq.M
        return self._known_M

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._known_M = 0

    # ---- parameters --------------------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """Levels of the codes that a search compares, 1 to M; M unless set. Stored in files."""
        return self._levels or self._M

    @levels.setter
    def levels(self, levels: int) -> None:
        self._levels = self._checked_levels(levels, "levels")

    def _checked_levels(self, levels: int, name: str) -> int:
        if not 1 <= require_whole(levels, f"{type(self).__name__}: {name}") <= self.rq.M:
            raise ValueError(f"{type(self).__name__}: {name} is {levels}, the index has M={self.rq.M} levels")
        return int(levels)

    def _asked_levels(self, params: faiss.SearchParameters | None) -> int:
        """Levels that a search with these parameters compares."""
        levels = getattr(params, "levels", 0)
        return self._checked_levels(levels, "params.levels") if levels else self.levels

    @property
    def coarse_levels(self) -> int:
        """Levels by which a search first finds candidates, which it then compares by all `levels`; 0, unless set: none.

        A search then finds the k nearest of the k * `k_factor` vectors that are nearest by these levels alone, with
        exact distances, several times as fast as all of them. `faiss_dpq.tune_coarse` chooses both numbers. A search of
        no more levels than these, and `range_search`, compare all vectors. Stored in files.
        """
        return self._coarse_levels

    @coarse_levels.setter
    def coarse_levels(self, coarse_levels: int) -> None:
        # Not by `levels`, which may be lowered later, and would leave an index that no copy could be made of.
        self._coarse_levels = self._checked_coarse(coarse_levels, self._M, "coarse_levels")
        self._direct = None

    def _checked_coarse(self, coarse_levels: int, levels: int, name: str) -> int:
        if not 0 <= require_whole(coarse_levels, f"{type(self).__name__}: {name}") <= levels:
            raise ValueError(f"{type(self).__name__}: {name} is {coarse_levels}, expected 0 to {levels} levels")
        return int(coarse_levels)

    @property
    def k_factor(self) -> float:
        """Candidates a result of a search with `coarse_levels`; 1 unless set. Stored in files."""
        return self._k_factor

    @k_factor.setter
    def k_factor(self, k_factor: float) -> None:
        self._k_factor = self._checked_factor(k_factor, "k_factor")

    def _checked_factor(self, k_factor: float, name: str) -> float:
        if not 1 <= require_number(k_factor, f"{type(self).__name__}: {name}") < float("inf"):
            raise ValueError(f"{type(self).__name__}: {name} is {k_factor}, expected a number >= 1")
        return float(k_factor)

    def _asked_coarse(self, params: faiss.SearchParameters | None, levels: int) -> Coarse | None:
        """How a search of so many levels finds its candidates; None if it compares all vectors."""
        coarse_levels, k_factor = getattr(params, "coarse_levels", None), getattr(params, "k_factor", None)
        if coarse_levels is None:
            coarse_levels = self._coarse_levels
        else:
            coarse_levels = self._checked_coarse(coarse_levels, levels, "params.coarse_levels")
        k_factor = self._k_factor if k_factor is None else self._checked_factor(k_factor, "params.k_factor")
        return Coarse(coarse_levels, k_factor) if 0 < coarse_levels < levels else None

    @property
    def beam_size(self) -> int:
        """Prefixes that the encoder keeps at every level: higher is more accurate and slower.

        1 to 4096; in a new index 32 for up to 12 levels, 384 / M for up to 16, 8 above. It is FAISS's rq.max_beam_size,
        and stored in files with it.
        """
        return self.rq.max_beam_size

    @beam_size.setter
    def beam_size(self, beam_size: int) -> None:
        if not 1 <= require_whole(beam_size, f"{type(self).__name__}: beam_size") <= MAX_BEAM_SIZE:
            raise ValueError(f"{type(self).__name__}: beam_size is {beam_size}, expected 1 to {MAX_BEAM_SIZE}")
        self.rq.max_beam_size = int(beam_size)

    def _checked_weight(self, weight: float, name: str) -> float:
        if not 0 <= require_number(weight, f"{type(self).__name__}: {name}") < float("inf"):
            raise ValueError(f"{type(self).__name__}: {name} is {weight}, expected a number >= 0")
        return float(weight)

    @property
    def prefix_weight(self) -> float:
        """What shorter prefixes count for when vectors are encoded: 0.05 unless set. Stored in files.

        The encoder's beam is of prefixes with the least squared error plus this weight times their errors at all
        shorter lengths. At 0, the squared error at full length is the least; the more it is, the more searches of a
        part of the levels find, and those of all levels a little less.
        """
        return self._prefix_weight

    @prefix_weight.setter
    def prefix_weight(self, prefix_weight: float) -> None:
        self._prefix_weight = self._checked_weight(prefix_weight, "prefix_weight")

    @property
    def parallel_weight(self) -> float:
        """What errors along a vector count for beyond others when it is encoded. Stored in files.

        The encoder's beam is of prefixes with the least squared error plus this weight times the square of the error's
        part that is parallel to the vector, for METRIC_L2 as seen from the centre of the codebooks. That part is what
        changes the vector's inner products with, and distances from, the queries that it is near to: searches find
        more, and reconstructions are less near to the vectors. Unless set, `train` chooses it; before, and for
        codebooks from elsewhere, it is 1 for METRIC_INNER_PRODUCT and 0 for METRIC_L2. Guo et al.,
        "Accelerating Large-Scale Inference with Anisotropic Vector Quantization", ICML 2020; their eta is 1 plus this
        weight.
        """
        if self._parallel_weight is not None:
            return self._parallel_weight
        if self._trained_parallel_weight is not None:
            return self._trained_parallel_weight
        return _PRODUCTS_PARALLEL_WEIGHT if self.metric_type == faiss.METRIC_INNER_PRODUCT else 0.0

    @parallel_weight.setter
    def parallel_weight(self, parallel_weight: float) -> None:
        self._parallel_weight = self._checked_weight(parallel_weight, "parallel_weight")

    @property
    def _along_whole(self) -> bool:
        """Whether errors count along whole vectors: better for inner products, and no better for L2."""
        return self.metric_type == faiss.METRIC_INNER_PRODUCT

    @property
    def _weight_is_trained(self) -> bool:
        return self._parallel_weight is None

    @_weight_is_trained.setter
    def _weight_is_trained(self, is_trained: bool) -> None:
        if is_trained and self._parallel_weight is not None:
            self._trained_parallel_weight, self._parallel_weight = self._parallel_weight, None

    @property
    def parallel_rest(self) -> float:
        """What share of a vector's length, as seen from the centre, its code leaves along it: 0 unless trained.

        In codes with blocks, `parallel_weight` counts from it: `train` sets it to about what codes of the least squared
        error leave. Other codes do not depend on it. Stored in files.
        """
        return self._parallel_rest

    @parallel_rest.setter
    def parallel_rest(self, parallel_rest: float) -> None:
        self._parallel_rest = self._checked_weight(parallel_rest, "parallel_rest")

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

    # ---- search: queries that are not finite find nothing ------------------------------------------------------

    def _search_finite(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        raise NotImplementedError

    def _range_search_finite(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        raise NotImplementedError

    def _search_and_reconstruct_finite(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        raise NotImplementedError

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        D, I = nearest_of_finite(x, self.metric_type, lambda x: self._search_finite(x, k, params))
        return D, I

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        return range_of_finite(x, lambda x: self._range_search_finite(x, thresh, params))

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        D, I, R = nearest_of_finite(x, self.metric_type, lambda x: self._search_and_reconstruct_finite(x, k, params))
        R[np.abs(D) == MISSING] = np.nan  # ids of lists may be negative
        return D, I, R

    # ---- training ----------------------------------------------------------------------------------------------

    def _checked_training(self, x: npt.ArrayLike, numeric_type: int, xq_train: npt.ArrayLike | None = None) -> Floats:
        x = super()._checked_training(x, numeric_type, xq_train)
        if self.ntotal:
            raise RuntimeError(
                f"{type(self).__name__}.train: the index holds {self.ntotal} vectors, whose codes new codebooks would "
                "garble; call reset() first"
            )
        return x

    def _learn(
        self,
        x: Floats,
        effort: str | training.Effort,
        weights: npt.ArrayLike | None,
        trainer: str,
        shrinkage: float | None,
        layout: Layout | None,
        parallel_weight: float | None,
        origins: Floats | None = None,
    ) -> None:
        """Train codebooks on what is to be coded by them, residuals to `origins` or whole vectors; take them over."""
        if parallel_weight is None:
            parallel_weight = self._parallel_weight
        else:
            parallel_weight = self._checked_weight(parallel_weight, "train: parallel_weight")
        codebooks, stats = training.train_codebooks(
            x,
            self.rq.M,
            self._nbits,
            seed=self.rq.cp.seed,
            effort=effort,
            weights=weights,
            verbose=self.verbose,
            trainer=trainer,
            layout=layout,
        )
        quantizer = ProgressiveQuantizer(codebooks)
        ranking = training.Ranking(x, self.metric_type, min(self.beam_size, _RANKING_BEAM), self.rq.cp.seed, origins)
        shrinkage, parallel_weight, self._parallel_rest = ranking.choice(quantizer, shrinkage, parallel_weight)
        stats.shrinkage, stats.parallel_weight = shrinkage, parallel_weight
        self._trained_parallel_weight = parallel_weight
        self._set_quantizer(quantizer if shrinkage == 1 else quantizer.shrunk(shrinkage))
        self._train_stats = stats

    def _require_same_codebooks(self, other: faiss.ResidualQuantizer) -> None:
        nbits, codebooks = faiss.vector_to_array(other.nbits), faiss.vector_to_array(other.codebooks)
        own_nbits = faiss.vector_to_array(self.rq.nbits)
        if not (np.array_equal(nbits, own_nbits) and np.array_equal(codebooks, self._codebook_values().ravel())):
            raise RuntimeError(
                f"{type(self).__name__}: the other index has other codebooks; its codes mean other vectors"
            )

    # ---- copies, memory, description ---------------------------------------------------------------------------

    def _set_codebooks_of(self, other: "Quantized", levels: int) -> None:
        """Take over the first levels of another index's codebooks, and the parameters of its encoder."""
        quantizer = other.residual_quantizer
        self._set_quantizer(ProgressiveQuantizer(quantizer.codebooks[:levels], quantizer.shrinkage))
        self.beam_size = other.beam_size
        own, _ = settings_of(other)
        set_state(self, [{name: value for name, value in own.items() if name not in _OF_LENGTH}, []])

    def _prepare_writing(self) -> None:
        # FAISS reads no residual quantizer without codebooks: an untrained one gets zeros.
        if not self.rq.codebooks.size():
            self.rq.codebooks.resize(self.d * self.rq.total_codebook_size)
        super()._prepare_writing()

    def _memory_of_codebooks(self) -> dict[str, int]:
        """Bytes of the codebooks, and of the tables of their products, FAISS's and ours."""
        faiss_tables = 4 * (self.rq.codebook_cross_products.size() + self.rq.centroid_norms.size())
        quantizer = self._cached[2] if self._cached else None
        return {
            "codebooks": 4 * self.rq.codebooks.size() + (quantizer.codebooks.nbytes if quantizer else 0),
            "tables": faiss_tables + (quantizer.derived_bytes() if quantizer else 0),
        }

    def _described(self) -> list[str]:
        metric = "METRIC_L2" if self.metric_type == faiss.METRIC_L2 else "METRIC_INNER_PRODUCT"
        return [f"M={self.rq.M}", f"nbits={self._nbits}", f"metric={metric}"]


def has_fitting_codes(index: faiss.Index) -> bool:
    """Whether an index of FAISS's with a residual quantizer can be one of this package's."""
    nbits = set(faiss.vector_to_array(index.rq.nbits).tolist())
    fits = len(nbits) == 1 and max(nbits) <= 12 and index.rq.M <= MAX_LEVELS
    return fits and index.metric_type in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)


def search_type(M: int, nbits: int, metric: int) -> int:
    """How stock FAISS will search the index: without stored norms, so that code_size is IndexPQ's."""
    # FAISS aborts the process where ST_norm_from_LUT meets no cross products at all (M = 1).
    if M == 1 or cross_table_bytes(M, 1 << nbits) > MAX_STOCK_TABLE_BYTES:
        return faiss.AdditiveQuantizer.ST_decompress
    if metric == faiss.METRIC_INNER_PRODUCT:
        return faiss.AdditiveQuantizer.ST_LUT_nonorm
    return faiss.AdditiveQuantizer.ST_norm_from_LUT
