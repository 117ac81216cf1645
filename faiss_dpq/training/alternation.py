"""Annealed alternation of encoding and solving for the codebooks.

Every turn of the alternation

(a) moves each training vector by the quantization error of another vector of the same first codeword, multiplied by the
    root of a temperature that falls from 1 to 0;
(b) encodes the moved vectors by beam search with the present codebooks;
(c) solves for all codebooks together (`least_squares`).

The moves are drawn anew every turn, so the codebooks cannot adapt to the training vectors themselves. They learn the
density that the vectors were drawn from, smoothed on a scale that the quantizer does not resolve anyway. As in
simulated annealing, the moves also lead out of poor local minima (compare the "SR" methods of Martinez et al., "LSQ++",
ECCV 2018). Without moves, alternation lost half of its gain on unseen vectors.

How much smoothing is right depends on the number of vectors. So some vectors are held out, and the codebooks that code
those best are kept.
"""

import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Codes, Floats, ProgressiveQuantizer
from .least_squares import solve
from .registry import Task
from .stats import mean_square

# Alternation fits M K codewords to n vectors. On GloVe, with 8 levels of 8 bits, it began to help on unseen vectors at
# about 4,096 training vectors: 2 for every codeword.
_LEAST_VECTORS = 2

# With fewer than 256 vectors a codeword of a level, every vector stands in the training several times, up to 4, and is
# moved differently each time. With 8,000 vectors that took a percent off the error.
_MOVED = 256
_MOST_MOVES = 4

# How much the errors of shorter prefixes count in the encoder's beam between solves. Codebooks trained with it find
# more at full length, too: on GloVe in 8 bytes, R@10 rose from .840 to .845.
_PREFIX_WEIGHT = 0.1

# The pull of every codeword towards its last value, in training vectors. It makes the solution unique where a codeword
# is unused, and keeps a codeword that few vectors use from being fitted to those few alone.
_RIDGE = 0.1


def turns_worthwhile(n: int, M: int, K: int, iterations: int) -> int:
    """Turns of the alternation that n training vectors are enough for: all or none."""
    return iterations if n >= _LEAST_VECTORS * M * K else 0


def annealed(
    task: Task, x: Floats, held_out: Floats, codebooks: Floats, temperatures: Floats, momenta: Floats | None = None
) -> Floats:
    """The codebooks that code the vectors held out best, among those given and those after every turn.

    A turn's temperature is the variance of its moves, relative to that of the quantization error. Its momentum says how
    far the codebooks go beyond what is solved for: by this share of the change since the turn before.

    It ends early when in the third quarter of the turns, or later, errors are on average no less than a quarter before.
    Those of the first turns say little: vectors are moved far, and errors may be lower at once than when the
    temperature has fallen by half, and yet not as low as at the end.
    """
    quantizer = _quantizer(task, codebooks)
    moves = max(1, min(_MOST_MOVES, _MOVED * quantizer.K // len(x)))
    if moves > 1:
        x = np.tile(x, (moves, 1))
    codes = quantizer.encode(x, task.beam_size, _PREFIX_WEIGHT)
    errors = errors_of(quantizer, x, codes)
    history = task.stats.history
    history.append(coding_error(quantizer, held_out, task.beam_size))
    solution = codebooks
    quarter = max(4, len(temperatures) // 4)
    for turn, temperature in enumerate(temperatures):
        moved = x + np.sqrt(temperature) * errors[_others(codes[:, 0], task.rng)]
        codes = quantizer.encode(moved, task.beam_size, _PREFIX_WEIGHT)
        errors = errors_of(quantizer, moved, codes)
        revived = _revived(quantizer.codebooks, codes, errors)
        before, solution = solution, solve(moved, codes, revived, task.weights, _RIDGE)
        beyond = momenta[turn] * (solution - before) if momenta is not None else 0
        quantizer = _quantizer(task, solution + beyond)
        history.append(coding_error(quantizer, held_out, task.beam_size))
        task.stats.iterations += 1
        task.progress.step(f"mean squared error of vectors held out {history[-1]:.6g}, temperature {temperature:.3f}")
        if history[-1] == min(history):
            codebooks = quantizer.codebooks
        elif turn + 1 >= 3 * quarter and np.mean(history[-quarter:]) >= np.mean(history[-2 * quarter : -quarter]):
            break
    return codebooks


def _quantizer(task: Task, codebooks: Floats) -> ProgressiveQuantizer:
    """With it, vectors get their codes as they will in the end: codes with blocks by rounded numbers."""
    quantizer = ProgressiveQuantizer(codebooks)
    quantizer.may_round = task.layout.n_blocks > 0
    return quantizer


def _others(groups: npt.NDArray[np.integer], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """For every vector another one of its group, at random, so that each is taken once; a group of one gets itself.

    Vectors of the same first codeword have errors of similar sizes and directions. The errors of any other vectors
    would blur the dense regions: on Fashion-MNIST with 8 levels, R@1 was .355 instead of .364.
    """
    order = np.lexsort((rng.random(len(groups)), groups))
    begins = np.flatnonzero(np.diff(groups[order].astype(np.int64), prepend=-1))
    following = np.arange(1, len(groups) + 1)
    following[np.append(begins[1:], len(groups)) - 1] = begins
    others = np.empty_like(order)
    others[order] = order[following]
    return others


def coding_error(quantizer: ProgressiveQuantizer, x: Floats, beam_size: int) -> float:
    """Mean squared error of vectors that are encoded and decoded."""
    return mean_square(errors_of(quantizer, x, quantizer.encode(x, beam_size)))


def errors_of(quantizer: ProgressiveQuantizer, x: Floats, codes: Codes) -> Floats:
    """What codes leave of vectors (n, d)."""
    errors = np.array(x, np.float32, order="C")
    _kernels.subtract_codewords(codes, quantizer.codebooks, errors)
    return errors


def _revived(codebooks: Floats, codes: Codes, errors: Floats) -> Floats:
    """Codebooks in which every codeword that no vector uses is given to one of the vectors of the largest errors.

    The codeword becomes the one that the vector uses at that level, plus the vector's error: it codes the vector
    exactly. `codes` is changed accordingly.
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
