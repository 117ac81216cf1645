"""`train_codebooks`: checks, the choice of training vectors, a training method, and what is reported of it."""

import time

import numpy as np
import numpy.typing as npt

from ..codec import Floats, Layout, ProgressiveQuantizer, threads
from . import outliers, registry, structure  # noqa: F401  structure registers its method
from .alternation import turns_worthwhile
from .blocks import BLOCK_TURNS
from .effort import Effort, check_arguments
from .progress import Steps
from .stats import TrainStats, mean_square

_JUDGED = 1 << 14  # training vectors whose errors are reported
# Codes with blocks are long, and so are their vectors: 65,536 of 1,536 dimensions, of which training holds five copies,
# are 400 MiB.
_FEWER_IN_BLOCKS = 4


@threads.without_openmp()
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
    layout: Layout | None = None,
) -> tuple[Floats, TrainStats]:
    """Codebooks that minimise the progressive loss of some vectors.

    Some vectors are held out. If product codebooks, each with dimensions of its own, code these clearly better, they
    are the result: on data without structure, additive codebooks need more training vectors to generalise. With product
    codebooks, searches of fewer than all levels find little. So this is left out where `weights` are given.

    Parameters
    ----------
    x : array, shape (n, d), float32
        Training vectors, n >= K = 2**nbits. Those that are far from all others, if they are few, have a few codewords
        of the first level, and no part in learning the others: see `outliers.py`.
    M, nbits : int
        Levels, and bits a level.
    seed : int
        Of the choice of training vectors, of k-means and of the moves. The same seed gives the same codebooks, whatever
        the number of threads.
    effort : "fast", "default", "best" or Effort
        How much work to do.
    weights : array, shape (M,), optional
        w_l, the weight of the error at prefix length l; M, M - 1, ..., 1 by default. Where they are given, the result
        is good at all lengths: it is not exchanged for product codebooks.
    verbose : bool
        Print a line for every step, in place of a progress bar.
    trainer : "least-squares" or "sgd"
        "sgd" continues from the codebooks of "least-squares" with the paper's own optimiser: soft assignment, the three
        losses of Eq. 21, Adam. It needs torch (the extra ``deep``), and uses a GPU if there is one.

    layout : Layout, optional
        The subspace of each level. Unless given, it follows from d, M, nbits and the number of vectors: more than 16
        levels have some global ones, and blocks of dimensions for the others.

    Returns
    -------
    codebooks : array, shape (M, K, d), float32
    stats : TrainStats

    Raises
    ------
    RuntimeError
        If n < K, a value of x is not finite, or sums of squared distances overflow float32.
    ValueError
        If `effort` or `trainer` is not a known name, `weights` are not M finite numbers >= 0 of which the last is > 0,
        or `layout` is for another d, M or nbits.
    ImportError
        If `trainer` is "sgd" and torch is not installed.
    """
    started = time.perf_counter()
    K = 1 << nbits
    effort, w = check_arguments(x, M, nbits, effort, weights, trainer)
    d = x.shape[1]
    if layout is not None and (layout.d, layout.M, layout.nbits) != (d, M, nbits):
        raise ValueError(f"train: layout is {layout}, expected one of d={d}, M={M}, nbits={nbits}")
    rng = np.random.default_rng(seed)
    in_blocks = (layout or Layout.default(d, M, nbits)).n_blocks > 0
    most = effort.max_points_per_centroid * K // (_FEWER_IN_BLOCKS if in_blocks else 1)
    if len(x) > most:
        x = x[np.sort(rng.choice(len(x), most, replace=False))]
    x, far = outliers.set_apart(x, K)
    layout = layout or Layout.default(d, M, nbits, len(x))
    if layout.n_blocks:
        iterations, beam_size = effort.of_blocks()
        turns = iterations + BLOCK_TURNS * layout.n_blocks
    else:
        iterations, beam_size = effort.of_levels(M)
        turns = iterations = turns_worthwhile(len(x), M, K, iterations)
    stats = TrainStats(len(x), layout=layout)
    lengths_count = weights is not None
    with Steps(M + turns + 1, verbose) as progress:
        task = registry.Task(
            x,
            M,
            K,
            layout,
            w,
            iterations,
            beam_size,
            effort.kmeans_iterations,
            seed,
            rng,
            stats,
            progress,
            lengths_count,
        )
        codebooks = outliers.given_codewords(registry.method(trainer)(task), x, far, seed)
        quantizer = ProgressiveQuantizer(codebooks)
        judged = x[:: -(-len(x) // _JUDGED)]
        left = judged.copy()
        codes = quantizer.encode(judged, beam_size)
        for level in range(M):
            left -= quantizer.codebooks[level][codes[:, level]]
            stats.mse.append(mean_square(left))
        stats.seconds = time.perf_counter() - started
        progress.step(f"mean squared error {stats.mse[-1]:.6g}")
    return codebooks, stats
