"""What evaluated runs found: tables as in the paper's Tables 1 and 2, plots as in its Figures 1 and 3.

Runs that differ in their seed alone are one row and one curve: the mean, and its spread over the seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..lab import plots
from .config import ABLATIONS
from .runs import FEATURES, MODELS, RunConfig

Floats = npt.NDArray[np.float64]

#: What the label of a row ends with whose method, before it, learned without labels.
UNSUPERVISED = ", unsupervised"

#: The order of rows and curves; others follow as they come.
_ORDER = (*ABLATIONS, *(name for name in MODELS if name != "DPQ"))
_MARKERS = "osD^vP*Xph"
_DPI = 150
_TSNE_SEED = 0
_MARGIN = 0.03  # round the unit square that t-SNE's places are scaled to
_DISC_AREA = 0.15  # of the unit square, all discs together: large enough to be seen, and to seldom overlap


@dataclass
class Result:
    """A row: the runs that differ in their seed alone.

    Attributes
    ----------
    label : str
    mAP : dict from str to list of float
        By code length in bits (`FEATURES`: unquantized), a value a run.
    curves : dict from str to list of arrays
        By code length: precision and recall, shape (2, ranks), a run each.
    ranks : array, shape (ranks,)
        Where the curves were measured.
    R : int
        Results that count in mAP.
    """

    label: str
    mAP: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, list[Floats]] = field(default_factory=dict)
    ranks: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    R: int = 0

    @property
    def bits(self) -> list[int]:
        """The code lengths that were measured, ascending."""
        return sorted(int(name) for name in self.mAP if name != FEATURES)

    def mean(self, length: str) -> float:
        """Mean mAP over the runs at a code length, or of the features."""
        return float(np.mean(self.mAP[length]))

    def spread(self, length: str) -> float:
        """Standard deviation over the runs (of a sample: n - 1), 0 of one run."""
        values = self.mAP[length]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def curve(self, length: str) -> Floats:
        """Precision and recall at the ranks, averaged over the runs: shape (2, ranks)."""
        return np.mean(self.curves[length], axis=0)


def collect(folders: Sequence[Path | str]) -> list[Result]:
    """The results of evaluated runs, in the order of the paper's Table 2.

    Runs that differ in their seed alone make a row. So do runs of one label and different code lengths, which PQN has
    to be trained for one by one; the row's features are those of the longest. Other runs of a label are named by
    their folder.

    Raises
    ------
    FileNotFoundError
        If a folder holds no evaluated run.
    """
    kinds: dict[str, tuple[Result, str]] = {}  # by configuration: the result, and the folder that it began with
    for folder in map(Path, folders):
        if not (folder / "metrics.json").exists():
            raise FileNotFoundError(f"{folder}: metrics.json is missing; evaluate the run first")
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        kind = _without_seeds(RunConfig.read(folder / "config.json"))
        result, _ = kinds.setdefault(kind, (Result(metrics["label"], R=metrics["protocol"]["R"]), folder.name))
        with np.load(folder / "curves.npz", allow_pickle=False) as stored:
            result.ranks = stored["ranks"]
            for length, value in metrics["mAP"].items():
                result.mAP.setdefault(length, []).append(value)
                curve = np.stack([stored[f"precision_{length}"], stored[f"recall_{length}"]])
                result.curves.setdefault(length, []).append(curve)
    return ordered(_rows(list(kinds.values())))


def _rows(kinds: Sequence[tuple[Result, str]]) -> list[Result]:
    """One result a label, where their lengths do not overlap."""
    rows: dict[str, Result] = {}
    for result, folder in sorted(kinds, key=lambda kind: kind[0].bits[-1]):
        row = rows.setdefault(result.label, result)
        if row is result:
            continue
        if set(row.bits) & set(result.bits):
            result.label = f"{result.label} ({folder})"
            rows[result.label] = result
        else:
            row.mAP |= result.mAP
            row.curves |= result.curves
    return list(rows.values())


def _without_seeds(config: RunConfig) -> str:
    """What runs of one row have in common."""
    tables = config.decisive()
    del tables["data"]["seed"], tables["train"]["seed"]
    return json.dumps(tables, sort_keys=True)


def ordered(results: Sequence[Result]) -> list[Result]:
    """Sort rows as in Table 2, then the other models, then what is known under other names as it comes."""
    return sorted(results, key=lambda result: _ORDER.index(result.label) if result.label in _ORDER else len(_ORDER))


# ---- tables ------------------------------------------------------------------------------------------------------


def cells(results: Sequence[Result]) -> list[list[str]]:
    """Rows of text, the heading first: mAP at every code length and of the features, mean ± deviation over seeds."""
    bits = sorted({length for result in results for length in result.bits})
    lengths = [*map(str, bits), FEATURES]
    heading = ["", *(f"{length} bits" for length in bits), "unquantized"]
    return [heading, *([result.label, *(_cell(result, length) for length in lengths)] for result in results)]


def _cell(result: Result, length: str) -> str:
    if length not in result.mAP:
        return "–"
    mean = f"{result.mean(length):.3f}".removeprefix("0")
    return f"{mean} ± {result.spread(length):.3f}".replace("± 0.", "± .") if len(result.mAP[length]) > 1 else mean


def format_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    heading, *rows = cells(results)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot_table(results: Sequence[Result], path: Path, title: str) -> None:
    """Draw the table; the best of every column is bold."""
    heading, *rows = cells(results)
    figure = Figure(figsize=(2.2 + 1.35 * (len(heading) - 1), 0.75 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title, fontsize=11)
    widths = [1.5, *[1.0] * (len(heading) - 1)]
    table = axes.table(
        rows, colLabels=heading, cellLoc="center", bbox=Bbox.unit(), colWidths=[w / sum(widths) for w in widths]
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, column), cell in table.get_celld().items():
        cell.visible_edges = "B" if row in (0, len(rows)) else "open"
        if row == 0:
            cell.get_text().set_fontweight("bold")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
    for column, length in enumerate([*map(str, _all_bits(results)), FEATURES], start=1):
        means = [round(result.mean(length), 3) if length in result.mAP else -1.0 for result in results]
        for row in np.flatnonzero(np.array(means) == max(means)).tolist():
            table[1 + row, column].get_text().set_fontweight("bold")
    figure.savefig(path, dpi=_DPI, format="png")


def _all_bits(results: Sequence[Result]) -> list[int]:
    return sorted({length for result in results for length in result.bits})


# ---- plots -------------------------------------------------------------------------------------------------------


def _style(number: int, label: str) -> dict[str, Any]:
    """A method's own colour in every figure, dotted without labels; that of a number for what is no method."""
    method = label.removesuffix(UNSUPERVISED)
    if method in plots.COLORS:
        return {"color": plots.COLORS[method], "linestyle": "-" if method == label else ":"}
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    turn, colour = divmod(number, len(colours))
    return {"color": colours[colour], "linestyle": ("-", ":")[turn % 2]}


def plot_map(results: Sequence[Result], path: Path) -> None:
    """mAP against bits, a line a result, dashed on to its unquantized vectors; bars, the deviation over seeds.

    Where some results lie far below the others, a second plot shows the others alone.
    """
    means = [result.mean(length) for result in results for length in result.mAP]
    top, low = max(means), float(np.percentile(means, 30))
    zooms = 2 if top - min(means) > 3 * (top - low) + 0.1 else 1
    figure, every_axes = plots.new_figure(zooms)
    for axes in every_axes:
        _draw_map(axes, results)
    if zooms == 2:
        margin = 0.1 * (top - low) + 0.005
        every_axes[1].set_ylim(low - margin, top + margin)
    handles_labels = every_axes[0].get_legend_handles_labels()
    figure.legend(*handles_labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=_DPI, format="png")


def _draw_map(axes: Axes, results: Sequence[Result]) -> None:
    bits = _all_bits(results)
    step = int(min(np.diff(bits), default=8))
    end = bits[-1] + step
    for number, result in enumerate(results):
        style = {
            **_style(number, result.label),
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 5,
            "capsize": 2,
        }
        # Side by side, since many lie on each other.
        aside = 0.3 * step * ((number + 0.5) / len(results) - 0.5)
        last = str(result.bits[-1])
        for lengths, x in (
            (list(map(str, result.bits)), [bits + aside for bits in result.bits]),
            ([last, FEATURES], [int(last) + aside, end + aside]),
        ):
            if not set(lengths) <= result.mAP.keys():
                continue
            means, spreads = [result.mean(length) for length in lengths], [result.spread(length) for length in lengths]
            changes = {"linestyle": "--", "linewidth": 0.8, "mfc": "none"} if FEATURES in lengths else {}
            axes.errorbar(x, means, spreads, label=None if changes else result.label, **{**style, **changes})
    axes.set(xlabel="bits a code", ylabel=f"mAP@{_common_R(results)}")
    axes.set_xticks([*bits, end], [*map(str, bits), "unquantized"])


def plot_precision_recall(results: Sequence[Result], path: Path) -> None:
    """Precision against recall, at the longest codes of every result."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for label, style, result, length in _curves_to_draw(results):
        precision, recall = result.curve(length)
        axes.plot(recall, precision, label=label, **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _finish(figure, axes, path)


def plot_precision_at(results: Sequence[Result], path: Path, most: int = 1000) -> None:
    """Precision among the first R results against R, at the longest codes of every result."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for label, style, result, length in _curves_to_draw(results):
        shown = result.ranks <= most
        axes.plot(result.ranks[shown], result.curve(length)[0, shown], label=label, **style)
    axes.set(xlabel="R, results a query", ylabel="precision@R", xlim=(0, None))
    _finish(figure, axes, path)


def _curves_to_draw(results: Sequence[Result]) -> list[tuple[str, dict[str, Any], Result, str]]:
    """A curve a result, at its longest codes; of a single result, one a code length and one of the features."""
    results = [result for result in results if result.curves]
    if len(results) > 1:
        chosen = [(f"{result.label}, {result.bits[-1]} bits", result, str(result.bits[-1])) for result in results]
    else:
        (result,) = results
        chosen = [(f"{bits} bits", result, str(bits)) for bits in result.bits]
        chosen.append(("unquantized", result, FEATURES))
    lines = []
    for number, (label, result, length) in enumerate(chosen):
        # Curves of one result are of its code lengths.
        style = {**_style(number, result.label if len(results) > 1 else label), "linewidth": 1.6}
        lines.append((label, style | {"linestyle": "--"} if length == FEATURES else style, result, length))
    return lines


def _common_R(results: Sequence[Result]) -> str:
    return "/".join(f"{R:,}" for R in sorted({result.R for result in results}))


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=_DPI, format="png")


def write_prefixes(folder: Path | str, output: Path | str) -> Path:
    """t-SNE of a run's quantized images at every code length, coloured by class (the paper's Fig. 1): prefixes.png.

    Images of one code are one point of the space: they are drawn as a disc of dots round it.
    """
    path = Path(output) / "prefixes.png"
    with np.load(Path(folder) / "curves.npz", allow_pickle=False) as stored:
        lengths = sorted(int(name.removeprefix("quantized_")) for name in stored if name.startswith("quantized_"))
        panels = {length: stored[f"quantized_{length}"] for length in lengths}
        labels = stored["sample_labels"]
        class_names = stored["class_names"].tolist()
    figure = Figure(figsize=(3.4 * len(panels) + 1.6, 3.7), layout="constrained")
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = mpl.colormaps["tab10" if len(class_names) <= 10 else "gist_ncar"]
    for axes, (length, x) in zip(every_axes, panels.items(), strict=True):
        places = _tsne(x, labels)
        for number in np.unique(labels).tolist():
            colour = colours(number if len(class_names) <= 10 else number / len(class_names))
            shown = places[labels == number].T
            axes.scatter(*shown, s=4, color=colour, linewidths=0, label=class_names[number])
        frame = places.min() - _MARGIN, places.max() + _MARGIN  # a square
        axes.set(title=f"{length} bits", xticks=[], yticks=[], aspect="equal", xlim=frame, ylim=frame)
    if len(class_names) <= 25:
        handles, names = every_axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", frameon=False, markerscale=3.5, fontsize=9)
    figure.savefig(path, dpi=_DPI, format="png")
    return path


def _tsne(x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Floats:
    """Places of quantized images, (n, 2), in the unit square or little beyond."""
    from sklearn.manifold import TSNE

    distinct, code = np.unique(x, axis=0, return_inverse=True)
    code = code.reshape(-1)  # numpy 2.0 shapes it otherwise
    places = np.zeros((len(distinct), 2))
    if len(distinct) > 2:
        tsne = TSNE(init="pca", random_state=_TSNE_SEED, perplexity=min(30, (len(distinct) - 1) / 3))
        places = tsne.fit_transform(distinct).astype(np.float64)
        places -= places.min(axis=0)
        places /= places.max(axis=0)
    # Round its code's place as seeds lie in a sunflower's head, class by class: area tells how many share the code.
    order = np.lexsort((labels, code))
    starts = np.searchsorted(code[order], np.arange(len(distinct)))
    rank = np.empty(len(x))
    rank[order] = np.arange(len(x)) - starts[code[order]]
    radius = np.sqrt(rank * _DISC_AREA / (np.pi * len(x)))
    angle = rank * np.pi * (3 - np.sqrt(5))
    return places[code] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def write(results: Sequence[Result], output: Path | str, title: str) -> list[Path]:
    """Table and plots of some results, into a folder that is made if there is none.

    Returns
    -------
    paths : list of Path
        What was written: table.md, table.png, map.png, precision_recall.png, precision_at.png.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    table = output / "table.md"
    table.write_text(f"{title}\n\n{format_table(results)}\n", encoding="utf-8")
    plot_table(results, output / "table.png", title)
    plot_map(results, output / "map.png")
    plot_precision_recall(results, output / "precision_recall.png")
    plot_precision_at(results, output / "precision_at.png")
    return [table, *(output / f"{name}.png" for name in ("table", "map", "precision_recall", "precision_at"))]
