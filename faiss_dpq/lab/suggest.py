"""`faiss_dpq.suggest`: which code for some vectors, from small trainings and what they find."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..training import progress
from . import intervals
from .trial import IVF_FROM, LEAST_VECTORS, Measured, Trial, is_continued

LEAST_BYTES, MOST_BYTES = 2, 96
#: What is tried to find the fewest bytes for a recall.
LADDER = (4, 8, 12, 16, 24, 32, 48, 64, 96)

_DEFAULT_SIZES = (4, 8, 16, 32)
_WANTED = 0.95  # recall@k, where none is asked for
_FAR = 20  # times as many vectors as were measured: what is expected of more is a guess
_METRICS = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found; printed, a table and the recommendation.

    Attributes
    ----------
    rows : list of Measured
        By bytes.
    best : Measured
        The one that is recommended.
    factory : str
        For `faiss_dpq.index_factory(d, factory, metric)`; with inverted lists, where n asks for them.
    metric : int
    notes : list of str
        What speaks for it, and what the numbers do not say.
    n, k, d : int
        Vectors to be stored, results a query, dimensions.
    n_measured, n_trained, n_queries : int
        Vectors searched, trained on, and queries.
    """

    rows: list[Measured]
    best: Measured
    factory: str
    metric: int
    notes: list[str]
    n: int
    k: int
    d: int
    n_measured: int
    n_trained: int
    n_queries: int

    def __str__(self) -> str:
        head = ["bytes", "metric", "R@1", f"R@{self.k}", f"memory, {self.n:,}", "queries/s"]
        continued = is_continued(self.n, self.n_measured)
        if continued:
            head[4:4] = [f"R@1 of {self.n:,}", f"R@{self.k} of {self.n:,}"]
        cells = [head]
        for row in self.rows:
            cells.append([str(row.size), _METRICS[row.metric], str(row.recall_at_1), str(row.recall_at_k)])
            if continued:
                cells[-1] += [f"~{row.expected_at_1.value:.2f}", f"~{row.expected_at_k.value:.2f}"]
            cells[-1] += [_in_units(row.memory), f"{row.queries_per_second:,.0f}"]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        metric = ", faiss.METRIC_INNER_PRODUCT" if self.metric == faiss.METRIC_INNER_PRODUCT else ""
        call = f'faiss_dpq.index_factory({self.d}, "{self.factory}"{metric})'
        notes = [textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  ") for note in self.notes]
        return "\n".join([*table, "", f"Suggested: {call}", "", *notes])


def suggest(
    x: npt.ArrayLike,
    bytes: int | Sequence[int] | None = None,
    recall: float | None = None,
    k: int = 10,
    queries: npt.ArrayLike | None = None,
    *,
    metric: int | None = None,
    n: int | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> Suggestion:
    """Measure codes of several lengths on some vectors, and say which to use.

    Every length is trained with little effort on some of the vectors, and searched for queries that were taken out of
    them, so that what a full training finds is rather more.

    Parameters
    ----------
    x : array, shape (n, d)
        Vectors like those to be stored, at least 1,000; of very many, a random choice is used (`vectors_needed`).
    bytes : int, or sequence of int, optional
        Bytes a vector, 2 to 96. One is what can be afforded: half and double of it are measured, too. Of several,
        those are measured. By default 4, 8, 16 and 32.
    recall : float, optional
        The least recall@k that is wanted: the fewest bytes that reach it are looked for, up to `bytes`.
    k : int
        Results a query, at most len(x).
    queries : array, shape (nq, d), optional
        By default 1,000 vectors, a tenth at most, are taken out of x.
    metric : faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT, optional
        By default METRIC_L2. For unit vectors, whose neighbours by both are the same, both are compared.
    n : int, optional
        How many vectors will be stored; len(x) by default.
    seed : int
        Of what is drawn, and of the training.
    verbose : bool
        Show progress bars on terminals.

    Returns
    -------
    suggestion : Suggestion
        `suggestion.factory` and `suggestion.metric` make the index; print it to see the table.

    Raises
    ------
    ValueError
        If an argument is out of range, there are fewer than 1,000 vectors, or a row holds NaN or infinity.
    """
    x = np.asarray(x) if not isinstance(x, np.ndarray) else x
    if x.ndim != 2 or x.dtype.kind not in "fiu" or len(x) < LEAST_VECTORS:
        raise ValueError(
            f"suggest: x holds {x.dtype} of shape {x.shape}, expected numbers of shape (n, d), n >= {LEAST_VECTORS:,}"
        )
    sizes = _checked_sizes(bytes)
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"suggest: recall is {recall}, expected a share above 0 and up to 1")
    if not 1 <= k <= len(x):
        raise ValueError(f"suggest: k is {k}, expected 1 to {len(x)}, the number of vectors")
    if metric not in (None, faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
        raise ValueError(f"suggest: metric is {metric}, expected faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT")
    with progress.hidden(not verbose), progress.bar(desc="suggest", unit=" trainings") as bar:
        trial = Trial(x, queries, k, n or len(x), seed, bar)
        return _suggest(trial, sizes, recall, metric)


def _checked_sizes(sizes: Any) -> list[int] | None:
    if sizes is None:
        return None
    several = sorted(set(np.atleast_1d(np.asarray(sizes)).tolist()))
    if not several or any(type(size) is not int or not LEAST_BYTES <= size <= MOST_BYTES for size in several):
        raise ValueError(
            f"suggest: bytes is {sizes!r}, expected whole numbers from {LEAST_BYTES} to {MOST_BYTES}: one byte a level"
        )
    return several


def _suggest(trial: Trial, asked: list[int] | None, recall: float | None, metric: int | None) -> Suggestion:
    afforded = asked[0] if asked and len(asked) == 1 else None
    sizes = _sizes(asked, afforded, recall)
    notes = []
    if metric is None:
        metric = faiss.METRIC_L2
        if trial.is_unit:
            metric, note = _better_metric(trial, afforded or sizes[len(sizes) // 2])
            notes.append(note)

    def measured(size: int) -> Measured:
        return trial.measure(size, metric)

    if recall is not None:
        best = _fewest(sizes, measured, recall)
        notes.insert(0, _reason(best, trial, recall))
    else:
        rows = [measured(size) for size in sizes]
        reaching = [row for row in rows if row.expected_at_k.value >= _WANTED]
        best = measured(afforded) if afforded else (reaching or rows[-1:])[0]
        notes.insert(0, _reason(best, trial, None if afforded else _WANTED))
    factory = best.factory
    if trial.n >= IVF_FROM:
        factory, note = trial.with_lists(best)
        notes.append(note)
    notes += _caveats(trial, best)
    rows = sorted(trial.rows, key=lambda row: (row.size, row.metric))
    counts = trial.n_measured, trial.n_trained, trial.n_queries
    return Suggestion(rows, best, factory, best.metric, notes, trial.n, trial.k, trial.d, *counts)


def _sizes(asked: list[int] | None, afforded: int | None, recall: float | None) -> list[int]:
    """The bytes that are measured, or searched for the fewest that do."""
    if afforded and recall is not None:
        return sorted({size for size in LADDER if size < afforded} | {afforded})
    if afforded:
        return sorted({max(LEAST_BYTES, afforded // 2), afforded, min(MOST_BYTES, 2 * afforded)})
    return asked or list(_DEFAULT_SIZES if recall is None else LADDER)


def _caveats(trial: Trial, best: Measured) -> list[str]:
    """What the numbers are of, and what they do not say."""
    notes = [
        f"Measured on {trial.n_measured:,} vectors with {trial.n_queries:,} queries, after short trainings on "
        f"{trial.n_trained:,} vectors; training on more, at the default effort, finds more. In brackets: where the "
        "true share lies, 95 times in 100, as far as the choice of queries goes. R@k: how often the true nearest "
        "neighbour is among the first k results.",
        f"Memory is that of codes and of what is derived from them. The codebooks of {best.size} levels and the tables "
        f"of their products take {_in_units(best.fixed_memory)} more, however many vectors there are.",
    ]
    if is_continued(trial.n, trial.n_measured):
        rough = "a rough guess, " if trial.n > _FAR * trial.n_measured else ""
        notes.append(
            f"~: expected among {trial.n:,} vectors by continuing what a quarter, half and all of the "
            f"{trial.n_measured:,} gave; {rough}for the suggested code R@{trial.k} {best.expected_at_k}."
        )
    return notes


def _better_metric(trial: Trial, size: int) -> tuple[int, str]:
    """The metric by which unit vectors find more, and a note about it."""
    l2, inner = (trial.measure(size, metric) for metric in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT))
    gain = intervals.difference(inner.hits[0], l2.hits[0])
    finder = "inner products find" if gain.value > 0 else "Euclidean distances find"
    metric = faiss.METRIC_INNER_PRODUCT if gain.value > 0 else faiss.METRIC_L2
    low, high = sorted((abs(gain.low), abs(gain.high)))
    if gain.low <= 0 <= gain.high:
        what = (
            f"with {size} bytes the two metrics find the nearest neighbour about as often (R@1 differs by "
            f"{abs(gain.value):.3f}, which chance explains); either will do"
        )
    else:
        what = (
            f"with {size} bytes {finder} the nearest neighbour more often, R@1 by {abs(gain.value):.3f} "
            f"({low:.3f}-{high:.3f})"
        )
    return metric, f"The vectors have length 1, so both metrics have the same true neighbours: {what}."


def _fewest(sizes: list[int], measured: Callable[[int], Measured], wanted: float) -> Measured:
    """The fewest bytes with the recall that is wanted, by halving the choice; the most if none has it."""
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        if measured(sizes[middle]).expected_at_k.value >= wanted:
            high = middle
        else:
            low = middle + 1
    return measured(sizes[low])


def _reason(best: Measured, trial: Trial, wanted: float | None) -> str:
    found, k = best.expected_at_k, trial.k
    if wanted is None:
        return f"{best.size} bytes are what was asked for: R@{k} {found} among {trial.n:,} vectors."
    if found.value < wanted:
        return f"No length that was tried reaches R@{k} {wanted:g}; {best.size} bytes come nearest, with {found}."
    sure = (
        "" if found.low >= wanted else f"; the interval reaches below {wanted:g}, so one size more is on the safe side"
    )
    return f"{best.size} bytes are the fewest that were tried with R@{k} of {wanted:g} or more: {found}{sure}."


def _in_units(n_bytes: int) -> str:
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.1f} {unit}"
