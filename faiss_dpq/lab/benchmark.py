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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import IndexDPQ, IndexIVFDPQ
from ..index.quantized import DEFAULT_PREFIX_WEIGHT
from . import datasets
from .datasets import VectorSet

DATA: dict[str, Callable[[], VectorSet]] = {
    "glove": datasets.load_glove,
    "fashion-mnist": datasets.load_fashion_mnist,
    "wordnet": datasets.load_wordnet,
}
RANKS = (1, 10, 100)
NLIST = 1024
NPROBES = (1, 4, 16, 64)
PREFIX_WEIGHTS = (DEFAULT_PREFIX_WEIGHT, 0.0, 0.3)  # of the encodings whose prefixes are measured

_NO_LIMIT = 1 << 20  # vectors a codeword
_RESIDUALS = 2048  # a codeword, of all beam entries: RQ clusters beam_size times as many as there are vectors
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


def _residual_quantizer(d: int, size: int, beam_size: int) -> faiss.Index:
    """FAISS's RQ, trained and encoding with one beam; without norms, so that its bytes are ours."""
    index = faiss.IndexResidualQuantizer(d, size, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_from_LUT)
    _set_up_beam(index.rq, beam_size)
    return index


def _set_up_beam(rq: faiss.ResidualQuantizer, beam_size: int) -> None:
    rq.max_beam_size = beam_size
    rq.use_beam_LUT = 1  # the same codes up to rounding, in half of the time or less
    rq.cp.max_points_per_centroid = _RESIDUALS


# FAISS 1.15 fills no table of norms for these two, and ST_norm_from_LUT aborts the process: codes are decoded instead.
_DECODED = faiss.AdditiveQuantizer.ST_decompress


def _local_search_quantizer(d: int, size: int) -> faiss.Index:
    return faiss.IndexLocalSearchQuantizer(d, size, 8, faiss.METRIC_L2, _DECODED)


def _product_residual_quantizer(d: int, size: int) -> faiss.Index | None:
    """Two sub-vectors with half of the levels each."""
    if d % 2 or size % 2:
        return None
    index = faiss.IndexProductResidualQuantizer(d, 2, size // 2, 8, faiss.METRIC_L2, _DECODED)
    for m in range(2):
        faiss.downcast_AdditiveQuantizer(index.prq.subquantizer(m)).cp.max_points_per_centroid = _NO_LIMIT
    return index


def _product_quantizer(d: int, size: int) -> faiss.Index | None:
    if d % size:
        return None
    index = faiss.IndexPQ(d, size, 8)
    index.pq.cp.max_points_per_centroid = _NO_LIMIT
    return index


def _fast_scan(d: int, size: int) -> faiss.Index | None:
    return None if d % (2 * size) else faiss.IndexPQFastScan(d, 2 * size, 4)


def _rotated(make: Callable[[int, int], faiss.Index | None], d: int, size: int) -> faiss.Index:
    """OPQ; the rotation pads d to a multiple of the number of sub-vectors."""
    padded = -(-d // size) * size
    pq = make(padded, size)
    rotation = faiss.OPQMatrix(d, size, padded)
    rotation.max_train_points = _NO_LIMIT
    index = faiss.IndexPreTransform(rotation, pq)
    index.referenced_objects = [rotation, pq]
    return index


class _Trained(IndexDPQ):
    """IndexDPQ with arguments of `train`."""

    _arguments: dict[str, Any] | None = None

    def train(self, x: npt.ArrayLike, *args: Any, **arguments: Any) -> None:
        super().train(x, *args, **(self._arguments or {}) | arguments)


def _trained(d: int, size: int, **arguments: Any) -> IndexDPQ:
    index = _Trained(d, size, 8)
    index._arguments = arguments
    return index


def _descent_trained(d: int, size: int) -> faiss.Index | None:
    return _trained(d, size, trainer="sgd") if find_spec("torch") else None


def _best_trained(d: int, size: int) -> faiss.Index:
    index = _trained(d, size, effort="best")
    index.beam_size = 64
    return index


def _trained_for_full_length(d: int, size: int) -> faiss.Index:
    """What the prefixes of IndexDPQ cost."""
    index = _trained(d, size, weights=[0] * (size - 1) + [1])
    index.prefix_weight = 0
    return index


def _inverted_lists(make: Callable[[faiss.Index, int, int], faiss.Index], d: int, size: int) -> faiss.Index:
    coarse = faiss.IndexFlatL2(d)
    index = make(coarse, d, size)
    index.referenced_objects = [coarse]
    index.cp.max_points_per_centroid = _NO_LIMIT
    return index


def _ivf_dpq(d: int, size: int) -> faiss.Index:
    return _inverted_lists(lambda coarse, d, size: IndexIVFDPQ(coarse, d, NLIST, size, 8), d, size)


def _ivf_pq(d: int, size: int) -> faiss.Index | None:
    if d % size:
        return None
    return _inverted_lists(lambda coarse, d, size: faiss.IndexIVFPQ(coarse, d, NLIST, size, 8), d, size)


def _ivf_fast_scan(d: int, size: int) -> faiss.Index | None:
    if d % (2 * size):
        return None
    return _inverted_lists(lambda coarse, d, size: faiss.IndexIVFPQFastScan(coarse, d, NLIST, 2 * size, 4), d, size)


def _ivf_residual_quantizer(d: int, size: int) -> faiss.Index:
    search_type = faiss.AdditiveQuantizer.ST_norm_from_LUT

    def make(coarse: faiss.Index, d: int, size: int) -> faiss.Index:
        return faiss.IndexIVFResidualQuantizer(coarse, d, NLIST, size, 8, faiss.METRIC_L2, search_type)

    index = _inverted_lists(make, d, size)
    _set_up_beam(index.rq, 5)
    return index


#: Makers of empty indexes from the dimension and the bytes a vector; None where the method does not fit them.
METHODS: dict[str, Callable[[int, int], faiss.Index | None]] = {
    "IndexDPQ": lambda d, size: IndexDPQ(d, size, 8),
    "IndexDPQ, sgd": _descent_trained,
    "IndexDPQ, effort best, beam 64": _best_trained,
    "IndexDPQ, full length only": _trained_for_full_length,
    "PQ": _product_quantizer,
    "PQFastScan": _fast_scan,
    "OPQ": partial(_rotated, _product_quantizer),
    "RQ beam 5": lambda d, size: _residual_quantizer(d, size, 5),
    "RQ beam 32": lambda d, size: _residual_quantizer(d, size, 32),
    "LSQ": _local_search_quantizer,
    "PRQ": _product_residual_quantizer,
    "IVF DPQ": _ivf_dpq,
    "IVF PQ": _ivf_pq,
    "IVF PQFastScan": _ivf_fast_scan,
    "IVF OPQ": partial(_rotated, _ivf_pq),
    "IVF RQ beam 5": _ivf_residual_quantizer,
}


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
    for nprobe in NPROBES if ivf else (0,):
        if ivf:
            ivf.nprobe = nprobe
        asked = vectors.queries[:_TIMED_QUERIES] if _is_slow(index) else vectors.queries
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
    data: Iterable[str],
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
    data : names of `DATA`
    sizes : bytes a vector
    methods : names of `METHODS`
    prefixes_of : int
        Levels of the IndexDPQs whose prefixes are measured.
    clock : "wall" or "cpu"
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row.data, row.method, row.size) for row in read_rows(folder)}
    sizes, methods, prefixes_of = list(sizes), list(methods), list(prefixes_of)
    for name in data:
        cells = [(method, size) for size in sizes for method in methods if (name, method, size) not in done]
        lengths = [M for M in prefixes_of if (name, prefix_name(M), 1) not in done]
        if not cells and not lengths:
            continue
        vectors = DATA[name]()
        nearest = truth(vectors)
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
    """Make the tables (report.md) and, for every data set, a plot (DATA.png) of all rows in a folder.

    Returns
    -------
    Path
        Of report.md.
    """
    rows = read_rows(folder)
    parts = ["# Recall at equal bytes\n"]
    for name in dict.fromkeys(row.data for row in rows):
        of_data = sorted((row for row in rows if row.data == name), key=lambda row: row.size)
        whole = [row for row in of_data if not row.method.startswith("prefix")]
        parts += [f"## {name}\n", markdown(map(cells, whole), HEAD), ""]
        if prefixes := _prefix_table(of_data):
            parts += [prefixes, ""]
        if whole:
            _plot(name, whole, folder / f"{name}.png")
            parts += [f"![Recall of {name} against bytes and against speed]({name}.png)", ""]
    path = folder / "report.md"
    path.write_text("\n".join(parts))
    return path


def _prefix_table(rows: list[Row]) -> str:
    """R@10 of the prefixes of one training beside that of trainings for their length alone, and OPQ's."""
    prefixes = [row for row in rows if row.method.startswith("prefix")]
    at_10 = {(row.method, row.size): row.recalls[1] for row in rows if not row.nprobe}

    def line(row: Row) -> list[str]:
        alone, opq = at_10.get(("IndexDPQ", row.size)), at_10.get(("OPQ", row.size))
        return [
            f"{row.size} of {row.method.removeprefix('prefix of ')}",
            f"{row.mse:.4g}",
            f"{row.recalls[1]:.3f}",
            "" if alone is None else f"{alone:.3f}",
            "" if not alone else f"{row.recalls[1] / alone:.3f}",
            "" if opq is None else f"{opq:.3f}",
        ]

    head = ["levels", "MSE", "R@10", "R@10 trained alone", "ratio", "R@10 of OPQ"]
    return markdown(map(line, prefixes), head) if prefixes else ""


def _plot(name: str, rows: list[Row], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"]
    figure = Figure(figsize=(14, 5), layout="constrained")
    by_bytes, by_speed = figure.subplots(1, 2, sharey=True)
    for number, method in enumerate(METHODS):
        of_method = [row for row in rows if row.method == method]
        if not of_method:
            continue
        style = {
            "color": colors(number),
            "marker": "D" if "DPQ" in method else "o",
            "linewidth": 2.5 if "DPQ" in method else 1,
        }
        if not of_method[0].nprobe:
            by_bytes.plot([row.size for row in of_method], [row.recalls[1] for row in of_method], **style)
        _plot_speed(by_speed, method, of_method, style)
    by_bytes.set(xscale="log", xlabel="bytes a vector", ylabel=f"1-recall@{RANKS[1]}", title="exhaustive search")
    sizes = sorted({row.size for row in rows})
    by_bytes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    by_bytes.minorticks_off()
    by_speed.set(xscale="log", xlabel="queries a second (log scale)", title="bytes beside the points; IVF dashed")
    for axes in (by_bytes, by_speed):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.suptitle(f"{name}: how often the true nearest neighbour is among the first {RANKS[1]}")
    figure.savefig(path, dpi=130)


def _plot_speed(axes: Any, method: str, rows: list[Row], style: dict[str, Any]) -> None:
    """A line a method; for inverted lists, a line over the nprobes for every number of bytes."""
    if not rows[0].nprobe:
        lines = [rows]
    else:
        lines = [[row for row in rows if row.size == size] for size in sorted({row.size for row in rows})]
    for number, line in enumerate(lines):
        speeds, heights = [row.qps for row in line], [row.recalls[1] for row in line]
        label = method if number == 0 else None
        axes.plot(speeds, heights, label=label, linestyle="--" if line[0].nprobe else "-", **style)
        for row in line[-1:] if line[0].nprobe else line:
            axes.annotate(
                f"{row.size}", (row.qps, row.recalls[1]), xytext=(5, 3), textcoords="offset points", fontsize=7
            )
