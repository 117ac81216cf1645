"""``faiss-dpq train-deep`` and ``eval``: networks trained with their codebooks on labelled images."""

import argparse
from pathlib import Path

from .options import CommandError, add_command, check_output_folder


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the commands."""
    parser = add_command(
        commands,
        "train-deep",
        _train_deep,
        "train a deep quantizer on labelled images",
        "Train DPQ, PQN, RPQN or TPQN as a run file says, and write the run's folder: configuration, checkpoints, "
        "history, model. Evaluate it with `faiss-dpq eval`. docs/deep.md describes run files.",
        extra="deep",
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

    parser = add_command(
        commands,
        "eval",
        _eval,
        "measure trained deep quantizers and draw their results",
        "Measure mAP at every code length, precision-recall and precision@R of runs that train-deep has written. Of "
        "one run, metrics and plots go into its folder, with a t-SNE plot of its prefixes; of several, the table and "
        "plots that compare them go into --output. Runs that differ in their seed alone are averaged.",
        extra="deep",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where plots go; by default into the only run")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--title", default="mAP by code length", help="above the table")


def _train_deep(arguments: argparse.Namespace) -> None:
    check_output_folder(arguments.output)
    from faiss_dpq.nn import runs

    config = runs.RunConfig.read(arguments.config, arguments.settings)
    runs.train(config, arguments.output, resume=arguments.resume, features=arguments.features)
    if not arguments.quiet:
        print(f"Run: {arguments.output}")


def _eval(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.runs
    if len(folders) > 1 and arguments.output is None:
        raise CommandError("--output: name the folder for the comparison of several runs")
    output = arguments.output or folders[0]
    check_output_folder(output)
    from faiss_dpq.nn import report, runs

    for folder in folders:
        if arguments.again or not (folder / "metrics.json").exists():
            runs.evaluate(folder)
    results = report.collect(folders)
    paths = report.write(results, output, arguments.title)
    if len(folders) == 1:
        paths.append(report.write_prefixes(folders[0], output))
    print(report.format_table(results))
    if not arguments.quiet:
        print()
        print("\n".join(map(str, paths)))
