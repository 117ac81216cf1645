"""``faiss-dpq suggest``: which code for these vectors, measured."""

import argparse
from pathlib import Path

from .. import vectors
from .options import LARGEST_SEED, METRICS, VECTOR_FILES, add_command, at_least


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "suggest",
        _suggest,
        "choose a code for your vectors",
        "Train small indexes of several lengths on a part of the vectors, measure what they find, and print a table "
        "and a string for faiss_dpq.index_factory. Takes a minute or two.",
    )
    parser.add_argument("vectors", type=Path, nargs="+", help=f"vectors like those to be stored: {VECTOR_FILES}")
    parser.add_argument("--bytes", nargs="+", type=int, metavar="N", help="a vector; one, or several to be compared")
    parser.add_argument("--recall", type=float, metavar="R", help="look for the fewest bytes with this recall@k")
    parser.add_argument("-k", type=at_least(1), default=10, help="results a query")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="otherwise some of the vectors are taken out")
    parser.add_argument("--metric", choices=METRICS, help="by default l2; for unit vectors, both are compared")
    parser.add_argument("--n", type=at_least(1), metavar="N", help="vectors to be stored; by default as many as given")
    parser.add_argument("--seed", type=at_least(0, LARGEST_SEED), default=0, metavar="N", help="of the vectors drawn")
    parser.add_argument("--column", metavar="NAME", help="of parquet and .npz files, the column with the vectors")


def _suggest(arguments: argparse.Namespace) -> None:
    from faiss_dpq.lab import suggest, trial

    sources = vectors.open_sources(arguments.vectors, arguments.column)
    n = sum(source.n for source in sources)
    drawn = trial.vectors_needed(sources[0].d)
    x = vectors.sample_sources(arguments.vectors, drawn, arguments.seed, column=arguments.column)
    queries = None if arguments.queries is None else vectors.read(arguments.queries, arguments.column)
    found = suggest.suggest(
        x,
        arguments.bytes,
        arguments.recall,
        arguments.k,
        queries,
        metric=None if arguments.metric is None else METRICS[arguments.metric],
        n=arguments.n or n,
        seed=arguments.seed,
        verbose=True,
    )
    print(found)
