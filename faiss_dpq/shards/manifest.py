"""The manifest: what a folder of shards holds. It is written last, so that where there is one all else is complete."""

import os
from typing import Any

import faiss

from . import codec
from .assembly import ShardPlan
from .folder import FORMAT, BuildFolder
from .parts import DonePart
from .plan import Plan
from .records import Refused, check_file, checksum, read_record, write_record

Manifest = dict[str, Any]


def write_manifest(folder: BuildFolder, plan: Plan, shards: list[ShardPlan]) -> Manifest:
    """Write the manifest of a build whose shards are all assembled.

    Raises
    ------
    RuntimeError
        If a shard is missing, or its file is not of the size that its record says.
    """
    folder.check_version()
    entries = []
    for shard in shards:
        record = folder.record(folder.shard_record(shard.number))
        if record is None or record["rows"] != [shard.first, shard.last]:
            raise Refused(f"{folder.shard(shard.number)}: rows {shard.first} to {shard.last} are not assembled")
        check_file(folder.shard(shard.number), record, contents=False)
        entries.append({key: record[key] for key in ("file", "rows", "ids", "bytes", "sha256")})
    trained = codec.shared_trained(folder.trained, folder.codec)
    manifest = {
        "format": FORMAT,
        **folder.marks(),
        "faiss": faiss.__version__,
        "index": repr(trained).replace(", ntotal=0, trained", ""),
        "d": plan.d,
        "metric": "inner product" if trained.metric_type == faiss.METRIC_INNER_PRODUCT else "l2",
        "ntotal": plan.n,
        "ids": {"given": plan.description["ids"] is not None, "ascending": plan.ascending},
        "sources": plan.description["sources"],
        "shards": entries,
    }
    write_record(os.path.join(folder.output, "manifest.json"), manifest)
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    RuntimeError
        If it is damaged, of a newer version, its rows are not complete, or a shard is missing or of another size.
    """
    folder = os.fspath(path)
    name = os.path.join(folder, "manifest.json")
    try:
        manifest = read_record(name)
    except (FileNotFoundError, NotADirectoryError):
        unfinished = os.path.isdir(os.path.join(folder, "parts"))
        what = "a build that is not finished; run it again" if unfinished else "not a folder of shards"
        raise FileNotFoundError(f"{folder}: there is no manifest.json: {what}") from None
    try:
        _check(manifest, folder, name)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{name}: damaged: {type(error).__name__}: {error}") from None
    return manifest


def _check(manifest: Manifest, folder: str, name: str) -> None:
    if manifest["format"] > FORMAT:
        raise Refused(
            f"{name}: format {manifest['format']}, of faiss_dpq {manifest['faiss_dpq']}; this one reads up to {FORMAT}"
        )
    row = 0
    for shard in manifest["shards"]:
        first, last = shard["rows"]
        if first != row or last <= first:
            raise Refused(f"{name}: {shard['file']} has rows {first} to {last}, expected them from {row} on")
        row = last
        check_file(os.path.join(folder, shard["file"]), shard, contents=False)
    if row != manifest["ntotal"]:
        raise Refused(f"{name}: the shards end at row {row}, expected {manifest['ntotal']}")


def verify(path: str | os.PathLike[str]) -> Manifest:
    """`read_manifest`, and a comparison of all checksums: of the codec, the shards, and the parts that are still there.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `read_manifest`, or if a checksum differs.
    """
    manifest = read_manifest(path)
    folder = BuildFolder(os.path.abspath(path), manifest["plan"], manifest["codec"], manifest["faiss_dpq"])
    found = checksum(folder.trained)
    if found != manifest["codec"]:
        raise Refused(f"{folder.trained}: damaged: its checksum is not {manifest['codec']}")
    for shard in manifest["shards"]:
        check_file(os.path.join(folder.output, shard["file"]), shard, contents=True)
    if os.path.isdir(folder.parts):
        for name in sorted(os.listdir(folder.parts)):
            if name.startswith("part-") and name.endswith(".json"):
                DonePart(folder, int(name[5:-5]))
    return manifest
