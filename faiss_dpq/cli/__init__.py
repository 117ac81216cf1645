"""The ``faiss-dpq`` command: a module a subcommand, each with its arguments and its function.

What a user can cause ends with one line on standard error and a status other than 0, never with a traceback: 1 for
inputs and outputs that do not fit, 2 for wrong arguments, 130 for Ctrl-C, 141 where what reads the output has gone.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

import faiss

from .. import __version__
from ..training import progress
from . import bench, build, deep, demo, info, search, suggest, train
from .options import CommandError

_INTERRUPTED, _PIPE_CLOSED = 130, 141  # 128 and the signal's number, as shells report it
_BAD_INPUT = (CommandError, RuntimeError, ValueError, TypeError, AssertionError, OSError, ImportError, MemoryError)
# Where in C++ an error was raised is nothing to those who use a command.
_FAISS_PLACE = re.compile(r"(^|: )Error in .*? at \S+:\d+: (Error: '.*' failed: )?", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit status."""
    arguments = _parser().parse_args(argv)
    n_threads = faiss.omp_get_max_threads()
    try:
        if arguments.threads:
            faiss.omp_set_num_threads(arguments.threads)
        with progress.hidden(arguments.quiet):
            arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        return _failed(arguments.command, str(error) or "interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Python flushes standard output once more at its end, which must not fail, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except _BAD_INPUT as error:
        if arguments.debug:
            raise
        if isinstance(error.__context__, KeyboardInterrupt) or "computation interrupted" in str(error):
            return _failed(arguments.command, "interrupted", _INTERRUPTED)  # FAISS makes this of a KeyboardInterrupt
        return _failed(arguments.command, _described(error, arguments.extra), 1)
    finally:
        faiss.omp_set_num_threads(n_threads)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="faiss-dpq",
        description="Deep Progressive Quantization for FAISS.",
        epilog="faiss-dpq COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"faiss-dpq {__version__}, FAISS {faiss.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, suggest, train, build, search, info, bench, deep):
        module.add(commands)
    return parser


def _failed(command: str, text: str, status: int) -> int:
    print(f"faiss-dpq {command}: {text}", file=sys.stderr)
    return status


def _described(error: BaseException, extra: str | None) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory. {error}".strip()
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error) and extra:
        return f"{error}: pip install 'faiss-dpq[{extra}]'"
    return _FAISS_PLACE.sub(r"\1", str(error)) or type(error).__name__
