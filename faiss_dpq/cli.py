"""The ``faiss-dpq`` command: one subcommand a job, each with its arguments and its function."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss


class CommandError(Exception):
    """A failure that the user can mend; its text is all that is shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except CommandError as error:
        print(f"faiss-dpq {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faiss-dpq", description="Deep Progressive Quantization for FAISS.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="compare IndexDPQ with FAISS's own quantizers on real vectors",
        description="Train, fill and search OPQ, FAISS's residual quantizer and IndexDPQ at 4 and "
        "8 bytes a vector, and every prefix of one IndexDPQ, on GloVe word vectors. Prints a table "
        "and draws a plot. Takes under three minutes on two cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, least, size, what in (
        ("--train", 256, 30_000, "vectors to train on"),  # at least one a codeword
        ("--base", 1, 200_000, "vectors in the database"),
        ("--queries", 1, 5_000, "queries"),
    ):
        parser.add_argument(option, type=_at_least(least), default=size, metavar="N", help=what)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the split")
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        default=faiss.omp_get_max_threads(),
        metavar="N",
        help="threads of FAISS and of IndexDPQ",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("faiss-dpq-demo.png"),
        metavar="FILE",
        help="the plot, a PNG file",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    # Said before the minutes of work, not after them.
    if not arguments.output.absolute().parent.is_dir():
        raise CommandError(f"--output: there is no directory {arguments.output.parent}")
    if arguments.output.is_dir():
        raise CommandError(f"--output: {arguments.output} is a directory")
    try:
        from faiss_dpq import datasets, demo

        vectors = datasets.load_glove(arguments.train, arguments.base, arguments.queries, arguments.seed)
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'faiss-dpq[bench]'") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    faiss.omp_set_num_threads(arguments.threads)
    runs = demo.compare(vectors)
    print(demo.format_table(runs, arguments.markdown))
    print()
    print(demo.describe(vectors, runs))
    demo.plot(runs, arguments.output)
    print(f"Plot: {arguments.output}")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small, the least is {least}")
        return int(text)

    return number
