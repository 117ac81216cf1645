"""Contenders measured side by side: interleaved rounds in one process, compared by ratios.

On a machine whose speed changes from second to second a time means little, but two times taken next to each other give
a ratio that means something. Every round times each contender once, in rotating order; ratios are taken within a round,
and their median and range over the rounds are what is reported.

Where other processes compete for the cores, CPU time (`--clock cpu`) is what one thread would have taken alone, up to
caches and clock frequency; of several threads it would be the sum, so these need the wall clock.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

import faiss_dpq

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Job(NamedTuple):
    """Something to time: `run()` does `units` units of work (queries, vectors)."""

    run: Callable[[], object]
    units: int


class Spread(NamedTuple):
    """Median and range of a few numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        """Of the given numbers."""
        return cls(float(np.median(numbers)), float(min(numbers)), float(max(numbers)))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}..{_short(self.high)})"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"


def seconds(run: Callable[[], object], clock: str = "wall") -> float:
    """Time of one call."""
    now = CLOCKS[clock]
    started = now()
    run()
    return now() - started


def interleave(jobs: Mapping[str, Job], rounds: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds a unit of every job, one number a round."""
    names = list(jobs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(jobs[name].run, clock) / jobs[name].units)
    return times


def ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """How many times longer the first took than the second, round by round."""
    return Spread.of([a / b for a, b in zip(slower, faster, strict=True)])


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "simd": faiss_dpq.simd_level(),
        "faiss": faiss.__version__,
        "faiss_compile_options": faiss.get_compile_options().strip(),
        "python": platform.python_version(),
        "command": " ".join(["python", "-m", *_module_and_arguments()]),
    }


def _module_and_arguments() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name if spec else Path(sys.argv[0]).name, *sys.argv[1:]]


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, aligned for the terminal."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def write_json(path: Path | None, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results with the machine that they come from, if a path is given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "results": list(results)}, indent=1) + "\n")
