"""Shards: parts that are done become an ordinary index file."""

import os
from typing import Any, NamedTuple

import numpy as np

from ..index.io import write_index
from .codec import Filling, read_trained
from .folder import FORMAT, BuildFolder, shard_name
from .parts import DonePart
from .plan import Plan
from .records import checksum, write_record

_BLOCK = 1 << 18  # codes added at a time


class Piece(NamedTuple):
    """Some of a part's rows, counted from 0."""

    part: int
    start: int
    stop: int


class ShardPlan(NamedTuple):
    """What a shard is made of: rows of all sources from `first` to `last`."""

    number: int
    first: int
    last: int
    pieces: list[Piece]
    ascending: bool  # whether ids ascend with the rows


def plan_shards(plan: Plan, n_shards: int) -> list[ShardPlan]:
    """Cut the rows of a plan into shards of the same size, in order.

    Raises
    ------
    ValueError
        If there are fewer rows than shards.
    """
    if not 1 <= n_shards <= plan.n:
        raise ValueError(f"build_shards: n_shards is {n_shards}, expected 1 to {plan.n}, the number of rows")
    bounds = [plan.n * i // n_shards for i in range(n_shards + 1)]
    shards: list[ShardPlan] = []
    for number in range(n_shards):
        first, last = bounds[number], bounds[number + 1]
        pieces = [
            Piece(part.number, max(first - part.first, 0), min(last - part.first, len(part)))
            for part in plan
            if part.first < last and part.first + len(part) > first
        ]
        shards.append(ShardPlan(number, first, last, pieces, plan.ascending))
    return shards


def assemble_shard(folder: BuildFolder, shard: ShardPlan) -> dict[str, Any]:
    """Put the codes of a shard's rows into an index file, in the order of their ids, and write down that it is done.

    Memory is needed for the shard: its codes and ids, and for ids that do not ascend three times as much.

    Returns
    -------
    record : dict
        What the manifest will say of the shard.

    Raises
    ------
    RuntimeError
        If a part is missing or damaged, or of another build.
    """
    folder.check_version()
    path = folder.shard(shard.number)
    filling = Filling(read_trained(folder.trained, folder.codec))
    least, most = np.iinfo(np.int64).max, -1
    unsorted = []
    for piece in shard.pieces:
        for codes, ids in DonePart(folder, piece.part).blocks(piece.start, piece.stop, _BLOCK):
            least, most = min(least, int(ids.min())), max(most, int(ids.max()))
            if shard.ascending:
                filling.add(codes, ids)
            else:
                unsorted.append((codes, ids))
    if unsorted:
        codes, ids = (np.concatenate(arrays) for arrays in zip(*unsorted, strict=True))
        order = np.argsort(ids, kind="stable")
        filling.add(codes[order], ids[order])
    write_index(filling.finished(), path)
    record = {
        "format": FORMAT,
        **folder.marks(),
        "file": shard_name(shard.number),
        "rows": [shard.first, shard.last],
        "ids": [least, most],
        "bytes": os.path.getsize(path),
        "sha256": checksum(path),
    }
    write_record(folder.shard_record(shard.number), record)
    return record
