"""IndexIVFDPQ: the progressive quantizer in inverted lists, where faiss.IndexIVFPQ stood."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels, training
from ..codec import Floats, Layout, ProgressiveQuantizer, threads
from ..search import lists as scan
from ..search.derived import Bytes
from ..search.selection import Labels
from .arguments import require_index, require_integer
from .base import Base
from .changes import list_sizes, under_way
from .io import clone_index
from .list_changes import ListsChanged
from .quantized import ADD_BLOCK, Quantized, has_fitting_codes, search_type
from .registry import stands_for
from .tensors import accepts_tensors

_BEAM = faiss.ResidualQuantizer.max_beam_size.fget
#: Attributes of an index that codes depend on.
_WEIGHTS = "_prefix_weight", "_parallel_weight", "_trained_parallel_weight"
_DIRECT_MAP = faiss.DirectMap.type.fget


@stands_for(faiss.IndexIVFResidualQuantizer, lambda index: has_fitting_codes(index) and index.rq.norm_bits == 0)
class IndexIVFDPQ(ListsChanged, faiss.IndexIVFResidualQuantizer):
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
    own_invlists : bool
        Whether to make inverted lists in memory; without, `replace_invlists` must give some before vectors are added.

    Raises
    ------
    ValueError
        If an argument is outside these ranges.
    RuntimeError
        If the coarse quantizer's dimension is not d.
    """

    # Of lists, in the order of the blocks that are being added to them, as `changes.contents` needs them.
    _sizes_before: list[tuple[Labels, Labels]] | None = None
    _addition: _kernels.DirectAddition | None = None
    _settings = (
        *Quantized._settings,
        *("max_codes", "parallel_mode", "quantizer_trains_alone"),
        *("cp.seed", "cp.niter", "cp.nredo", "cp.spherical", "cp.int_centroids"),
        *("cp.min_points_per_centroid", "cp.max_points_per_centroid"),
    )

    def __init__(
        self,
        coarse_quantizer: faiss.Index,
        d: int,
        nlist: int,
        M: int,
        nbits: int = 8,
        metric: int = faiss.METRIC_L2,
        own_invlists: bool = True,
    ) -> None:
        self._check_shape("IndexIVFDPQ", d, M, nbits, metric)
        require_integer(nlist, "IndexIVFDPQ: nlist")
        if nlist < 1:
            raise ValueError(f"IndexIVFDPQ: nlist is {nlist}, expected at least 1")
        require_index(coarse_quantizer, "IndexIVFDPQ: coarse_quantizer")
        super().__init__(coarse_quantizer, d, nlist, M, nbits, metric, search_type(M, nbits, metric))
        self._coarse = (int(self.quantizer.this), coarse_quantizer)
        self._set_up()
        if not own_invlists:
            self.replace_invlists(None, False)

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

    def _assigned(self, x: Floats) -> Labels:
        """The list of every vector, shape (n,); -1 where the coarse quantizer finds none (NaN)."""
        known = self._current()
        if known.nearest is not None:
            return known.nearest.first(x)
        return known.coarse.search(x, 1)[1][:, 0]

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
        parallel_weight: float | None = None,
        layout: Layout | None = None,
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
        parallel_weight : float, optional
        layout : faiss_dpq.codec.Layout, optional
            As in IndexDPQ.train.

        Raises
        ------
        RuntimeError
            If there are too few vectors, a value is NaN or infinite, or the index already holds vectors.
        ValueError
            If `effort` or `trainer` is not a known name, or `weights`, `parallel_weight` or `layout` do not fit.
        """
        x = self._checked_training(x, numeric_type, xq_train)
        training.check_arguments(x, self.rq.M, self._nbits, effort, weights, trainer)

        def train() -> None:
            self._train_coarse_quantizer(x, effort)
            origins = self._list_centres[self._assigned(x)]
            # Lists have centres of their own: no shrinkage was seen to rank residuals better.
            self._learn(x - origins, effort, weights, trainer, 1.0, layout, parallel_weight, origins)

        self._all_or_untrained(train)

    def _train_coarse_quantizer(self, x: Floats, effort: str | training.Effort) -> None:
        coarse = self._coarse_quantizer
        if not isinstance(coarse, Base) or (coarse.is_trained and coarse.ntotal == self.nlist):
            self.train_q1(len(x), faiss.swig_ptr(x), self.verbose, self.metric_type)
            return
        # C++ would train an index of this package as FAISS trains its own.
        if self.quantizer_trains_alone == "\x01":
            coarse.train(x)
        else:
            clustering = faiss.Clustering(self.d, self.nlist, self.cp)
            assigner = self.clustering_index or faiss.IndexFlat(self.d, coarse.metric_type)
            clustering.train(x, assigner)
            centroids = faiss.vector_to_array(clustering.centroids).reshape(self.nlist, self.d)
            if not coarse.is_trained:
                coarse.train(centroids, effort=effort)
            coarse.reset()
            coarse.add(centroids)
        if coarse.ntotal != self.nlist:
            raise RuntimeError(
                f"IndexIVFDPQ.train: the trained coarse quantizer holds {coarse.ntotal} vectors, the index has "
                f"nlist={self.nlist}"
            )

    def add(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32) -> None:
        """As `IndexDPQ.add`; after one vector, further ones are added with less around it."""
        if not self._added_directly(x, None, numeric_type):
            super().add(x, numeric_type)

    def add_with_ids(self, x: npt.ArrayLike, ids: npt.ArrayLike, numeric_type: int = faiss.Float32) -> None:
        """As `IndexDPQ.add_with_ids`; after one vector, further ones are added with less around it."""
        if ids is None or not self._added_directly(x, ids, numeric_type):
            super().add_with_ids(x, ids, numeric_type)

    def _added_directly(self, x: npt.ArrayLike, ids: npt.ArrayLike | None, numeric_type: int) -> bool:
        addition = self._addition
        if addition is None or numeric_type != faiss.Float32 or threads.forked:
            return False
        return bool(addition.add(self, x, ids, self._sizes_before if under_way() else None))

    def _add(self, x: Floats) -> None:
        self._store(x, None)

    @property
    def _weights(self) -> tuple[float, float]:
        return self._prefix_weight, self.parallel_weight

    def _prepare_addition(self) -> None:
        """Let later additions of one vector go to the kernels at once, where they can."""
        if self._addition is not None and self._addition.is_good(self):
            return
        self._addition, known = None, self._current()
        if known.nearest is None or known.reader is None or self.direct_map.type != faiss.DirectMap.NoMap:
            return
        encoder = self.residual_quantizer.one_vector_encoder(self.beam_size, *self._weights, self._along_whole)
        if encoder is not None:
            self._addition = _kernels.DirectAddition(
                self,
                self.invlists,
                ("_version", *_WEIGHTS),
                self._unchanged((self.rq, _BEAM), (self.direct_map, _DIRECT_MAP)),
                encoder,
                known.nearest.scan,
                known.centres,
            )

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        self.direct_map.check_can_add(faiss.swig_ptr(ids))
        self._store(x, ids)

    def _store(self, x: Floats, ids: Labels | None) -> None:
        quantizer = self.residual_quantizer
        self._lists()
        for start in range(0, len(x), ADD_BLOCK):
            block = x[start : start + ADD_BLOCK]
            self._store_block(quantizer, block, None if ids is None else ids[start : start + ADD_BLOCK])
        if len(x) == 1:
            self._prepare_addition()

    def _store_block(self, quantizer: ProgressiveQuantizer, x: Floats, ids: Labels | None) -> None:
        lists = self._assigned(x)
        valid, kind = lists >= 0, self.direct_map.type
        all_valid = bool(valid.all())
        if ids is None and not (all_valid and kind != faiss.DirectMap.Hashtable):
            ids = np.arange(self.ntotal, self.ntotal + len(x))  # FAISS's add_sa_codes gives none to a hash table
        if not all_valid:
            # As in FAISS, what belongs to no list (NaN) is counted and never found.
            x, lists, ids = x[valid], lists[valid], None if ids is None else ids[valid]
        codes = self._sa_codes(quantizer, x, lists)
        if self._sizes_before is not None:
            numbers = lists if len(lists) == 1 else np.unique(lists)
            self._sizes_before.append((numbers, list_sizes(self._lists(), numbers)))
        if all_valid:
            self.add_sa_codes(codes, ids)
            return
        if kind == faiss.DirectMap.Array:
            self.make_direct_map(False)  # it takes no ids
        self.add_sa_codes(codes, ids)
        self.ntotal += int((~valid).sum())
        if kind == faiss.DirectMap.Array:
            self.make_direct_map()

    def _codes(self, quantizer: ProgressiveQuantizer, x: Floats, lists: Labels) -> Bytes:
        """Packed codes of vectors in given lists, shape (n, code_size)."""
        residuals = x - self._list_centres[lists]
        whole = x if self._along_whole else None
        codes = quantizer.encode(residuals, self.beam_size, *self._weights, self._parallel_rest, whole)
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

    def _check_codes(self, codes: Bytes, method: str) -> None:
        size = self.coarse_code_size()
        numbers = np.zeros((len(codes), 8), np.uint8)
        numbers[:, :size] = codes[:, :size]
        lists = numbers.view("<i8")
        if lists.size and lists.max() >= self.nlist:
            raise RuntimeError(
                f"{self._call(method)}: a code is of list {lists.max()}, the index has nlist={self.nlist}"
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
        coarse = clone_index(self._coarse_quantizer)
        index = IndexIVFDPQ(coarse, self.d, self.nlist, levels, self._nbits, self.metric_type)
        index._set_codebooks_of(self, levels)
        index.by_residual = self.by_residual
        index.nprobe = self.nprobe
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
            of the codebooks' products, FAISS's and ours, and some 60 bytes a list; "derived" from the codes: about five
            bytes a vector (for inner products none) for every prefix length that was searched; "places", once single
            vectors were removed: about 40 bytes a vector to find them by; "masks" of the selectors searched with last.
        """
        derived = list(self._known.derived.values()) if self._known else []
        of_codebooks = self._memory_of_codebooks()
        of_codebooks["tables"] += sum(lists.bytes_of_lists for lists in derived)
        return {
            "codes": self.ntotal * self.code_size,
            "ids": self.ntotal * 8,
            **of_codebooks,
            "derived": sum(lists.nbytes for lists in derived),
            "places": self._bytes_to_find_ids(),
            "masks": self._list_masks.nbytes if self._list_masks else 0,
        }

    # ---- what Python needs -----------------------------------------------------------------------------------------

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self._coarse_quantizer]

    def _prepare_writing(self) -> None:
        lists = faiss.downcast_InvertedLists(self.invlists) if self.invlists is not None else None
        if isinstance(lists, faiss.OnDiskInvertedLists) and not lists.filename:
            # FAISS would write the name of their file, which it does not know.
            raise RuntimeError(
                "IndexIVFDPQ: the lists are mapped from a file (IO_FLAG_MMAP), and cannot be copied or written; read "
                "the file without that flag for this"
            )
        super()._prepare_writing()

    def _described(self) -> list[str]:
        return [f"nlist={self.nlist}", *super()._described()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._coarse = None
        super().__setstate__(state)
