"""``faiss-dpq build``: vectors into a trained index, or into a folder of shards."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq

from .. import vectors
from ..training import progress
from .indexes import check_fit, described, read_index, set_parameters
from .options import VECTOR_FILES, CommandError, add_command, add_output, at_least, check_output, check_output_folder


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "build",
        _build,
        "add vectors to a trained index, or build shards of them",
        f"Encode the vectors of files ({VECTOR_FILES}) and folders into a trained index. All are read once before, and "
        "rows that hold NaN or infinity are named. With --shards, the output is a folder of shards, where the same "
        "command goes on after a stop.",
    )
    parser.add_argument("index", type=Path, help="a trained index")
    parser.add_argument("vectors", type=Path, nargs="+", help="vectors to be added")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="an .npy file with the ids of all vectors")
    parser.add_argument(
        "--set", default="", metavar="NAME=VALUE,...", help="parameters of the encoder: beam_size, prefix_weight, ..."
    )
    parser.add_argument("--shards", type=at_least(1), metavar="N", help="number of shards; the output is a folder then")
    parser.add_argument("--ray", metavar="ADDRESS", help="build the shards on a Ray cluster: local, auto or host:port")
    parser.add_argument("--rows-per-part", type=at_least(1), default=500_000, metavar="R", help="of a task")
    parser.add_argument("--column", metavar="NAME", help="of parquet and .npz files, the column with the vectors")
    add_output(parser, "the filled index; it may be the index itself")


def _build(arguments: argparse.Namespace) -> None:
    if arguments.shards:
        _build_shards(arguments)
        return
    if arguments.ray is not None or arguments.output.is_dir():
        what = "--ray builds" if arguments.ray is not None else f"{arguments.output} is a directory, as for"
        raise CommandError(f"--shards: how many? {what} a folder of shards")
    check_output(arguments.output)
    index, sources = read_index(arguments.index), vectors.open_sources(arguments.vectors, arguments.column)
    n = check_fit(index, arguments.index, sources)
    check_output(arguments.output, [source.name for source in sources])
    set_parameters(index, arguments.set)
    ids = _ids(index, arguments.ids, n)
    _check_rows(sources, n)
    at = 0
    with progress.bar(total=n, desc="encoding", unit=" vectors", unit_scale=True) as bar:
        for source in sources:
            for x in source.blocks(0, source.n):
                if ids is None:
                    index.add(x)
                else:
                    index.add_with_ids(x, np.ascontiguousarray(ids[at : at + len(x)], np.int64))
                at += len(x)
                bar.update(len(x))
    faiss_dpq.write_index(index, str(arguments.output))
    if not arguments.quiet:
        print(f"{arguments.output}: {described(index)}")


def _check_rows(sources: Sequence[vectors.Source], n: int) -> None:
    """Read all n vectors, and name the rows that are not finite."""
    with progress.bar(total=n, desc="checking", unit=" vectors", unit_scale=True, leave=False) as bar:
        for source in sources:
            source.check(bar.update)


def _ids(index: faiss.Index, path: Path | None, n: int) -> vectors.Ids | None:
    """The ids of n new vectors; None if the index numbers them itself."""
    keeper = index
    while isinstance(keeper, faiss.IndexPreTransform):
        keeper = faiss_dpq.downcast_index(keeper.index)
    if isinstance(keeper, faiss.IndexIDMap):
        if path is None:
            held = faiss.vector_to_array(keeper.id_map)
            return np.arange(n) + (held.max() + 1 if len(held) else 0)
    elif path is not None and not isinstance(keeper, faiss.IndexIVF):
        raise CommandError(f"--ids: {type(keeper).__name__} keeps no ids; train it with --index 'IDMap2,...'")
    return vectors.checked_ids(path, n, f"--ids: those in {path}")


def _build_shards(arguments: argparse.Namespace) -> None:
    from faiss_dpq.shards import commands

    check_output_folder(arguments.output)
    trained = read_index(arguments.index)
    sources = vectors.open_sources(arguments.vectors, arguments.column)
    n = check_fit(trained, arguments.index, sources)
    set_parameters(trained, arguments.set)
    if not arguments.output.exists() or not any(arguments.output.iterdir()):  # what is there was checked when it began
        _check_rows(sources, n)
    names = ("vectors", "output", "shards", "rows_per_part", "column", "ray", "ids")
    described_manifest = commands.build(trained, *(getattr(arguments, name) for name in names))
    if not arguments.quiet:
        print(described_manifest)
