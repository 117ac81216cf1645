"""``faiss-dpq train``: a trained, empty index from files of vectors."""

import argparse
import sys
from pathlib import Path

import faiss

import faiss_dpq

from .. import vectors
from .indexes import described, stack
from .options import LARGEST_SEED, METRICS, VECTOR_FILES, CommandError, add_command, add_output, at_least, check_output

_SEEDS = ("rq.cp", "cp", "pq.cp")  # where indexes have the seed of their training


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "train",
        _train,
        "train an index on a file of vectors",
        f"Learn codebooks from the vectors of files ({VECTOR_FILES}) and folders, and write the trained, empty index, "
        "which `build` fills.",
    )
    parser.add_argument("vectors", type=Path, nargs="+", help="training vectors")
    parser.add_argument(
        *("--max-train", "--sample"),
        type=at_least(1),
        metavar="N",
        help="train on so many at most, drawn evenly: not all need be in memory",
    )
    parser.add_argument("--index", default="DPQ8x8", metavar="STRING", help="what faiss_dpq.index_factory takes")
    parser.add_argument("--metric", choices=METRICS, default="l2")
    parser.add_argument("--effort", choices=("fast", "default", "best"), default="default", help="of DPQ's training")
    parser.add_argument(
        "--seed", type=at_least(0, LARGEST_SEED), metavar="N", help="of the vectors drawn, and of the training"
    )
    parser.add_argument("--column", metavar="NAME", help="of parquet and .npz files, the column with the vectors")
    add_output(parser, "the index")


def _train(arguments: argparse.Namespace) -> None:
    check_output(arguments.output)
    sources = vectors.open_sources(arguments.vectors, arguments.column)
    check_output(arguments.output, [source.name for source in sources])
    index = faiss_dpq.index_factory(sources[0].d, arguments.index, METRICS[arguments.metric])
    chosen = {"effort": arguments.effort} if any(hasattr(part, "train_stats") for part in stack(index)) else {}
    if arguments.effort != "default" and not chosen:
        raise CommandError(f"--effort: {arguments.index} is trained by FAISS, which does not take it")
    if arguments.seed is not None:
        _set_seed(index, arguments.seed)
    n = arguments.max_train or sys.maxsize
    x = vectors.sample_sources(arguments.vectors, n, arguments.seed or 0, column=arguments.column)
    index.train(x, **chosen)
    faiss_dpq.write_index(index, str(arguments.output))
    if not arguments.quiet:
        print(f"{arguments.output}: {described(index)}")


def _set_seed(index: faiss.Index, seed: int) -> None:
    for part in stack(index):
        for path in _SEEDS:
            owner = part
            for name in path.split("."):
                owner = getattr(owner, name, None)
            if owner is not None:
                owner.seed = seed
