"""The ``faiss-dpq`` command: one subcommand a job, each with its arguments and its function."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    _add_train_deep(commands)
    _add_eval(commands)
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


def _add_train_deep(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "train-deep",
        help="train a deep quantizer on labelled images",
        description="Train DPQ, PQN, RPQN or TPQN as a run file says, and write the run's folder: configuration, "
        "checkpoints, history, model. Evaluate it with `faiss-dpq eval`. docs/deep.md describes run files.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run file, .toml or .json")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.NAME=VALUE",
        help="settings in place of the file's, such as train.epochs=20",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue a training that was interrupted")
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="features.pt of a run with the same first phase, which is then not trained again",
    )
    parser.set_defaults(run=_train_deep)


def _train_deep(arguments: argparse.Namespace) -> None:
    with _deep_errors():
        from faiss_dpq.nn import runs

        config = runs.RunConfig.read(arguments.config, arguments.settings)
        runs.train(config, arguments.output, resume=arguments.resume, features=arguments.features)
    print(f"Run: {arguments.output}")


def _add_eval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "eval",
        help="measure trained deep quantizers and draw their results",
        description="Measure mAP at every code length, precision-recall and precision@R of runs that train-deep has "
        "written. Of one run, metrics and plots go into its folder, with a t-SNE plot of its prefixes; of several, "
        "the table and plots that compare them go into --output. Runs that differ in their seed alone are averaged.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where plots go; by default into the only run")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--title", default="mAP by code length", help="above the table")
    parser.set_defaults(run=_eval)


def _eval(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.runs
    if len(folders) > 1 and arguments.output is None:
        raise CommandError("--output: name the folder for the comparison of several runs")
    with _deep_errors():
        from faiss_dpq.nn import report, runs

        for folder in folders:
            if arguments.again or not (folder / "metrics.json").exists():
                runs.evaluate(folder)
        output = arguments.output or folders[0]
        results = report.collect(folders)
        paths = report.write(results, output, arguments.title)
        if len(folders) == 1:
            paths.append(report.write_prefixes(folders[0], output))
    print(report.format_table(results))
    print()
    print("\n".join(map(str, paths)))


@contextmanager
def _deep_errors() -> Iterator[None]:
    """What a user can mend, in the one line that is shown."""
    try:
        yield
    except ModuleNotFoundError as error:
        # Errors of this package name the extra; those of Python itself do not.
        advice = "" if "pip install" in str(error) else ": pip install 'faiss-dpq[deep]'"
        raise CommandError(f"{error}{advice}") from error
    except (ImportError, ValueError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small, the least is {least}")
        return int(text)

    return number
