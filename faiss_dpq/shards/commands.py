"""What the command line does with folders of shards."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import faiss

from .build import build_shards
from .manifest import Manifest, read_manifest, verify


def build(
    trained: faiss.Index,
    sources: Sequence[Path],
    output: Path,
    n_shards: int,
    rows_per_part: int,
    column: str | None,
    ray_address: str | None,
    ids: Path | None = None,
) -> str:
    """`build_shards` by this process, or on Ray; warnings are printed as lines. A line about what was built.

    Raises
    ------
    KeyboardInterrupt
        If it is interrupted from the keyboard; its text says how to go on.
    """
    executor = None
    if ray_address is not None:
        from .ray import RayExecutor

        executor = RayExecutor(ray_address)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"faiss-dpq build: {message}", file=sys.stderr)
        try:
            manifest = build_shards(
                trained,
                list(sources),
                output,
                n_shards,
                rows_per_part=rows_per_part,
                column=column,
                ids=ids,
                executor=executor,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on from what is done") from None
    return f"{output}: {_described(manifest)}"


def info(path: Path, *, checksums: bool) -> str:
    """Lines about a folder of shards, whose rows are complete; after a comparison of all checksums if asked for."""
    manifest = verify(path) if checksums else read_manifest(path)
    lines = [_described(manifest), f"  built by faiss_dpq {manifest['faiss_dpq']}, FAISS {manifest['faiss']}"]
    lines += [f"  from {s['name']}: {s['n']:,} rows of {s['dtype']}" for s in manifest["sources"]]
    for shard in manifest["shards"]:
        (first, last), (least, most) = shard["rows"], shard["ids"]
        lines.append(
            f"  {shard['file']}: rows {first:,} to {last:,}, ids {least:,} to {most:,}, {shard['bytes']:,} bytes"
        )
    if checksums:
        lines.append("  all checksums are right")
    return "\n".join(lines)


def _described(manifest: Manifest) -> str:
    shards, ntotal = len(manifest["shards"]), manifest["ntotal"]
    return f"{manifest['index']}, {ntotal:,} vectors in {shards} shard{'s' * (shards > 1)}"
