"""The report that ``faiss-dpq bench`` makes: recall, error, speed and cost beside FAISS's quantizers at equal bytes.

Every method gets the same training vectors, all of them (FAISS's limit of 256 vectors a codeword is lifted), the same
base and the same queries. What was measured is kept in `rows.jsonl`, a line a row, so that a run can be stopped, taken
up again, and widened; the tables and plots are made of all rows there.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import IndexDPQ
from ..index.quantized import DEFAULT_PREFIX_WEIGHT
from . import datasets, plots
from .datasets import VectorSet
from .methods import METHODS
from .own_vectors import OwnVectors

DATA: dict[str, Callable[[], VectorSet]] = {
    "glove": datasets.load_glove,
    "fashion-mnist": datasets.load_fashion_mnist,
    "wordnet": datasets.load_wordnet,
}
RANKS = (1, 10, 100)
NPROBES = (1, 4, 16, 64)
PREFIX_WEIGHTS = (DEFAULT_PREFIX_WEIGHT, 0.0, 0.3)  # of the encodings whose prefixes are measured

_TIMED_QUERIES = 50  # of stock additive indexes, which add up the norm of every code for every query
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Ids = npt.NDArray[np.int64]


@dataclass
class Row:
    """What was measured of one method.

    Attributes
    ----------
    data, method : str
    size : int
        Bytes a vector.
    nprobe : int
        Lists searched; 0 without inverted lists.
    mse : float
        Mean squared error of the decoded base.
    recalls : list of float
        1-recall at every rank of `RANKS`: how often the true nearest neighbour is among the first so many results.
    train_s, add_s : float
        Seconds of all threads together (clock "cpu") or of the clock on the wall.
    qps : float
        Queries a second, one batch of all queries, `RANKS[-1]` results each.
    """

    data: str
    method: str
    size: int
    nprobe: int
    mse: float
    recalls: list[float]
    train_s: float
    add_s: float
    qps: float


def truth(vectors: VectorSet) -> Ids:
    """The true nearest neighbour of every query, shape (nq,)."""
    return faiss.knn(vectors.queries, vectors.base, 1)[1][:, 0]


def recalls(ids: Ids, nearest: Ids) -> list[float]:
    """1-recall at every rank of `RANKS`, from results of shape (nq, RANKS[-1])."""
    return [float((ids[:, :rank] == nearest[:, None]).any(axis=1).mean()) for rank in RANKS]


def measure(data: str, vectors: VectorSet, nearest: Ids, method: str, size: int, clock: str = "wall") -> Iterator[Row]:
    """Train and fill an index, and search it: a row, or one for every nprobe."""
    index = METHODS[method](vectors.base.shape[1], size)
    if index is None:
        return
    train_s, _ = _timed(partial(index.train, vectors.train), clock)
    add_s, _ = _timed(partial(index.add, vectors.base), clock)
    decoded = index.reconstruct_n(0, index.ntotal)
    mse = float(((decoded - vectors.base) ** 2).sum(axis=1).mean())
    ivf = faiss.try_extract_index_ivf(index)
    asked = vectors.queries[:_TIMED_QUERIES] if _is_slow(index) else vectors.queries
    if not _is_slow(index):
        # Before any is timed: the first searches also derive what later ones use, of each list that they probe.
        if ivf:
            ivf.nprobe = NPROBES[-1]
        index.search(asked, RANKS[-1])
    for nprobe in NPROBES if ivf else (0,):
        if ivf:
            ivf.nprobe = nprobe
        search_s, (_, ids) = _timed(partial(index.search, asked, RANKS[-1]), clock)
        if _is_slow(index):
            _, ids = faiss.knn(vectors.queries, decoded, RANKS[-1])
        yield Row(data, method, size, nprobe, mse, recalls(ids, nearest), train_s, add_s, len(asked) / search_s)


def _is_slow(index: faiss.Index) -> bool:
    return isinstance(index, faiss.IndexAdditiveQuantizer) and not isinstance(index, IndexDPQ)


def _timed(work: Callable[[], Any], clock: str) -> tuple[float, Any]:
    started = _CLOCKS[clock]()
    result = work()
    return _CLOCKS[clock]() - started, result


def measure_prefixes(data: str, vectors: VectorSet, nearest: Ids, M: int) -> Iterator[Row]:
    """Rows of every prefix of one trained IndexDPQ, filled with every one of `PREFIX_WEIGHTS`."""
    whole = IndexDPQ(vectors.base.shape[1], M, 8)
    whole.train(vectors.train)
    for weight in PREFIX_WEIGHTS:
        whole.reset()
        whole.prefix_weight = weight
        whole.add(vectors.base)
        for levels in range(1, M + 1):
            prefix = whole.truncate(levels)
            decoded = prefix.reconstruct_n(0, prefix.ntotal)
            mse = float(((decoded - vectors.base) ** 2).sum(axis=1).mean())
            _, ids = prefix.search(vectors.queries, RANKS[-1])
            yield Row(data, prefix_name(M, weight), levels, 0, mse, recalls(ids, nearest), 0.0, 0.0, 0.0)


def prefix_name(M: int, weight: float = DEFAULT_PREFIX_WEIGHT) -> str:
    """What the rows of the prefixes of one IndexDPQ are called."""
    return f"prefix of {M}" + ("" if weight == DEFAULT_PREFIX_WEIGHT else f", prefix_weight {weight}")


def run(
    folder: Path,
    data: Iterable[str | OwnVectors],
    sizes: Iterable[int],
    methods: Iterable[str],
    prefixes_of: Iterable[int] = (),
    clock: str = "wall",
) -> Iterator[Row]:
    """Measure what `folder` has no rows of, and keep it there; yields the new rows.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    data : names of `DATA`, or OwnVectors
    sizes : bytes a vector
    methods : names of `METHODS`
    prefixes_of : int
        Levels of the IndexDPQs whose prefixes are measured.
    clock : "wall" or "cpu"
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row.data, row.method, row.size) for row in read_rows(folder)}
    sizes, methods, prefixes_of = list(sizes), list(methods), list(prefixes_of)
    for data_set in data:
        name = data_set if isinstance(data_set, str) else data_set.name
        cells = [(method, size) for size in sizes for method in methods if (name, method, size) not in done]
        lengths = [M for M in prefixes_of if (name, prefix_name(M), 1) not in done]
        if not cells and not lengths:
            continue
        if isinstance(data_set, str):
            vectors = DATA[data_set]()
            nearest = truth(vectors)
        else:
            vectors, nearest = data_set.vectors, data_set.nearest
        for method, size in cells:
            yield from _keep(folder, list(measure(name, vectors, nearest, method, size, clock)))
        for M in lengths:
            yield from _keep(folder, list(measure_prefixes(name, vectors, nearest, M)))


def _keep(folder: Path, rows: list[Row]) -> list[Row]:
    with (folder / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    return rows


def read_rows(folder: Path) -> list[Row]:
    """The rows kept in a folder."""
    path = folder / "rows.jsonl"
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


# ---- tables and plots ----------------------------------------------------------------------------------------------

HEAD = ["data", "bytes", "method", "MSE", *(f"R@{rank}" for rank in RANKS), "train s", "add s", "QPS"]


def cells(row: Row) -> list[str]:
    """A row as it stands under `HEAD`."""
    method = f"{row.method}, nprobe {row.nprobe}" if row.nprobe else row.method
    times = [f"{row.train_s:.1f}", f"{row.add_s:.1f}", f"{row.qps:,.0f}"] if row.qps else ["", "", ""]
    return [row.data, str(row.size), method, f"{row.mse:.4g}", *(f"{recall:.3f}" for recall in row.recalls), *times]


def markdown(rows: Iterable[list[str]], head: list[str]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def report(folder: Path) -> Path:
    """Make the tables (report.md, rows.json) and, for every data set, a plot (DATA.png) of all rows in a folder.

    Returns
    -------
    Path
        Of report.md.
    """
    rows = read_rows(folder)
    parts = ["# Recall at equal bytes\n"]
    places = {method: place for place, method in enumerate(METHODS)}
    for name in dict.fromkeys(row.data for row in rows):
        of_data = sorted(
            (row for row in rows if row.data == name), key=lambda row: (row.size, places.get(row.method, len(places)))
        )
        whole = [row for row in of_data if not row.method.startswith("prefix")]
        parts += [f"## {name}\n"]
        for table in ([row for row in whole if not row.nprobe], [row for row in whole if row.nprobe]):
            parts += [markdown(map(cells, table), HEAD), ""] if table else []
        if prefixes := _prefix_table(of_data):
            parts += [prefixes, ""]
        if whole:
            plots.of_benchmark(name, whole, folder / f"{name}.png")
            parts += [f"![Recall of {name} against bytes and against speed]({name}.png)", ""]
    (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    path = folder / "report.md"
    path.write_text("\n".join(parts))
    return path


def _prefix_table(rows: list[Row]) -> str:
    """R@10 of the prefixes of one training beside that of trainings for their length alone, and OPQ's."""
    prefixes = [row for row in rows if row.method.startswith("prefix")]
    at_10 = {(row.method, row.size): row.recalls[1] for row in rows if not row.nprobe}

    def line(row: Row) -> list[str]:
        alone, opq = at_10.get(("IndexDPQ", row.size)), at_10.get(("OPQ", row.size))
        of, _, weight = row.method.removeprefix("prefix of ").partition(", prefix_weight ")
        return [
            f"{row.size} of {of}",
            weight or f"{DEFAULT_PREFIX_WEIGHT:g}",
            f"{row.mse:.4g}",
            f"{row.recalls[1]:.3f}",
            "" if alone is None else f"{alone:.3f}",
            "" if not alone else f"{row.recalls[1] / alone:.3f}",
            "" if opq is None else f"{opq:.3f}",
        ]

    head = ["levels", "prefix_weight", "MSE", "R@10", "R@10 trained alone", "ratio", "R@10 of OPQ"]
    return markdown(map(line, prefixes), head) if prefixes else ""
