"""``faiss-dpq search``: the nearest neighbours of the vectors of a file."""

import argparse
import time
from pathlib import Path

import numpy as np

from .. import vectors
from ..index import writing
from ..training import progress
from .indexes import check_fit, read_index, set_parameters
from .options import VECTOR_FILES, CommandError, add_command, add_output, at_least, check_output

_BLOCK = 1 << 13  # queries searched at a time, after which progress is shown


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "search",
        _search,
        "search an index for the vectors of a file",
        "Write distances and ids of the nearest codes of every query to an .npz file, arrays D and I.",
    )
    parser.add_argument("index", type=Path, help="a filled index, or a folder of shards")
    parser.add_argument("queries", type=Path, help=f"query vectors: {VECTOR_FILES}")
    parser.add_argument("-k", type=at_least(1), default=10, help="results a query")
    parser.add_argument(
        "--set", default="", metavar="NAME=VALUE,...", help="parameters of the search: levels, nprobe, k_factor, ..."
    )
    parser.add_argument("--column", metavar="NAME", help="of parquet and .npz files, the column with the vectors")
    add_output(parser, "the .npz file")


def _search(arguments: argparse.Namespace) -> None:
    check_output(arguments.output)
    index, (source, *others) = read_index(arguments.index), vectors.open_sources(arguments.queries, arguments.column)
    if others:
        raise CommandError(f"{arguments.queries}: {1 + len(others)} files, expected one of queries")
    check_fit(index, arguments.index, [source])
    check_output(arguments.output, [source.name, arguments.index])
    if arguments.k > index.ntotal:
        raise CommandError(f"-k is {arguments.k:,}, the index holds {index.ntotal:,} vectors")
    set_parameters(index, arguments.set)
    source.check(lambda n: None)
    D = np.empty((source.n, arguments.k), np.float32)
    I = np.empty((source.n, arguments.k), np.int64)
    at, seconds = 0, 0.0
    with progress.bar(total=source.n, desc="searching", unit=" queries", unit_scale=True) as bar:
        for x in source.blocks(0, source.n):
            for first in range(0, len(x), _BLOCK):
                queries = x[first : first + _BLOCK]
                started = time.perf_counter()
                D[at : at + len(queries)], I[at : at + len(queries)] = index.search(queries, arguments.k)
                seconds += time.perf_counter() - started
                at += len(queries)
                bar.update(len(queries))
    writing.write(str(arguments.output), lambda file: np.savez(file, D=D, I=I))
    if not arguments.quiet:
        print(f"{arguments.output}: {source.n:,} queries, {source.n / max(seconds, 1e-9):,.0f} a second")
