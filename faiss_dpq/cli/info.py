"""``faiss-dpq info``: what is in an index file, or in a folder of shards."""

import argparse
from pathlib import Path

from .indexes import described, read_index
from .options import add_command


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Tell the main parser of the command."""
    parser = add_command(
        commands,
        "info",
        _info,
        "tell what is in an index file or a folder of shards",
        "Describe an index file, or a folder of shards.",
    )
    parser.add_argument("index", type=Path)
    parser.add_argument("--verify", action="store_true", help="compare all checksums of a folder of shards")


def _info(arguments: argparse.Namespace) -> None:
    if not arguments.index.is_dir() and not arguments.verify:
        print(described(read_index(arguments.index)))
        return
    from faiss_dpq.shards import commands

    print(commands.info(arguments.index, checksums=arguments.verify))
