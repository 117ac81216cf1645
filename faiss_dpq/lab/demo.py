"""The comparison that ``faiss-dpq demo`` runs: IndexDPQ beside FAISS's own quantizers.

Every method is given the same training vectors, database and queries, and is measured in the same
process with the same threads. One byte a level (nbits = 8), so M levels are M bytes a vector.
"""

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

import faiss_dpq
from faiss_dpq.lab import benchmark, plots
from faiss_dpq.lab.datasets import Vectors, VectorSet
from faiss_dpq.training import progress

CODE_SIZES = (4, 8)
RANKS = benchmark.RANKS
ROUNDS = 2
LONG_SEARCH_S = 2.0  # long enough to be timed once
FAISS_TRAIN_CAP = 256 * 256  # max_points_per_centroid times codewords; OPQMatrix.max_train_points
FAISS_RQ_BEAM = 5
# ST_norm_from_LUT, the search type that stores no norm and so keeps the bytes equal, adds up the
# norm of every code for every query: all queries would take minutes.
FAISS_RQ_TIMED_QUERIES = 20

PREFIXES = f"prefixes of one IndexDPQ {CODE_SIZES[-1]}x8"
# What `plots` calls a family, and how its points look. IndexDPQ is hollow: it lies on its prefix of that length.
_DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "IndexPQ": ("PQ", {"marker": "v", "linestyle": ":"}),
    "OPQ": ("OPQ", {"marker": "s", "linestyle": ":"}),
    "FAISS RQ": ("RQ beam 5", {"marker": "^", "linestyle": ":"}),
    "IndexDPQ": ("IndexDPQ", {"marker": "D", "linestyle": "none", "fillstyle": "none"}),
    PREFIXES: ("prefixes", {"marker": "o", "linestyle": "-"}),
}
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]"
Ids = npt.NDArray[np.int64]


@dataclass
class Contender:
    """An index of the comparison and what it cost to build."""

    family: str
    name: str
    index: faiss.Index
    train_s: float = 0.0
    add_s: float = 0.0


@dataclass
class Run:
    """One row of the table: a contender searched at one code length."""

    contender: Contender
    code_size: int
    levels: int | None = None  # the prefix of the codes that is searched, None: all of them
    recalls: tuple[float, ...] = ()
    search_s: float = 0.0  # the last search
    qps: float = 0.0  # the fastest search

    @property
    def name(self) -> str:
        """What the row is called in the table."""
        prefix = "" if self.levels is None else f", levels={self.levels}"
        return self.contender.name + prefix


def compare(vectors: VectorSet) -> list[Run]:
    """Build and search every contender on `vectors`, with a progress bar on stderr.

    Returns
    -------
    list of Run
        The rows of the table, in its order.
    """
    entered = contenders(vectors.base.shape[1])
    runs = _runs(entered)
    truth = faiss.knn(vectors.queries, vectors.base, 1)[1]
    steps = 2 * len(entered) + ROUNDS * len(runs)
    with progress.bar(total=steps, bar_format=_BAR) as bar:
        for contender in entered:
            bar.set_description(f"{'train ' + contender.name:<30}")
            contender.train_s, _ = _timed(contender.index.train, vectors.train)
            bar.update()
            bar.set_description(f"{'fill ' + contender.name:<30}")
            contender.add_s, _ = _timed(contender.index.add, vectors.base)
            bar.update()
        # Interleaved, so that a slow spell of the machine meets all methods alike.
        for run in runs * ROUNDS:
            bar.set_description(f"{'search ' + run.name:<30}")
            if run.search_s < LONG_SEARCH_S:
                _measure(run, vectors.queries, truth)
            bar.update()
    return runs


def contenders(d: int) -> list[Contender]:
    """Return the untrained indexes of `d` dimensions that are compared, shortest codes first."""
    entered = []
    for M in CODE_SIZES:
        if d % M == 0:
            entered.append(Contender("IndexPQ", f"IndexPQ {M}x8", faiss.IndexPQ(d, M, 8)))
        opq = f"OPQ{M}_{d - d % M},PQ{M}x8"
        entered.append(Contender("OPQ", opq, faiss.index_factory(d, opq)))
        rq = faiss.IndexResidualQuantizer(d, M, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_from_LUT)
        rq.rq.max_beam_size = FAISS_RQ_BEAM
        entered.append(Contender("FAISS RQ", f"FAISS RQ {M}x8", rq))
        dpq = faiss_dpq.IndexDPQ(d, M, 8)
        entered.append(Contender("IndexDPQ", f"IndexDPQ {M}x8", dpq))
    return entered


def _runs(entered: Sequence[Contender]) -> list[Run]:
    runs = [Run(contender, contender.index.sa_code_size()) for contender in entered]
    longest = entered[-1]
    return runs + [Run(longest, levels, levels) for levels in range(1, longest.index.rq.M + 1)]


def _measure(run: Run, queries: Vectors, truth: Ids) -> None:
    """Search once: keep the best speed so far and, the first time, the recalls."""
    index, k = run.contender.index, RANKS[-1]
    params = None if run.levels is None else faiss_dpq.SearchParametersDPQ(levels=run.levels)
    is_slow = type(index) is faiss.IndexResidualQuantizer
    asked = queries[:FAISS_RQ_TIMED_QUERIES] if is_slow else queries
    run.search_s, (_, ids) = _timed(lambda x: index.search(x, k, params=params), asked)
    run.qps = max(run.qps, len(asked) / run.search_s)
    if not run.recalls:
        if is_slow:
            _, ids = faiss.knn(queries, index.reconstruct_n(), k)
        run.recalls = recalls(ids, truth)


def _timed(work: Callable[[Vectors], Any], x: Vectors) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(x)
    return time.perf_counter() - start, result


def recalls(ids: Ids, truth: Ids) -> tuple[float, ...]:
    """Return, for each R of ``RANKS``, how often the true nearest is among the first R ids.

    Parameters
    ----------
    ids : ndarray of shape (nq, k), int64
        Results, best first.
    truth : ndarray of shape (nq, 1), int64
        The true nearest neighbour of each query.
    """
    return tuple(benchmark.recalls(ids, truth[:, 0]))


def format_table(runs: Sequence[Run], markdown: bool = False) -> str:
    """Return the rows as an aligned table, plain or in Markdown."""
    head = ["method", "bytes", "train s", "add s", "QPS", *(f"R@{rank}" for rank in RANKS)]
    cells = [head, *(_cells(run) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    if markdown:
        rule[1:] = [dashes[:-1] + ":" for dashes in rule[1:]]  # numbers align right
    left, between, right = ("| ", " | ", " |") if markdown else ("", "  ", "")
    lines = []
    for name, *numbers in [head, rule, *cells[1:]]:
        padded = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append(left + between.join([name.ljust(widths[0]), *padded]) + right)
    return "\n".join(lines)


def describe(vectors: VectorSet, runs: Sequence[Run]) -> str:
    """Return what a reader of the table must know: data, conditions, the columns' meaning."""
    n_train, n_base, n_queries = (len(part) for part in vectors)
    beam = next(run.contender.index.beam_size for run in runs if run.contender.family == "IndexDPQ")
    drawn = f"; FAISS's draw {FAISS_TRAIN_CAP:,} of them, their default limit" if n_train > FAISS_TRAIN_CAP else ""
    text = f"""
        GloVe 6B word vectors, d={vectors.base.shape[1]}, L2-normalized: {n_base:,} in the database, {n_queries:,}
        queries. All methods are given the same {n_train:,} training vectors{drawn}. FAISS {faiss.__version__},
        {faiss.omp_get_max_threads()} threads. R@k: how often the true nearest neighbour is among the first k results.
        QPS: one batch of all queries, {RANKS[-1]} results each, the fastest of {ROUNDS} rounds (of one, where that took
        over {LONG_SEARCH_S:.0f} s). levels=l: the first l bytes of the codes of the one IndexDPQ {CODE_SIZES[-1]}x8,
        nothing trained or added again; truncate(l) keeps just these. IndexDPQ: beam {beam}. FAISS RQ: beam
        {FAISS_RQ_BEAM}, ST_norm_from_LUT (equal bytes), QPS from {min(FAISS_RQ_TIMED_QUERIES, n_queries)} queries,
        recall from its decoded vectors (the same ranking).
    """
    return textwrap.fill(" ".join(text.split()), width=100, break_on_hyphens=False)


def _cells(run: Run) -> list[str]:
    # A prefix is searched in an index that has a row of its own: it cost nothing more.
    built = [run.contender.train_s, run.contender.add_s] if run.levels is None else []
    return [
        run.name,
        str(run.code_size),
        *([f"{seconds:.1f}" for seconds in built] or ["-", "-"]),
        f"{run.qps:,.0f}",
        *(f"{recall:.3f}" for recall in run.recalls),
    ]


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw recall against bytes and against speed into the PNG file `path`."""
    figure, (by_bytes, by_speed) = plots.new_figure(2)
    sizes = sorted({run.code_size for run in runs})
    for family, members in _families(runs).items():
        method, style = _DRAWN[family]
        recall = [run.recalls[1] for run in members]
        lengths = [run.code_size for run in members]
        by_bytes.plot(lengths, recall, label=family, color=plots.color(method), **style)
        plots.draw_by_size(by_speed, method, [run.qps for run in members], recall, lengths, sizes, style)
    by_bytes.set(xlabel="bytes a vector", ylabel=f"recall@{RANKS[1]}", ylim=(-0.04, 1.04))
    plots.finish_speed(by_speed, "", RANKS[1], sizes)
    plots.save(
        figure, path, f"GloVe 6B, 50-d: how often the true nearest\nneighbour is among the first {RANKS[1]} results"
    )


def _families(runs: Sequence[Run]) -> dict[str, list[Run]]:
    families: dict[str, list[Run]] = {}
    for run in runs:
        family = run.contender.family if run.levels is None else PREFIXES
        families.setdefault(family, []).append(run)
    return families
