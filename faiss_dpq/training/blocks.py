"""Codebooks for long codes: global levels first, then levels of blocks, each block by itself.

1. The global levels are learned like a short code: residual k-means, then alternation.
2. What they leave of the training vectors is made as long as what they leave of others, and turned to its principal
   axes, which are dealt to the blocks so that each has about the same product of variances, as in optimised product
   quantization (Ge et al., CVPR 2013).
3. The levels of each block are learned like a short code of what is left in its dimensions, and of its reflection: what
   global levels leave lies about evenly around them, and twice the vectors are fitted less closely.

A codeword of a block has B times fewer numbers to learn than one of d dimensions, and a step of the alternation is B
times cheaper. On sentence embeddings, 48 levels learned so find more than 48 levels of d dimensions do.
"""

from dataclasses import replace

import numpy as np

from ..codec import Floats, ProgressiveQuantizer, centre_of
from .alternation import annealed, errors_of, turns_worthwhile
from .kmeans import residual_kmeans
from .registry import Task
from .stats import TrainStats

_KMEANS_VECTORS = 40  # a codeword: k-means of a level uses no more; the alternation uses all
_KMEANS_ITERATIONS = 4
# The levels of a block are as good after one turn as they get, and fitted to the training vectors after more.
BLOCK_TURNS = 1
_TEMPERATURE = 0.8  # of the first turn
# With momentum. On sentence embeddings, 20 turns with it and from half the temperature left by 8 global levels what 28
# turns without it left: .368 of other vectors. Where there are fewer than so many vectors a codeword of a level, the
# codebooks fit those vectors too closely: with 40, R@1 of 32 bytes falls by .7 points, with 80 by .2, with 110 by 0.
_MOMENTUM_VECTORS = 96
_TEMPERATURE_WITH_MOMENTUM = 0.4
_MOMENTA = 0.4, 0.8  # of the first turn and of the last that has any
_WITHOUT_MOMENTUM = 2  # turns at the end, in which the codebooks settle
# The squared factor that errors of vectors learned from are lengthened by, at most: shorter ones are those of rounding.
_MOST_LONGER = 4.0


def block_codebooks(task: Task, x: Floats, held_out: Floats) -> Floats:
    """Codebooks, shape (M, K, d), of the task's layout, which has blocks, of vectors (n, d).

    `held_out` are other vectors; the codebooks that code these best are chosen.
    """
    layout, d = task.layout, x.shape[1]
    n_global = layout.n_global
    codebooks = np.zeros((task.M, task.K, d), np.float32)
    if n_global:
        turns = turns_worthwhile(len(x), n_global, task.K, task.iterations)
        codebooks[:n_global], _ = _short_code(
            task, range(n_global), x, held_out, turns, len(x) >= _MOMENTUM_VECTORS * task.K
        )
        head = ProgressiveQuantizer(codebooks[:n_global])
        x, held_out = (errors_of(head, some, head.encode(some, task.beam_size)) for some in (x, held_out))
        x *= _usual_length(x, held_out)
    else:
        codebooks[0] = mean = centre_of(x)
        x, held_out = x - mean, held_out - mean
    errors = []
    for block, axes in enumerate(dealt_axes(x, layout.n_blocks), 1):
        levels = layout.levels_of(block)
        turned, turned_held_out = (np.ascontiguousarray(some @ axes) for some in (x, held_out))
        turns = turns_worthwhile(len(x), len(levels), task.K, min(task.iterations, BLOCK_TURNS))
        if n_global:
            turned = task.rng.permutation(np.concatenate([turned, -turned]))
        of_block, history = _short_code(task, levels, turned, turned_held_out, turns)
        # The block's mean goes to the first level: it is what queries and vectors are moved by.
        means = of_block.mean(axis=1, keepdims=True)
        codebooks[levels] += (of_block - means) @ axes.T
        codebooks[0] += means.sum(axis=0)[0] @ axes.T
        errors.append(history)
    most = max(map(len, errors))
    task.stats.history = [sum(of[min(turn, len(of) - 1)] for of in errors) for turn in range(most)]
    return codebooks


def _short_code(
    task: Task, levels: range | list[int], x: Floats, held_out: Floats, turns: int, momentum: bool = False
) -> tuple[Floats, list[float]]:
    """Codebooks of some of the task's levels, learned by themselves, and the errors of vectors held out."""
    weights = np.array([part.sum() for part in np.split(task.weights, levels)[1:]])
    stats = TrainStats(len(x))
    own = replace(task, x=x, M=len(levels), weights=weights, stats=stats)
    seed = task.seed + levels[0]
    start = residual_kmeans(
        x[: _KMEANS_VECTORS * own.K],
        own.M,
        own.K,
        seed,
        own.beam_size,
        own.progress,
        min(_KMEANS_ITERATIONS, own.kmeans_iterations),
        _KMEANS_VECTORS,
    )
    turns = turns if len(held_out) else 0
    temperature, momenta = _TEMPERATURE, np.zeros(turns, np.float32)
    if momentum:
        temperature = _TEMPERATURE_WITH_MOMENTUM
        momenta[:-_WITHOUT_MOMENTUM] = np.linspace(*_MOMENTA, max(0, turns - _WITHOUT_MOMENTUM))
    temperatures = np.linspace(temperature, 0, turns, dtype=np.float32)
    codebooks = annealed(own, x, held_out, start, temperatures, momenta)
    task.stats.iterations += stats.iterations
    return codebooks, stats.history


def _usual_length(x: Floats, held_out: Floats) -> np.float32:
    """The factor by which errors of vectors learned from, (n, d), get as long as those of vectors held out.

    On sentence embeddings the latter are a tenth longer, in all directions alike. Blocks that learn from errors of this
    length find .6 points of R@1 more in 48 bytes and .7 in 32. By medians, for a few far vectors among those held out
    would make errors longer than most are.
    """
    if not len(held_out):
        return np.float32(1)
    learned, unseen = (float(np.median(np.einsum("ij,ij->i", some, some))) for some in (x, held_out))
    return np.float32(np.sqrt(min(unseen / learned, _MOST_LONGER)) if unseen > learned > 0 else 1)


def dealt_axes(x: Floats, n_blocks: int) -> list[Floats]:
    """The principal axes of vectors (n, d), dealt to blocks of d / n_blocks axes: arrays (d, axes), one axis a column.

    In the order of their variance, each axis goes to the block with the least product of variances among those that are
    not full.
    """
    d = x.shape[1]
    variances, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
    log_variances = np.log(np.maximum(variances, 1e-12 * variances[-1] + 1e-300))
    room = [len(part) for part in np.array_split(np.arange(d), n_blocks)]
    own: list[list[int]] = [[] for _ in room]
    products = np.zeros(n_blocks)
    for axis in range(d - 1, -1, -1):
        block = min((b for b in range(n_blocks) if len(own[b]) < room[b]), key=lambda b: (products[b], b))
        own[block].append(axis)
        products[block] += log_variances[axis] - log_variances[0]  # at least 0: the fuller block has more
    return [np.ascontiguousarray(axes[:, chosen], np.float32) for chosen in own]
