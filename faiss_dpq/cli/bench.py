"""``faiss-dpq bench``: recall, error, cost and speed beside FAISS's quantizers, on known data or one's own."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from .options import LARGEST_SEED, VECTOR_FILES, CommandError, add_command, at_least, check_output_folder

_AGAINST = ("PQ", "OPQ", "RQ")  # one's own vectors, by default


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "bench",
        _bench,
        "measure recall, error, cost and speed at equal bytes beside FAISS's quantizers",
        "Train, fill and search IndexDPQ and FAISS's quantizers on vectors of your own, or on GloVe, Fashion-MNIST's "
        "pixels and sentence embeddings of WordNet. Rows that the folder has already are not measured again; "
        "everything on all three takes hours. Writes rows.jsonl, rows.json, report.md and a plot for every data set.",
        extra="bench",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["glove", "fashion-mnist", "wordnet"],
        metavar="NAME|FILE",
        help=f"names of data sets, or one file of vectors: {VECTOR_FILES}",
    )
    parser.add_argument(
        "--queries", type=Path, metavar="FILE", help="to a file of vectors; otherwise 1,000 of these are taken out"
    )
    parser.add_argument(
        "--groundtruth",
        type=Path,
        metavar="FILE",
        help="numbers of each query's nearest vectors (.ivecs, .npy, ...); otherwise FAISS's flat index finds them",
    )
    parser.add_argument("--max-train", type=at_least(256), default=100_000, metavar="N", help="of a file of vectors")
    parser.add_argument(
        "--seed", type=at_least(0, LARGEST_SEED), default=0, metavar="N", help="of what is drawn from a file"
    )
    parser.add_argument("--column", metavar="NAME", help="of parquet and .npz files, the column with the vectors")
    parser.add_argument("--bytes", nargs="+", type=at_least(2), default=[2, 4, 8, 16], metavar="N", help="a vector")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all by default; --list shows them")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="NAME",
        help=f"beside IndexDPQ, these alone: OPQ, RQ, LSQ, ...; for a file of vectors {' '.join(_AGAINST)} by default",
    )
    parser.add_argument(
        "--prefixes", nargs="*", type=at_least(2), default=[], metavar="M", help="prefixes of an IndexDPQ of M levels"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of all threads together")
    parser.add_argument("--output", type=Path, default=Path("faiss-dpq-bench"), metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="show the names of methods and data sets, and stop")


def _bench(arguments: argparse.Namespace) -> None:
    from faiss_dpq.lab import benchmark, own_vectors

    if arguments.list:
        print("methods:", ", ".join(benchmark.METHODS))
        print("data:", ", ".join(benchmark.DATA))
        return
    own = [name for name in arguments.data if _is_file(name, benchmark.DATA)]
    methods = _methods(arguments, bool(own))
    check_output_folder(arguments.output)
    data: list[str | own_vectors.OwnVectors] = list(arguments.data)
    if own:
        if len(arguments.data) > 1:
            raise CommandError("--data: one file of vectors at a time, and no data set beside it")
        of_file = own_vectors.read(
            Path(own[0]),
            arguments.queries,
            arguments.groundtruth,
            max_train=arguments.max_train,
            seed=arguments.seed,
            column=arguments.column,
        )
        of_file.check_folder(arguments.output)
        data = [of_file]
    elif arguments.queries or arguments.groundtruth:
        raise CommandError("--queries and --groundtruth go with a file of vectors in --data")
    print(benchmark.markdown([], benchmark.HEAD), flush=True)
    rows = benchmark.run(arguments.output, data, arguments.bytes, methods, arguments.prefixes, arguments.clock)
    for row in rows:
        print("| " + " | ".join(benchmark.cells(row)) + " |", flush=True)
    measured = {(row.method, row.size) for row in benchmark.read_rows(arguments.output)}
    for method in methods:
        if missing := [str(size) for size in arguments.bytes if (method, size) not in measured]:
            print(f"faiss-dpq bench: {method} has no codes of {', '.join(missing)} bytes for these", file=sys.stderr)
    report = benchmark.report(arguments.output)
    if not arguments.quiet:
        print(f"Report: {report}")


def _is_file(name: str, known: Mapping[str, object]) -> bool:
    if name in known:
        return False
    if not Path(name).suffix and not Path(name).exists():
        raise CommandError(f"--data: there is no {name!r}, expected a file of vectors, or some of {', '.join(known)}")
    return True


def _methods(arguments: argparse.Namespace, own: bool) -> list[str]:
    from faiss_dpq.lab.methods import METHODS, SHORT_NAMES

    against = arguments.against or (_AGAINST if own and arguments.methods is None else None)
    if against is None:
        option, asked = "--methods", list(METHODS) if arguments.methods is None else arguments.methods
    else:
        option, asked = "--against", ["IndexDPQ", *(arguments.methods or []), *against]
    names = [SHORT_NAMES.get(name, name) for name in asked]
    for name in names:
        if name not in METHODS:
            known = ", ".join([*METHODS, *SHORT_NAMES])
            raise CommandError(f"{option}: there is no {name!r}, expected some of {known}")
    return list(dict.fromkeys(names))
