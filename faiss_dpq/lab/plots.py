"""How plots look: one colour a method in every figure, dark text on white, legible at a width of 600 pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

#: Of methods. Those with inverted lists have the colour of the one without, and are drawn in a panel of their own.
COLORS = {
    "IndexDPQ": "#c1121f",
    "IndexDPQ, sgd": "#e8734a",
    "IndexDPQ, effort best, beam 64": "#7a0c15",
    "IndexDPQ, full length only": "#e59aa0",
    "prefixes": "#1d3f72",
    "PQ": "#7f858b",
    "PQFastScan": "#33383d",
    "OPQ": "#d98a00",
    "RQ beam 5": "#2a9d8f",
    "RQ beam 32": "#14584f",
    "LSQ": "#3f7cc4",
    "PRQ": "#8e5ea2",
    "RaBitQ": "#8c5a3c",
    # with networks; inverted lists of DPQ have its colour, too
    "DPQ": "#c1121f",
    "E": "#7f858b",
    "E+LS": "#d98a00",
    "E+LC": "#2a9d8f",
    "Two-Step": "#8c5a3c",
    "No-Soft": "#e8734a",
    "PQN": "#3f7cc4",
    "RPQN": "#1d3f72",
    "TPQN": "#8e5ea2",
}

_WIDTH = 6.0  # inches; with _DPI twice as many pixels as a narrow page shows, and text of 11 to 13 pixels there
_DPI = 200
_INK = "#1b1f23"
_MARKER_SIZES = (3.5, 9.0)  # of the fewest and the most bytes


class Row(Protocol):
    """What is drawn of a row of `faiss-dpq bench`."""

    method: str
    size: int
    nprobe: int
    recalls: list[float]
    qps: float


def color(method: str) -> str:
    """The colour of a method, with inverted lists or without."""
    return COLORS[method.removeprefix("IVF ")]


def new_figure(n_panels: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of panels below each other."""
    figure = Figure(figsize=(_WIDTH, height * n_panels + 0.9), layout="constrained", facecolor="white")
    panels = list(figure.subplots(n_panels, 1, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(colors=_INK, labelsize=9)
        for spine in axes.spines.values():
            spine.set_color(_INK)
    return figure, panels


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure with one legend below all panels, and close what it holds."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set(color=_INK, fontsize=10)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize=9, labelcolor=_INK
    )
    figure.suptitle(title, fontsize=11, color=_INK)
    figure.savefig(path, dpi=_DPI, format="png")


def of_benchmark(name: str, rows: Sequence[Row], path: Path, rank: int = 10) -> None:
    """Recall against bytes and against speed of `faiss-dpq bench`, and against the speed of inverted lists.

    Bytes are told by the size of the markers, so that no labels lie on each other. Where all have the same bytes, there
    is no panel of recall against bytes.
    """
    place = {1: 0, 10: 1, 100: 2}[rank]
    flat = [row for row in rows if not row.nprobe]
    lists = [row for row in rows if row.nprobe]
    sizes, sizes_of_lists = (sorted({row.size for row in part}) for part in (flat, lists))
    figure, panels = new_figure((len(sizes) > 1) + bool(flat) + bool(lists))
    if len(sizes) > 1:
        by_bytes = panels[0]
        for method, of_method in _by_method(flat):
            by_bytes.plot(
                [row.size for row in of_method],
                [row.recalls[place] for row in of_method],
                label=method,
                color=color(method),
                marker=_marker(method),
                markersize=4,
            )
        by_bytes.set(xscale="log", xlabel="bytes a vector", ylabel=f"recall@{rank}", title="exhaustive search")
        by_bytes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        by_bytes.minorticks_off()
    if flat:
        by_speed = panels[len(sizes) > 1]
        for method, of_method in _by_method(flat):
            _draw(by_speed, method, of_method, place, sizes, "-")
        finish_speed(by_speed, "exhaustive search", rank, sizes)
    for method, of_method in _by_method(lists):
        for size in sorted({row.size for row in of_method}):
            _draw(panels[-1], method, [row for row in of_method if row.size == size], place, sizes_of_lists, "--")
    if lists:
        probes = ", ".join(str(nprobe) for nprobe in sorted({row.nprobe for row in lists}))
        finish_speed(panels[-1], f"inverted lists, nprobe {probes}", rank, sizes_of_lists)
    save(figure, path, f"{name}: how often the true nearest neighbour\nis among the first {rank} results")


def _by_method(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    methods = dict.fromkeys(row.method for row in rows)
    return [(method, [row for row in rows if row.method == method]) for method in methods]


def _draw(axes: Axes, method: str, rows: list[Row], place: int, sizes: list[int], linestyle: str) -> None:
    style = {"marker": _marker(method), "linestyle": linestyle, "label": method}
    speeds, heights = [row.qps for row in rows], [row.recalls[place] for row in rows]
    draw_by_size(axes, method, speeds, heights, [row.size for row in rows], sizes, style)


def draw_by_size(
    axes: Axes,
    method: str,
    x: Sequence[float],
    y: Sequence[float],
    lengths: Sequence[int],
    sizes: list[int],
    style: dict[str, Any],
) -> None:
    """A line through points whose size tells the bytes of each, `lengths`, among all `sizes`."""
    of_points = {"marker": style["marker"], "fillstyle": style.get("fillstyle", "full")}
    axes.plot([], [], color=color(method), linewidth=1.2, markersize=_MARKER_SIZES[0], **style)  # for the legend
    axes.plot(x, y, color=color(method), linewidth=1.2, linestyle=style.get("linestyle"))
    for speed, height, length in zip(x, y, lengths, strict=True):
        axes.plot(speed, height, color=color(method), markersize=_marker_size(length, sizes), **of_points)


def _marker(method: str) -> str:
    return "D" if "DPQ" in method else "o"


def _marker_size(size: int, sizes: list[int]) -> float:
    least, most = _MARKER_SIZES
    return most if len(sizes) == 1 else least + (most - least) * sizes.index(size) / (len(sizes) - 1)


def finish_speed(axes: Axes, title: str, rank: int, sizes: list[int]) -> None:
    """Name the axes of a panel of `draw_by_size`, and tell what the sizes mean."""
    lengths = f"{' < '.join(map(str, sizes))} bytes by the marker's size" if len(sizes) > 1 else f"{sizes[0]} bytes"
    axes.set(xscale="log", xlabel=f"queries a second; {lengths}", ylabel=f"recall@{rank}", title=title)
    least, most = axes.get_xlim()
    # Within two decades, powers of ten alone would be a label or none.
    steps = (1,) if most > 100 * least else (1, 2, 5)
    axes.xaxis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-3, 10) for step in steps]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
