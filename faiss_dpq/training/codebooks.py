"""Learning codebooks from plain vectors: no labels, no torch.

1. Residual k-means: level after level, FAISS's k-means on what the levels before leave of the training vectors. The
   codes so far are found by beam search, so a level is trained on the residuals that it will really meet; where there
   are few vectors, on those of several beam entries of each, since a level that has one vector a codeword leaves
   nothing of it for the next to learn from.
2. Annealed alternation, where there are vectors enough for the unknowns. Every turn (a) moves each training vector by
   the quantization error of another of the same first codeword, scaled by a temperature that falls from 1 to 0;
   (b) encodes the moved vectors by beam search with the present codebooks; (c) solves for all codebooks together, the
   minimum over C of the progressive loss (Eq. 10 with hard codes, Eq. 19),

       sum_x sum_l w_l ||x - sum_{i<=l} c_i(k_i(x))||^2.

   For given codes this is one linear least-squares problem in the M K codewords. With W_l = sum_{l' >= l} w_l', block
   (i, j) of its normal matrix is W_max(i, j) times the counts of codeword pairs, and block i of the right-hand side W_i
   times the sums of the vectors that use each codeword.

The moves are fresh every turn, so codebooks cannot settle on the training vectors themselves: they learn the density
that the vectors were drawn from, smoothed on the scale that the quantizer does not resolve anyway; and like simulated
annealing the moves shake them out of poor local minima (compare the "SR" methods of Martinez et al., "LSQ++", ECCV
2018). Alternation without them lost half of its gain on unseen vectors. How much smoothing is right depends on the
number of vectors: some are held out, and the codebooks that code those best are kept.
"""

import sys
import time
from dataclasses import dataclass, field

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Codes, Floats, ProgressiveQuantizer

Doubles = npt.NDArray[np.float64]

_DENSE_UNKNOWNS = 8192  # M K up to which the normal matrix is formed: 512 MiB, and 10 s of two cores to solve
_GRADIENT_STEPS = 20  # of the conjugate gradients that stand in above that

#: What `ranking_shrinkage` chooses from.
SHRINKAGES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7)
_RANKED = 1 << 16  # training vectors that are ranked
_RANKING_QUERIES = 2048
_RANKING_BLOCK = 64  # queries at a time: 16 MiB of distances

_RESIDUALS = 256  # a codeword: what every level's k-means is given, if beams have as many; FAISS takes no more

# Alternation fits M K codewords to n vectors. On GloVe, 8 levels of 8 bits, 4,096 vectors were about where it began to
# help on unseen ones.
_LEAST_VECTORS = 2  # an unknown codeword
_MOVED = 256  # a codeword: where there are fewer vectors, each is moved several ways at once,
_MOST_MOVES = 4  # up to so many: with 8,000 vectors, that took a percent off the error
_HELD_OUT = 20  # one vector in so many, but
_MOST_HELD_OUT = 2048

# What shorter lengths count for in the encoder's beam between solves. Codebooks that were trained so find more at full
# length too: GloVe, 8 bytes, R@10 .840 to .845.
_PREFIX_WEIGHT = 0.1

# Pull of every codeword towards its last value, in training vectors: it keeps the solve regular where a codeword is
# unused, and codewords that few vectors use from being fitted to those few alone.
_RIDGE = 0.1


@dataclass(frozen=True)
class Effort:
    """How much work training does.

    Attributes
    ----------
    iterations : int
        Alternations of encoding and solving, at most, for up to 8 levels; above, it shrinks as 1 / M.
    beam_size : int
        Of the encoding between solves, for up to 8 levels; above, it shrinks as 1 / M², as the cost of an entry grows.
        For 16 levels on GloVe, half of the turns and a quarter of the beam did as well as all of both (mean squared
        error .01923 and .01921).
    max_points_per_centroid : int
        At most this many times 2**nbits vectors are used, a random choice.
    """

    iterations: int
    beam_size: int
    max_points_per_centroid: int

    def of_levels(self, M: int) -> tuple[int, int]:
        """Iterations and beam size for M levels."""
        share = min(1, 8 / M)
        beam_size = max(2, round(self.beam_size * share**2))
        return round(self.iterations * share), min(self.beam_size, beam_size)


#: What the name of an effort stands for.
EFFORTS = {
    "fast": Effort(iterations=4, beam_size=4, max_points_per_centroid=256),
    "default": Effort(iterations=32, beam_size=16, max_points_per_centroid=1024),
    "best": Effort(iterations=96, beam_size=32, max_points_per_centroid=4096),
}


@dataclass
class TrainStats:
    """What training did.

    Attributes
    ----------
    n : int
        Vectors used.
    mse : list of float
        Mean squared error of the training vectors at every prefix length, 1 to M levels, with the final codebooks
        before `shrinkage`.
    history : list of float
        Mean squared error, at full length, of vectors that were held out, after the k-means initialisation and after
        every alternation. The codebooks of the least are kept. Empty without alternations.
    iterations : int
        Alternations done: fewer than `Effort` says if the error of the vectors held out stopped falling, none if there
        were fewer than 2 M K vectors.
    seconds : float
        Wall time, without the choice of `shrinkage`.
    shrinkage : float
        What the codebooks were multiplied by at last.
    """

    n: int
    mse: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0
    shrinkage: float = 1.0


def train_codebooks(
    x: Floats,
    M: int,
    nbits: int,
    *,
    seed: int = 1234,
    effort: str | Effort = "default",
    weights: npt.ArrayLike | None = None,
    verbose: bool = False,
    trainer: str = "least-squares",
) -> tuple[Floats, TrainStats]:
    """Codebooks that minimise the progressive loss of some vectors.

    Parameters
    ----------
    x : array, shape (n, d), float32
        Training vectors, n >= K = 2**nbits.
    M, nbits : int
        Levels, and bits a level.
    seed : int
        Of the choice of training vectors, of k-means and of the moves. The same seed gives the same codebooks, whatever
        the number of threads.
    effort : "fast", "default", "best" or Effort
        How much work to do.
    weights : array, shape (M,), optional
        w_l, the weight of the error at prefix length l; M, M - 1, ..., 1 by default.
    verbose : bool
        Print what is done.
    trainer : "least-squares" or "sgd"
        "sgd" goes on from the codebooks of "least-squares" with the paper's own optimiser: soft assignment, the three
        losses of Eq. 21, Adam. It needs torch (the extra ``deep``), and uses a GPU if there is one.

    Returns
    -------
    codebooks : array, shape (M, K, d), float32
    stats : TrainStats

    Raises
    ------
    RuntimeError
        If n < K or a value of x is not finite.
    ValueError
        If `effort` or `trainer` is not a known name, or `weights` are not M finite numbers >= 0 of which the last is
        > 0.
    ImportError
        If `trainer` is "sgd" and torch is not installed.
    """
    started = time.perf_counter()
    K = 1 << nbits
    effort, w = check_arguments(x, M, nbits, effort, weights, trainer)
    iterations, beam_size = effort.of_levels(M)
    rng = np.random.default_rng(seed)
    if len(x) > effort.max_points_per_centroid * K:
        x = x[np.sort(rng.choice(len(x), effort.max_points_per_centroid * K, replace=False))]
    if len(x) < _LEAST_VECTORS * M * K:
        iterations = 0
    stats = TrainStats(len(x))
    progress = _Progress(M + iterations + 1, verbose)

    if iterations:
        order = rng.permutation(len(x))
        held_out, learned = np.split(order, [min(len(x) // _HELD_OUT, _MOST_HELD_OUT)])
        codebooks = _residual_kmeans(x[learned], M, K, seed, beam_size, progress)
        codebooks = _annealed(x[learned], x[held_out], codebooks, w, iterations, beam_size, rng, stats, progress)
    else:
        codebooks = _residual_kmeans(x, M, K, seed, beam_size, progress)
    if trainer == "sgd":
        from ..nn.unlabelled import train_codebooks_sgd

        codebooks = train_codebooks_sgd(x, codebooks, weights=w, seed=seed)
    quantizer = ProgressiveQuantizer(codebooks)
    codes = quantizer.encode(x, beam_size)
    stats.mse = [_mean_square(x - quantizer.decode(codes[:, : level + 1])) for level in range(M)]
    stats.seconds = time.perf_counter() - started
    progress.step(f"mean squared error {stats.mse[-1]:.6g}")
    progress.close()
    return codebooks, stats


def _annealed(
    x: Floats,
    held_out: Floats,
    codebooks: Floats,
    w: Doubles,
    iterations: int,
    beam_size: int,
    rng: np.random.Generator,
    stats: TrainStats,
    progress: "_Progress",
) -> Floats:
    """The codebooks that code the vectors held out best, of those given and of those after every alternation.

    It ends early when a quarter of the alternations has brought nothing better than the quarter before: at first, while
    the vectors are moved far, the error may be above that of the codebooks given and yet be falling.
    """
    quantizer = ProgressiveQuantizer(codebooks)
    moves = max(1, min(_MOST_MOVES, _MOVED * quantizer.K // len(x)))
    if moves > 1:
        x = np.tile(x, (moves, 1))
    codes = quantizer.encode(x, beam_size, _PREFIX_WEIGHT)
    errors = x - quantizer.decode(codes)
    stats.history.append(_coding_error(quantizer, held_out, beam_size))
    quarter = max(4, iterations // 4)
    for turn in range(iterations):
        temperature = _temperature(turn, iterations)
        moved = x + np.float32(np.sqrt(temperature)) * errors[_others(codes[:, 0], rng)]
        codes = quantizer.encode(moved, beam_size, _PREFIX_WEIGHT)
        errors = moved - quantizer.decode(codes)
        revived = _revived(quantizer.codebooks, codes, errors)
        quantizer = ProgressiveQuantizer(_solve(moved, codes, revived, w, _RIDGE))
        stats.history.append(_coding_error(quantizer, held_out, beam_size))
        stats.iterations += 1
        progress.step(f"mean squared error of vectors held out {stats.history[-1]:.6g}, temperature {temperature:.3f}")
        if stats.history[-1] == min(stats.history):
            codebooks = quantizer.codebooks
        elif turn + 1 >= 2 * quarter and min(stats.history[-quarter:]) >= min(stats.history[-2 * quarter : -quarter]):
            break
    return codebooks


def _others(groups: npt.NDArray[np.integer], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """For every vector another of its group, chosen at random and once each; of a group of one, itself.

    Vectors of the same first codeword have errors of like sizes and directions. Errors of just any others blur the
    dense regions: on Fashion-MNIST, 8 levels, R@1 .355 instead of .364.
    """
    order = np.lexsort((rng.random(len(groups)), groups))
    begins = np.flatnonzero(np.diff(groups[order].astype(np.int64), prepend=-1))
    following = np.arange(1, len(groups) + 1)
    following[np.append(begins[1:], len(groups)) - 1] = begins
    others = np.empty_like(order)
    others[order] = order[following]
    return others


def _coding_error(quantizer: ProgressiveQuantizer, x: Floats, beam_size: int) -> float:
    return _mean_square(x - quantizer.decode(quantizer.encode(x, beam_size)))


def ranking_shrinkage(x: Floats, quantizer: ProgressiveQuantizer, beam_size: int, seed: int) -> float:
    """How far to move reconstructions towards their centre so that distances to them rank best.

    A query's near neighbours lie on the side of a vector where vectors are dense, towards the centre: seen from there
    the part of the quantization error that points away from the centre, which makes up much of the differences between
    the vectors' errors, counts too much; moving the reconstructions inwards takes from it. On unit vectors, where the
    cosine of a query and its neighbour is the best factor, that is worth more recall than a tenth less error. On others
    it may be worth nothing.

    Training vectors are searched for the nearest neighbours of some of them, by reconstructions at every factor. Of
    those that find them about as well as the best one does, within one standard error of the mean reciprocal rank, the
    one that changes least is chosen.

    Parameters
    ----------
    x : array, shape (n, d), float32
    quantizer : ProgressiveQuantizer
    beam_size : int
        Of the encoder.
    seed : int
        Of the choice of vectors.

    Returns
    -------
    shrinkage : float
        One of `SHRINKAGES`.
    """
    base = x[np.random.default_rng(seed).permutation(len(x))[:_RANKED]]
    centred = quantizer.decode(quantizer.encode(base, beam_size)) - quantizer._centre
    norms = np.einsum("ij,ij->i", centred, centred)
    factors = np.array(SHRINKAGES, np.float32)
    scores = []
    for start in range(0, min(len(base), _RANKING_QUERIES), _RANKING_BLOCK):
        queries = base[start : min(start + _RANKING_BLOCK, _RANKING_QUERIES)]
        rows = np.arange(len(queries))
        exact = faiss.pairwise_distances(queries, base)
        products = 2 * (queries - quantizer._centre) @ centred.T
        exact[rows, start + rows] = np.inf  # a vector is not its own neighbour
        products[rows, start + rows] = -np.inf
        nearest = exact.argmin(axis=1)
        # ||q - s r||^2 = ||q||^2 + s (s ||r||^2 - 2 <q, r>), all of them centred
        of_nearest = factors[:, None] * norms[nearest] - products[rows, nearest]
        nearer = [
            (s * norms - products < bound[:, None]).sum(axis=1) for s, bound in zip(factors, of_nearest, strict=True)
        ]
        scores.append(1 / (1 + np.array(nearer)))
    by_factor = np.concatenate(scores, axis=1)
    behind = by_factor[by_factor.mean(axis=1).argmax()] - by_factor
    allowed = behind.std(axis=1) / np.sqrt(behind.shape[1])
    return SHRINKAGES[int((behind.mean(axis=1) <= allowed).argmax())]


def check_arguments(
    x: Floats,
    M: int,
    nbits: int,
    effort: str | Effort,
    weights: npt.ArrayLike | None,
    trainer: str = "least-squares",
) -> tuple[Effort, Doubles]:
    """What `train_codebooks` raises for its arguments; effort and weights as it uses them."""
    if len(x) < 1 << nbits:
        raise RuntimeError(
            f"train: x has {len(x)} vectors, at least 2**nbits = {1 << nbits} are needed for the codewords of a level"
        )
    if not np.isfinite(x).all():
        raise RuntimeError("train: x has NaN or infinite values")
    if trainer not in ("least-squares", "sgd"):
        raise ValueError(f"train: trainer is {trainer!r}, expected 'least-squares' or 'sgd'")
    if trainer == "sgd":
        from .. import nn  # noqa: F401  an error for want of torch comes before the work, not after it
    return _checked_effort(effort), _checked_weights(weights, M)


def _revived(codebooks: Floats, codes: Codes, errors: Floats) -> Floats:
    """Gives every codeword that no vector uses to one of the vectors with the largest errors, in `codes` too.

    The codeword becomes that vector's own of the level, plus the vector's error: it codes the vector exactly.
    """
    M, K, _ = codebooks.shape
    dead = [(level, k) for level in range(M) for k in np.flatnonzero(np.bincount(codes[:, level], minlength=K) == 0)]
    if not dead:
        return codebooks
    revived = codebooks.copy()
    norms = np.einsum("ij,ij->i", errors, errors)
    worst = np.argsort(-norms, kind="stable")[: len(dead)]
    for (level, k), vector in zip(dead, worst, strict=False):
        if norms[vector] > 0:
            revived[level, k] = codebooks[level, codes[vector, level]] + errors[vector]
            codes[vector, level] = k
    return revived


def _temperature(turn: int, turns: int) -> float:
    """Variance of the moves before a turn's encoding, relative to that of the quantization error."""
    return 1 - turn / turns


def _checked_effort(effort: str | Effort) -> Effort:
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise ValueError(f"train: effort is {effort!r}, expected one of {', '.join(map(repr, EFFORTS))}")
    return EFFORTS[effort]


def _checked_weights(weights: npt.ArrayLike | None, M: int) -> Doubles:
    if weights is None:
        return np.arange(M, 0, -1, dtype=np.float64)
    w = np.asarray(weights, np.float64)
    if w.shape != (M,) or not np.isfinite(w).all() or w.min() < 0 or w[-1] == 0:
        raise ValueError(f"train: weights is {weights!r}, expected M={M} finite numbers >= 0, the last > 0")
    return w


def _residual_kmeans(x: Floats, M: int, K: int, seed: int, beam_size: int, progress: "_Progress") -> Floats:
    n, d = x.shape
    width = min(beam_size, _RESIDUALS * K // n)
    codebooks = np.empty((M, K, d), np.float32)
    mean, axes = _principal_axes(x)
    x = np.asarray((x - mean) @ axes, np.float32)
    residuals = x
    for level in range(M):
        codebooks[level] = _kmeans(residuals, K, seed + level)
        progress.step(f"k-means of level {level + 1} of {M}")
        if level + 1 < M and width > 1:
            residuals = _beam_residuals(residuals.reshape(n, -1, d), codebooks[level], width).reshape(-1, d)
        elif level + 1 < M:
            prefix = ProgressiveQuantizer(codebooks[: level + 1])
            residuals = x - prefix.decode(prefix.encode(x, beam_size))
    codebooks = np.asarray(codebooks @ axes.T, np.float32)
    codebooks[0] += mean
    return codebooks


def _principal_axes(x: Floats) -> tuple[Floats, Floats]:
    """The vectors' mean, and orthogonal axes, shape (d, d), a column each, those along which they vary most first.

    By numpy: FAISS's own depend on its number of threads.
    """
    mean = x.mean(axis=0)
    centred = x - mean
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    return mean, np.ascontiguousarray(axes[:, ::-1], np.float32)


def _kmeans(x: Floats, K: int, seed: int) -> Floats:
    """K centroids, found in ever more of the first dimensions: FAISS's progressive-dimension clustering.

    In many dimensions, k-means from a random choice of vectors ends far from this: a tenth more error for 8 levels of
    Fashion-MNIST, and a sixth less of the nearest neighbours found.
    """
    x = np.ascontiguousarray(x)
    parameters = faiss.ProgressiveDimClusteringParameters()
    parameters.seed = seed
    parameters.niter = 10
    parameters.progressive_dim_steps = 6  # 10, as FAISS has it, takes half as long again
    parameters.min_points_per_centroid = 1  # its warning would not be news: n >= K was checked
    parameters.max_points_per_centroid = _RESIDUALS
    parameters.apply_pca = False
    clustering = faiss.ProgressiveDimClustering(x.shape[1], K, parameters)
    clustering.train(len(x), faiss.swig_ptr(x), faiss.ProgressiveDimIndexFactory())
    return faiss.vector_to_array(clustering.centroids).reshape(K, -1)


def _beam_residuals(residuals: Floats, codebook: Floats, width: int) -> Floats:
    """What the next level of a beam search leaves: (n, entries, d) to (n, `width` or all there are, d)."""
    n, entries, d = residuals.shape
    K = len(codebook)
    extended = np.empty((n, min(width, entries * K), d), np.float32)
    rows = max(1, (1 << 22) // (entries * K))  # 16 MiB of scores
    for start in range(0, n, rows):
        block = residuals[start : start + rows]
        scores = faiss.pairwise_distances(block.reshape(-1, d), codebook).reshape(len(block), -1)
        least = np.argpartition(scores, extended.shape[1] - 1, axis=1)[:, : extended.shape[1]]
        parents = np.take_along_axis(block, least[..., None] // K, axis=1)
        extended[start : start + rows] = parents - codebook[least % K]
    return extended


def _mean_square(errors: Floats) -> float:
    """Mean of the squared norms of the rows."""
    norms = np.empty(len(errors), np.float32)
    _kernels.squared_norms(errors, norms)
    return float(norms.mean(dtype=np.float64))


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
