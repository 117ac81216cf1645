"""``faiss-dpq demo``: IndexDPQ beside FAISS's own quantizers, on real vectors."""

import argparse
from pathlib import Path

from .options import LARGEST_SEED, add_command, at_least, check_output


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        "compare IndexDPQ with FAISS's own quantizers on real vectors",
        "Train, fill and search OPQ, FAISS's residual quantizer and IndexDPQ at 4 and 8 bytes a vector, and every "
        "prefix of one IndexDPQ, on GloVe word vectors. Prints a table and draws a plot. Takes under three minutes on "
        "two cores.",
        extra="bench",
    )
    for option, least, size, what in (
        ("--train", 256, 30_000, "vectors to train on"),  # at least one a codeword
        ("--base", 1, 200_000, "vectors in the database"),
        ("--queries", 1, 5_000, "queries"),
    ):
        parser.add_argument(option, type=at_least(least), default=size, metavar="N", help=what)
    parser.add_argument("--seed", type=at_least(0, LARGEST_SEED), default=1, metavar="N", help="seed of the split")
    parser.add_argument(
        "--output", type=Path, default=Path("faiss-dpq-demo.png"), metavar="FILE", help="the plot, a PNG file"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def _demo(arguments: argparse.Namespace) -> None:
    check_output(arguments.output)
    from faiss_dpq.lab import datasets, demo

    vectors = datasets.load_glove(arguments.train, arguments.base, arguments.queries, arguments.seed)
    runs = demo.compare(vectors)
    print(demo.format_table(runs, arguments.markdown))
    print()
    print(demo.describe(vectors, runs))
    demo.plot(runs, arguments.output)
    if not arguments.quiet:
        print(f"Plot: {arguments.output}")
