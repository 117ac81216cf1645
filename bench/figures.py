"""The figures of README and docs: commands, what they printed, and the tables that pages take from it.

    python -m bench.figures run                    # run all commands of speeds, which takes 20 minutes; fill the pages
    python -m bench.figures run accuracy deep      # run some commands
    python -m bench.figures fill                   # only fill the pages

What a command printed is kept in docs/runs/NAME.txt, below lines that tell the command, the day, the machine and the
versions. A page takes the tables of it, without headings and empty columns, by a line

    <!-- figures: NAME -->

and a line `<!-- end of figures -->`; what stands between the two is replaced. `NAME without threads, train s` leaves
columns out, `NAME table 2` takes one table only. So a page cannot say anything else than the command. What pages say
outside of such places is compared by `python -m bench.check_numbers`.
"""

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq

from . import timing

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / "docs" / "runs"

_CPU_CLOCK = "--clock cpu --rounds 5 --budget 0.15"
_CACHE = "--cache {cache}"  # indexes that several commands search
# One thread of numpy's BLAS, too: those that wait spin, which counts as CPU time.
_ALONE = "OPENBLAS_NUM_THREADS=1 python"
_ACCURACY = "faiss-dpq bench --output docs/accuracy --clock cpu --threads 1"


@dataclass(frozen=True)
class Figure:
    """Commands whose output is kept under one name.

    Attributes
    ----------
    commands : tuple of str
        As a user types them in the folder of the project. `{folder}` is a temporary folder, and `{cache}` one that all
        figures of a run share.
    measures_speed : bool
        Whether a quiet machine is needed. If not, results do not depend on the machine, up to noise.
    result : str
        File that holds the result, where that is not what the commands print.
    kept : str
        File of results that the commands do not measure again; what is to be measured again is taken out of it before.
        The output keeps its day while that file stays the same.
    """

    commands: tuple[str, ...]
    measures_speed: bool = True
    result: str = ""
    kept: str = ""


FIGURES = {
    "demo": Figure(("faiss-dpq demo --output {folder}/demo.png",)),
    "search": Figure((f"python -m bench.search --M 4 8 16 --k 10 100 {_CPU_CLOCK} {_CACHE}",)),
    "search-levels": Figure((f"python -m bench.search --M 8 --levels 2 4 --nq 1 256 --peers {_CPU_CLOCK} {_CACHE}",)),
    "search-avx2": Figure((f"python -m bench.search --simd avx2 --peers pq {_CPU_CLOCK} {_CACHE}",)),
    "search-generic": Figure((f"python -m bench.search --simd generic --peers pq {_CPU_CLOCK} {_CACHE}",)),
    "search-one": Figure(
        tuple(
            f"python -m bench.search --simd {simd} --dataset glove clustered --M 4 8 16 --nq 1 --k 10 100 "
            f"--peers fastscan {_CPU_CLOCK} {_CACHE}"
            for simd in ("avx2", "avx512")
        )
    ),
    "search-threads": Figure((f"python -m bench.search --M 4 8 --peers --threads 1 2 {_CACHE}",)),
    "search-10000": Figure((f"python -m bench.search --n 10000 --peers pq {_CPU_CLOCK}",)),
    "search-100000": Figure((f"python -m bench.search --n 100000 --peers pq {_CPU_CLOCK}",)),
    "search-glove": Figure((f"python -m bench.search --dataset glove --M 4 8 {_CPU_CLOCK}",)),
    "search-fashion-mnist": Figure((f"python -m bench.search --dataset fashion-mnist --M 4 --k 10 100 {_CPU_CLOCK}",)),
    "ivf": Figure((f"python -m bench.ivf --effort fast --k 10 100 {_CPU_CLOCK}",)),
    "ivf-glove": Figure((f"python -m bench.ivf --effort fast --dataset glove --nlist 512 {_CPU_CLOCK}",)),
    "instructions": Figure(("bench/aarch64.sh count",), measures_speed=False),
    "encode": Figure(("python -m bench.encode --clock cpu --beams 1 5 16 32 64",)),
    "filters": Figure((f"python -m bench.filters --rounds 5 --calls 60 --clock cpu {_CACHE}",)),
    "selectors": Figure(
        (f"python -m bench.filters --selectors --nq 1 --shares 0.01 0.1 --rounds 5 --calls 60 --clock cpu {_CACHE}",)
    ),
    "deletion": Figure(("python -m bench.deletion --clock cpu",)),
    "large": Figure((f"{_ALONE} -m bench.large --M 48 --beam-size 24 --rounds 3",)),
    "large-384": Figure((f"{_ALONE} -m bench.large_tables wordnet --train 35000",)),
    "large-768": Figure((f"{_ALONE} -m bench.large_tables wordnet-pairs --M 32 64 96",)),
    "large-784": Figure((f"{_ALONE} -m bench.large_tables fashion-mnist --M 16 32 64",)),
    "shards": Figure(("python -m bench.shards --n 1000000 --rows-per-part 100000",)),
    "accuracy": Figure(
        (
            f"{_ACCURACY} --bytes 4 8 16 --data glove --methods IndexDPQ OPQ 'RQ beam 5' --prefixes 8",
            f"{_ACCURACY} --bytes 8 --data glove --methods PRQ",
            f"{_ACCURACY} --bytes 8 --data wordnet --methods IndexDPQ PQ OPQ 'RQ beam 5'",
            f"{_ACCURACY} --bytes 4 --data fashion-mnist --methods IndexDPQ PQ OPQ 'RQ beam 5'",
        ),
        measures_speed=False,
        result="docs/accuracy/report.md",
        kept="docs/accuracy/rows.jsonl",
    ),
    "deep": Figure(
        (
            "python -m bench.deep --output deep-runs --seeds 0 --methods "
            "DPQ Two-Step No-Soft E+LS E+LC E PQN4x8 RPQN1x4x8 unsupervised",
        ),
        measures_speed=False,
        result="deep-runs/table.md",
    ),
}

# ---- running -------------------------------------------------------------------------------------------------------


def run(name: str, cache: str) -> None:
    """Run the commands of a figure, and write docs/runs/NAME.txt; `cache` is a folder for built indexes."""
    figure = FIGURES[name]
    kept = ROOT / figure.kept if figure.kept else None
    before = kept.read_bytes() if kept and kept.exists() else None
    started, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        printed = "".join(_output_of(command.format(folder=folder, cache=cache)) for command in figure.commands)
        if figure.result:
            printed = (ROOT / figure.result).read_text()
        printed = printed.replace(folder, "FOLDER")
    seconds = time.monotonic() - started
    path = OUTPUTS / f"{name}.txt"
    if kept and before == kept.read_bytes() and path.exists():
        where = [
            line for line in path.read_text().partition("\n\n")[0].splitlines() if not line.startswith("command: ")
        ]
    else:
        where = _where(load) + ([] if kept else [f"took: {seconds / 60:.1f} min"])
    head = "\n".join([f"command: {command}" for command in as_typed(figure)] + where)
    path.write_text(f"{head}\n\n{printed.strip()}\n")
    print(f"{path.relative_to(ROOT)}: {seconds:.0f} s", flush=True)


def as_typed(figure: Figure) -> list[str]:
    """The commands of a figure as outputs and pages name them."""
    return [command.format(folder="FOLDER", cache="FOLDER") for command in figure.commands]


def _output_of(command: str) -> str:
    words = shlex.split(command)
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(settings) :]
    programs = {"python": [sys.executable], "faiss-dpq": [sys.executable, "-c", _COMMAND_LINE]}
    done = subprocess.run(
        [*programs.get(words[0], words[:1]), *words[1:]],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


# `faiss-dpq`, of the package that is imported here, and not of one that is installed.
_COMMAND_LINE = "import sys; from faiss_dpq import cli; sys.exit(cli.main())"


def _where(load: float) -> list[str]:
    """Lines that tell the day, the machine with what else it did, and the versions."""
    machine = timing.machine()
    versions = {
        "faiss-dpq": faiss_dpq.__version__,
        "FAISS": faiss.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    return [
        f"date: {datetime.date.today()}",
        f"machine: {machine['cores']} cores of {machine['cpu']}, {machine['simd']}, load {load:.0f} before",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


# ---- pages ---------------------------------------------------------------------------------------------------------

PLACE = re.compile(r"(<!-- figures: (?P<what>.+?) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def pages() -> list[Path]:
    """README and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """A page with every place of figures filled from the outputs; the first of an output tells where it comes from."""
    told: set[str] = set()

    def fill_place(place: re.Match[str]) -> str:
        name = place["what"].split()[0]
        tables = fragment(place["what"], tells_source=name not in told)
        told.add(name)
        return f"{place[1]}{tables}\n{place[3]}"

    return PLACE.sub(fill_place, text)


def fragment(what: str, tells_source: bool = True) -> str:
    """What a page shows of an output: its tables with what is printed between them, and where they come from.

    Parameters
    ----------
    what : str
        Name of the output, then optionally `table N` and `without COLUMN, COLUMN`.
    tells_source : bool
        Whether day, machine, versions and commands follow.

    Raises
    ------
    ValueError
        If there is no such output, table or column.
    """
    match = re.fullmatch(r"([\w-]+)(?: table (\d+))?(?: without (.+))?", what)
    if match is None or match[1] not in FIGURES or not (OUTPUTS / f"{match[1]}.txt").exists():
        raise ValueError(f"figures: {what!r} names no output; there are {', '.join(FIGURES)}")
    head, _, printed = (OUTPUTS / f"{match[1]}.txt").read_text().partition("\n\n")
    left_out = match[3].split(", ") if match[3] else []
    blocks = _blocks(printed)
    tables = [block for block in blocks if block.startswith("|")]
    if match[2]:
        if int(match[2]) > len(tables):
            raise ValueError(f"figures: {what!r}: the output has {len(tables)} tables")
        blocks = [tables[int(match[2]) - 1]]
    if tables:
        blocks = [
            _with_columns(block, left_out, what) if block.startswith("|") else block.replace("\n", "\n\n")
            for block in blocks
        ]
    else:
        blocks = ["\n".join(["```text", "\n\n".join(blocks), "```"])]
    return "\n" + "\n\n".join([*blocks, *([_source(head)] if tells_source else [])]) + "\n"


_NUMBERS = re.compile(r"[\d.,e+()±– -]*")  # what cells of numbers consist of


def _blocks(printed: str) -> list[str]:
    """Paragraphs and tables, without headings, pictures and where a plot was put."""
    kept = [line.rstrip() for line in printed.splitlines() if not line.startswith(("#", "![", "Plot: "))]
    blocks: list[list[str]] = [[]]
    for line in kept:
        if not line or (blocks[-1] and line.startswith("|") != blocks[-1][-1].startswith("|")):
            blocks.append([])
        if line:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if block]


def _with_columns(table: str, left_out: Iterable[str], what: str) -> str:
    """A table without some columns, and without those whose cells are all empty."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    missing = [name for name in left_out if name not in rows[0]]
    if missing:
        raise ValueError(f"figures: {what!r}: there is no column {missing[0]!r}, there are {', '.join(rows[0])}")
    keep = [i for i, name in enumerate(rows[0]) if name not in left_out and any(row[i] for row in rows[2:])]
    cells = [[row[i] for i in keep] for row in rows]
    # Columns of numbers stand at the right.
    cells[1] = ["--:" if all(_NUMBERS.fullmatch(row[i]) for row in cells[2:]) else "---" for i in range(len(keep))]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _source(head: str) -> str:
    said = [line.split(": ", 1) for line in head.splitlines()]
    commands = "\n".join(value for key, value in said if key == "command")
    of = dict(said)
    took = f", in {of['took']}" if "took" in of else ""
    where = f"Printed on {of['date']}, on {of['machine']}, with {of['versions']}{took}, by"
    return f"{where}\n\n```sh\n{commands}\n```"


def fill() -> None:
    """Fill all pages."""
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: filled")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "fill"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; all speeds by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    speeds = [name for name, figure in FIGURES.items() if figure.measures_speed]
    with tempfile.TemporaryDirectory() as cache:
        for name in (arguments.names or speeds) if arguments.action == "run" else ():
            run(name, cache)
    fill()


if __name__ == "__main__":
    main()
