"""What several commands have in common: options, and checks that come before the work."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import faiss

METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}
LARGEST_SEED = 2**31 - 1  # an int of C++
VECTOR_FILES = ".npy, .npz, .fvecs, .bvecs, .ivecs or .parquet"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that tells defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "", []) else super()._get_help_string(action)


class CommandError(Exception):
    """A failure that the user can mend; its text is all that is shown."""


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    description: str,
    extra: str | None = None,
) -> argparse.ArgumentParser:
    """A parser with the options that every command has.

    Parameters
    ----------
    commands : of the main parser
    name : str
    run : callable
        Given the arguments; does the work.
    summary : str
        In the list of commands.
    description : str
        In the command's own help.
    extra : str, optional
        Of the package: what has to be installed if a module is missing.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=_Help,
    )
    shared = parser.add_argument_group("options of every command")
    shared.add_argument("--threads", type=at_least(1), metavar="N", help="of FAISS and this package; by default all")
    shared.add_argument("-q", "--quiet", action="store_true", help="no progress, and no closing line")
    shared.add_argument("--debug", action="store_true", help="show a traceback of what goes wrong")
    parser.set_defaults(run=run, extra=extra)
    return parser


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """The option --output, which must be given."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help=what, default=argparse.SUPPRESS
    )


def at_least(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """What makes a whole number of an argument, and refuses it below `least` and above `most`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is too small, the least is {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is too large, the most is {most}")
        return value

    return number


def check_output(path: Path, inputs: Iterable[str | Path] = (), option: str = "--output") -> None:
    """Raise a CommandError unless a file can be written there: before the work whose result it is to hold.

    Parameters
    ----------
    path : Path
    inputs : paths
        Files that the command reads, and must not write over.
    option : str
        That names the file.
    """
    if path.is_dir():
        raise CommandError(f"{option}: {path} is a directory")
    folder = path.resolve().parent  # of a link's target
    if not folder.is_dir():
        raise CommandError(f"{option}: there is no directory {folder if path.is_symlink() else path.parent}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CommandError(f"{option}: {path} cannot be written: permission denied")
    if path.exists() and any(os.path.samefile(path, name) for name in inputs):
        raise CommandError(f"{option}: {path} is one of the files that are read")


def check_output_folder(path: Path, option: str = "--output") -> None:
    """Raise a CommandError unless a folder is there, or can be made, and written into."""
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise CommandError(f"{option}: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK):
        raise CommandError(f"{option}: {nearest} cannot be written to: permission denied")
