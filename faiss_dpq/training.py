"""Learning codebooks from plain vectors: no labels, no torch.

1. Residual k-means: level after level, FAISS's k-means on what the levels before leave of the training vectors. The
   codes so far are found by beam search, so a level is trained on the residuals that it will really meet.
2. Alternation, `iterations` times: encode the training vectors by beam search with the present codebooks; then solve
   for all codebooks together, the minimum over C of the progressive loss (Eq. 10 with hard codes, Eq. 19),

       sum_x sum_l w_l ||x - sum_{i<=l} c_i(k_i(x))||^2.

   For given codes this is one linear least-squares problem in the M K codewords. With W_l = sum_{l' >= l} w_l', block
   (i, j) of its normal matrix is W_max(i, j) times the counts of codeword pairs, and block i of the right-hand side W_i
   times the sums of the vectors that use each codeword.
"""

import sys
import time
from dataclasses import dataclass, field

import faiss
import numpy as np
import numpy.typing as npt

from . import _kernels
from .quantizer import Codes, Floats, ProgressiveQuantizer

Doubles = npt.NDArray[np.float64]

_DENSE_UNKNOWNS = 8192  # M K up to which the normal matrix is formed: 512 MiB, and 10 s of two cores to solve
_GRADIENT_STEPS = 20  # of the conjugate gradients that stand in above that


@dataclass
class TrainStats:
    """What training did.

    Attributes
    ----------
    n : int
        Vectors used.
    mse : list of float
        Mean squared error of the training vectors at every prefix length, 1 to M levels, with the final codebooks.
    history : list of float
        Mean squared error at full length after the k-means initialisation and after every alternation.
    iterations : int
        Alternations done.
    seconds : float
        Wall time.
    """

    n: int
    mse: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0


def train_codebooks(
    x: Floats,
    M: int,
    nbits: int,
    *,
    seed: int = 1234,
    beam_size: int = 8,
    iterations: int = 10,
    weights: npt.ArrayLike | None = None,
    ridge: float = 0.1,
    max_points_per_centroid: int = 1024,
    verbose: bool = False,
) -> tuple[Floats, TrainStats]:
    """Codebooks that minimise the progressive loss of some vectors.

    Parameters
    ----------
    x : array, shape (n, d), float32
        Training vectors, n >= K = 2**nbits.
    M, nbits : int
        Levels, and bits a level.
    seed : int
        Of the choice of training vectors and of k-means.
    beam_size : int
        Of the encoding between solves.
    iterations : int
        Alternations of encoding and solving.
    weights : array, shape (M,), optional
        w_l, the weight of the error at prefix length l.
    ridge : float
        Pull of every codeword towards its last value, in training vectors: a codeword that few vectors use is not
        fitted to those few alone.
    max_points_per_centroid : int
        At most this many times K vectors are used, a random choice.
    verbose : bool
        Print what is done.

    Returns
    -------
    codebooks : array, shape (M, K, d), float32
    stats : TrainStats

    Raises
    ------
    RuntimeError
        If n < K or a value of x is not finite.
    """
    started = time.perf_counter()
    K = 1 << nbits
    if len(x) < K:
        raise RuntimeError(
            f"train: x has {len(x)} vectors, at least 2**nbits = {K} are needed for the codewords of a level"
        )
    if not np.isfinite(x).all():
        raise RuntimeError("train: x has NaN or infinite values")
    if len(x) > max_points_per_centroid * K:
        chosen = np.random.default_rng(seed).choice(len(x), max_points_per_centroid * K, replace=False)
        x = x[np.sort(chosen)]
    w = np.ones(M) if weights is None else np.asarray(weights, np.float64)
    stats = TrainStats(len(x))
    progress = _Progress(M + iterations + 1, verbose)

    codebooks = _residual_kmeans(x, M, K, seed, beam_size, progress)
    quantizer = ProgressiveQuantizer(codebooks)
    for _ in range(iterations):
        codes = quantizer.encode(x, beam_size)
        stats.history.append(_mse(x, quantizer, codes))
        progress.step(f"mean squared error {stats.history[-1]:.6g}")
        quantizer = ProgressiveQuantizer(_solve(x, codes, quantizer.codebooks, w, ridge))
        stats.iterations += 1
    codes = quantizer.encode(x, beam_size)
    stats.mse = [_mse(x, quantizer, codes[:, : level + 1]) for level in range(M)]
    stats.history.append(stats.mse[-1])
    stats.seconds = time.perf_counter() - started
    progress.step(f"mean squared error {stats.mse[-1]:.6g}")
    progress.close()
    return quantizer.codebooks, stats


def _residual_kmeans(x: Floats, M: int, K: int, seed: int, beam_size: int, progress: "_Progress") -> Floats:
    d = x.shape[1]
    codebooks = np.empty((M, K, d), np.float32)
    residuals = x
    for level in range(M):
        clustering = faiss.Clustering(d, K)
        clustering.seed = seed + level
        clustering.niter = 10
        clustering.min_points_per_centroid = 1  # its warning would not be news: n >= K was checked
        clustering.train(residuals, faiss.IndexFlatL2(d))
        codebooks[level] = faiss.vector_to_array(clustering.centroids).reshape(K, d)
        progress.step(f"k-means of level {level + 1} of {M}")
        if level + 1 < M:
            prefix = ProgressiveQuantizer(codebooks[: level + 1])
            residuals = x - prefix.decode(prefix.encode(x, beam_size))
    return codebooks


def _mse(x: Floats, quantizer: ProgressiveQuantizer, codes: Codes) -> float:
    """Mean squared error of the reconstructions of (prefixes of) codes."""
    errors = np.empty(len(x), np.float32)
    _kernels.squared_norms(x - quantizer.decode(codes), errors)
    return float(errors.mean(dtype=np.float64))


def _solve(x: Floats, codes: Codes, last: Floats, w: Doubles, ridge: float) -> Floats:
    """All codebooks for given codes, by (ridge-regularised) least squares of the progressive loss."""
    M, K, d = last.shape
    suffix = np.cumsum(w[::-1])[::-1]
    target = np.zeros((M, K, d))
    _kernels.codeword_sums(x, codes, target)
    target *= suffix[:, None, None]
    pull = ridge * suffix[:, None, None]  # in units of one training vector's weight at its level
    if M * K > _DENSE_UNKNOWNS:
        return _conjugate_gradients(codes, last.astype(np.float64), target, w, pull)
    blocks = np.empty((M, K, M, K))
    for i in range(M):
        for j in range(i + 1):
            pairs = codes[:, i].astype(np.int64) * K + codes[:, j]
            counts = np.bincount(pairs, minlength=K * K).reshape(K, K)
            blocks[i, :, j] = suffix[i] * counts
            blocks[j, :, i] = suffix[i] * counts.T
    normal = blocks.reshape(M * K, M * K)
    normal[np.diag_indices(M * K)] += np.broadcast_to(pull[..., 0], (M, K)).ravel()
    target += pull * last
    return np.linalg.solve(normal, target.reshape(M * K, d)).reshape(M, K, d).astype(np.float32)


def _conjugate_gradients(codes: Codes, codebooks: Doubles, target: Doubles, w: Doubles, pull: Doubles) -> Floats:
    """`_solve` from the last codebooks on, without forming the normal matrix."""

    def times_normal(v: Doubles) -> Doubles:
        out = pull * v
        _kernels.prefix_gram(v, codes, w, out)
        return out

    # Solves for the change of the codebooks, towards which `pull` pulls from zero.
    change = np.zeros_like(codebooks)
    residual = target - (times_normal(codebooks) - pull * codebooks)
    direction = residual.copy()
    norm = float((residual**2).sum())
    for _ in range(_GRADIENT_STEPS):
        product = times_normal(direction)
        curvature = float((direction * product).sum())
        if curvature <= 0:
            break
        change += norm / curvature * direction
        residual -= norm / curvature * product
        last_norm, norm = norm, float((residual**2).sum())
        direction = residual + norm / last_norm * direction
    return (codebooks + change).astype(np.float32)


class _Progress:
    """Training's steps: a bar on the terminal if there is one, a line a step if verbose."""

    WIDTH = 24

    def __init__(self, total: int, verbose: bool) -> None:
        self.total, self.done, self.verbose = total, 0, verbose
        self.bar = not verbose and sys.stderr is not None and sys.stderr.isatty()

    def step(self, what: str) -> None:
        self.done += 1
        if self.verbose:
            print(f"IndexDPQ.train: step {self.done}/{self.total}: {what}", flush=True)
        elif self.bar:
            filled = "#" * (self.WIDTH * self.done // self.total)
            print(f"\r\x1b[Ktraining [{filled:<{self.WIDTH}}] {what}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
