"""The ``faiss-dpq`` command: one subcommand a job, each with its arguments and its function."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
    _add_train(commands)
    _add_build(commands)
    _add_search(commands)
    _add_info(commands)
    _add_bench(commands)
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
        from faiss_dpq.lab import datasets, demo

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


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "train",
        help="train an index on a file of vectors",
        description="Learn codebooks from the vectors of files (.npy, .fvecs, .bvecs, .parquet) and folders, and write "
        "the trained, empty index, which `build` fills.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("vectors", type=Path, nargs="+", help="training vectors")
    parser.add_argument(
        "--sample", type=_at_least(1), metavar="N", help="train on so many, drawn evenly: not all need be in memory"
    )
    parser.add_argument("--index", default="DPQ8x8", metavar="STRING", help="what faiss_dpq.index_factory takes")
    parser.add_argument("--metric", choices=_METRICS, default="l2")
    parser.add_argument("--effort", choices=("fast", "default", "best"), default="default", help="of an IndexDPQ")
    _add_output(parser, "the index")
    parser.set_defaults(run=_train)


_METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}


def _train(arguments: argparse.Namespace) -> None:
    import faiss_dpq
    from faiss_dpq import shards

    with _reported():
        x = shards.sample_sources(arguments.vectors, arguments.sample or sys.maxsize)
        index = faiss_dpq.index_factory(x.shape[1], arguments.index, _METRICS[arguments.metric])
        chosen = {"effort": arguments.effort} if hasattr(index, "train_stats") else {}
        if arguments.effort != "default" and not chosen:
            raise CommandError(f"--effort: {arguments.index} is trained by FAISS's wrappers, which do not take it")
        index.train(x, **chosen)
        faiss_dpq.write_index(index, str(arguments.output))
    print(f"{arguments.output}: {_described(index)}")


def _add_build(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "build",
        help="add vectors to a trained index, or build shards of them",
        description="Encode the vectors of a file (.npy, .fvecs or .bvecs) into a trained index; with --shards, those "
        "of files and folders (parquet, too) into a folder of shards, where the same command goes on after a stop.",
    )
    parser.add_argument("index", type=Path, help="a trained index")
    parser.add_argument("vectors", type=Path, nargs="+", help="vectors to be added")
    parser.add_argument(
        "--shards", type=_at_least(1), metavar="N", help="number of shards; the output is a folder then"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="build the shards on a Ray cluster: local, auto or host:port")
    parser.add_argument("--rows-per-part", type=_at_least(1), default=500_000, metavar="R", help="of a task; 500,000")
    parser.add_argument("--column", metavar="NAME", help="of parquet files, the column with the vectors")
    _add_output(parser, "the filled index; it may be the index itself")
    parser.set_defaults(run=lambda arguments: (_build_shards if arguments.shards else _build)(arguments))


def _build(arguments: argparse.Namespace) -> None:
    import faiss_dpq

    if arguments.ray is not None or len(arguments.vectors) > 1:
        raise CommandError("--shards: how many? Several files of vectors, and --ray, make a folder of shards")
    index, x = _read_index(arguments.index), _vectors(arguments.vectors[0])
    with _reported():
        for start in range(0, len(x), _BLOCK):
            index.add(_float32(x[start : start + _BLOCK]))
        faiss_dpq.write_index(index, str(arguments.output))
    print(f"{arguments.output}: {_described(index)}")


def _build_shards(arguments: argparse.Namespace) -> None:
    from faiss_dpq.shards import commands

    trained, names = _read_index(arguments.index), ("vectors", "output", "shards", "rows_per_part", "column", "ray")
    with _reported():
        print(commands.build(trained, *(getattr(arguments, name) for name in names)))


def _add_search(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "search",
        help="search an index for the vectors of a file",
        description="Write distances and ids of the nearest codes of every query to an .npz file, arrays D and I.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("index", type=Path, help="a filled index, or a folder of shards")
    parser.add_argument("queries", type=Path, help="query vectors: .npy, .fvecs or .bvecs")
    parser.add_argument("-k", type=_at_least(1), default=10, help="results a query")
    parser.add_argument(
        "--set", default="", metavar="NAME=VALUE,...", help="parameters of the search: levels, nprobe, k_factor, ..."
    )
    _add_output(parser, "the .npz file")
    parser.set_defaults(run=_search)


def _search(arguments: argparse.Namespace) -> None:
    import numpy as np

    import faiss_dpq

    index, xq = _read_index(arguments.index), _vectors(arguments.queries)
    with _reported():
        if arguments.set:
            faiss_dpq.ParameterSpace().set_index_parameters(index, arguments.set)
        queries = _float32(xq)
        started = time.perf_counter()
        D, I = index.search(queries, arguments.k)
        seconds = time.perf_counter() - started
        with arguments.output.open("wb") as file:
            np.savez(file, D=D, I=I)
    print(f"{arguments.output}: {len(xq):,} queries, {len(xq) / seconds:,.0f} a second")


def _add_info(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "Describe an index file, or a folder of shards."
    parser = commands.add_parser("info", help="tell what is in an index file or a folder of shards", description=what)
    parser.add_argument("index", type=Path)
    parser.add_argument("--verify", action="store_true", help="compare all checksums of a folder of shards")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
    if not arguments.index.is_dir() and not arguments.verify:
        print(_described(_read_index(arguments.index)))
        return
    from faiss_dpq.shards import commands

    with _reported():
        print(commands.info(arguments.index, checksums=arguments.verify))


_BLOCK = 1 << 20  # vectors read and added at a time


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=what)


@contextmanager
def _reported() -> Iterator[None]:
    """What FAISS and this package raise on bad input, as the command's failure."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, OSError, ModuleNotFoundError) as error:
        raise CommandError(str(error)) from error


def _read_index(path: Path) -> faiss.Index:
    import faiss_dpq

    with _reported():
        if path.is_dir():
            from faiss_dpq import shards

            return shards.read_shards(path)
        return faiss_dpq.read_index(str(path))


def _vectors(path: Path) -> "npt.NDArray[Any]":
    """The vectors of a file, shape (n, d), mapped into memory."""
    import numpy as np
    from faiss.contrib.vecs_io import bvecs_mmap, fvecs_mmap

    readers = {".npy": lambda name: np.load(name, mmap_mode="r"), ".fvecs": fvecs_mmap, ".bvecs": bvecs_mmap}
    if path.suffix not in readers:
        raise CommandError(f"{path}: expected a file of vectors, {', '.join(readers)}")
    with _reported():
        x = readers[path.suffix](str(path))
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.number):
        raise CommandError(f"{path}: holds {x.dtype} of shape {x.shape}, expected numbers of shape (n, d)")
    return x


def _float32(x: "npt.NDArray[Any]") -> "npt.NDArray[np.float32]":
    import numpy as np

    return np.ascontiguousarray(x, np.float32)


def _described(index: faiss.Index) -> str:
    """A line about an index, and about those inside it."""
    from faiss_dpq import IndexDPQ, downcast_index

    parts = [type(index).__name__, f"d={index.d}"]
    if hasattr(index, "rq"):
        parts.append(f"{index.rq.M}x{index.rq.nbits.at(0)}")
    if isinstance(index, faiss.IndexIVF):
        parts.append(f"nlist={index.nlist}")
    metrics = {value: name for name, value in _METRICS.items()}
    parts.append(f"metric={metrics.get(index.metric_type, index.metric_type)}")
    parts.append(f"{index.ntotal:,} vectors" if index.is_trained else "not trained")
    if isinstance(index, faiss.IndexFlatCodes):
        parts.append(f"{index.code_size} bytes each")
    if isinstance(index, IndexDPQ) and index.is_trained:
        parts.append(f"beam_size={index.beam_size}")
    inner = getattr(index, "index", None) or getattr(index, "base_index", None)
    line = ", ".join(parts)
    return f"{line}\n  of {_described(downcast_index(inner))}" if isinstance(inner, faiss.Index) else line


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "bench",
        help="measure recall, error, cost and speed at equal bytes beside FAISS's quantizers",
        description="Train, fill and search IndexDPQ and FAISS's quantizers on real vectors: GloVe, Fashion-MNIST's "
        "pixels, and sentence embeddings of WordNet. Everything takes hours; rows that the folder has already are not "
        "measured again. Writes rows.jsonl, report.md and a plot for every data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", default=["glove", "fashion-mnist", "wordnet"], metavar="NAME")
    parser.add_argument("--bytes", nargs="+", type=_at_least(2), default=[2, 4, 8, 16], metavar="N", help="a vector")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all by default; --list shows them")
    parser.add_argument(
        "--prefixes", nargs="*", type=_at_least(2), default=[], metavar="M", help="prefixes of an IndexDPQ of M levels"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of all threads together")
    parser.add_argument("--threads", type=_at_least(1), default=faiss.omp_get_max_threads(), metavar="N")
    parser.add_argument("--output", type=Path, default=Path("faiss-dpq-bench"), metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="show the names of methods and data sets, and stop")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> None:
    from faiss_dpq.lab import benchmark

    if arguments.list:
        print("methods:", ", ".join(benchmark.METHODS))
        print("data:", ", ".join(benchmark.DATA))
        return
    methods = list(benchmark.METHODS) if arguments.methods is None else arguments.methods
    for option, names, known in (("--data", arguments.data, benchmark.DATA), ("--methods", methods, benchmark.METHODS)):
        for name in names:
            if name not in known:
                raise CommandError(f"{option}: there is no {name!r}, expected some of {', '.join(known)}")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise CommandError(f"--output: {arguments.output} is not a directory")
    faiss.omp_set_num_threads(arguments.threads)
    print(benchmark.markdown([], benchmark.HEAD))
    try:
        rows = benchmark.run(
            arguments.output, arguments.data, arguments.bytes, methods, arguments.prefixes, arguments.clock
        )
        for row in rows:
            print("| " + " | ".join(benchmark.cells(row)) + " |", flush=True)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error
    print(f"Report: {benchmark.report(arguments.output)}")


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
