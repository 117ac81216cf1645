"""The training method "least-squares": the structure that codebooks get, and how they are learned for it.

Codes of up to 16 levels have codewords of all dimensions, and longer ones global levels and levels of blocks, unless
product codebooks code vectors that were held out better.
"""

import numpy as np

from ..codec import Floats, ProgressiveQuantizer
from .alternation import annealed, coding_error
from .blocks import block_codebooks
from .kmeans import residual_kmeans
from .product import ITERATIONS, product_codebooks
from .progress import Steps
from .registry import Task, register

# Every 20th vector is held out, but not more than so many. Codes with blocks, which learn more numbers from as many
# vectors, gain from each that is not: a third of a percent of the error.
_HELD_OUT = 20
_MOST_HELD_OUT = 2048
_MOST_HELD_OUT_OF_BLOCKS = 512

# Product codebooks are worth the shorter codes if they have this share of the error. On 10,000 vectors of 32 dimensions
# of faiss.contrib's SyntheticDataset they have .73, on GloVe 1.57.
_CLEARLY_LESS = 0.95
# Vectors a codeword, and iterations, by which product codebooks are learned to be compared with those of blocks.
_COMPARED = 32
_COMPARED_ITERATIONS = 8


def train(task: Task) -> Floats:
    """Codebooks, shape (M, K, d), of the least progressive loss, or product codebooks where these are better."""
    in_blocks = task.layout.n_blocks > 0
    most = _MOST_HELD_OUT_OF_BLOCKS if in_blocks else _MOST_HELD_OUT
    spared = min(len(task.x) // _HELD_OUT, most)
    if len(task.x) - spared < task.K:  # a codebook needs K vectors
        spared = 0
    held_out, learned = np.split(task.rng.permutation(len(task.x)), [spared])
    x = task.x[learned]
    unseen = task.x[held_out] if spared else x
    may_be_product = not task.lengths_count and 1 < task.M <= x.shape[1] and spared > 0
    if in_blocks:
        task.stats.structure = "blocks"
        codebooks = block_codebooks(task, x, unseen)
    elif task.iterations:
        start = _kmeans(task, x, task.progress)
        temperatures = np.linspace(1, 0, task.iterations, endpoint=False, dtype=np.float32)
        codebooks = annealed(task, x, unseen, start, temperatures)
    elif may_be_product:  # only to be compared: none of so few vectors can be spared
        codebooks = _kmeans(task, x)
    compared, iterations = (x[: _COMPARED * task.K], _COMPARED_ITERATIONS) if in_blocks else (x, ITERATIONS)
    if may_be_product and _product_is_better(task, compared, iterations, unseen, codebooks):
        task.stats.structure = "product"
        return product_codebooks(task.x, task.M, task.K, task.seed)
    if in_blocks or task.iterations:
        return codebooks
    return _kmeans(task, task.x, task.progress)


def _kmeans(task: Task, x: Floats, progress: Steps | None = None) -> Floats:
    return residual_kmeans(x, task.M, task.K, task.seed, task.beam_size, progress, task.kmeans_iterations)


def _product_is_better(task: Task, x: Floats, iterations: int, unseen: Floats, codebooks: Floats) -> bool:
    """Whether product codebooks of x code unseen vectors clearly better than the codebooks given."""
    product = ProgressiveQuantizer(product_codebooks(x, task.M, task.K, task.seed, iterations))
    by_product = coding_error(product, unseen, task.beam_size)
    return by_product < _CLEARLY_LESS * coding_error(ProgressiveQuantizer(codebooks), unseen, task.beam_size)


register("least-squares", train)
