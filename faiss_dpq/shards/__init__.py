"""More than one machine: vectors are encoded in parts, stored in shards, and searched as one index.

`build_shards` plans parts (`plan_parts`), encodes each (`encode_part`), assembles shards and writes a manifest; any
concurrent.futures.Executor runs it, `faiss_dpq.shards.ray.RayExecutor` on many machines. `read_shards` searches the
result on one machine, `faiss_dpq.shards.ray.RayIndex` on many. Nothing but that module needs Ray.
"""

from ..vectors import sample_sources
from .assembly import assemble_shard, plan_shards
from .build import BuildError, build_shards
from .folder import BuildFolder, open_build
from .manifest import read_manifest, verify, write_manifest
from .merge import merge_ranges, merge_results
from .parts import encode_part
from .plan import Part, Plan, plan_parts
from .reading import read_shards
from .to_one import to_one

__all__ = [
    "BuildError",
    "BuildFolder",
    "Part",
    "Plan",
    "assemble_shard",
    "build_shards",
    "encode_part",
    "merge_ranges",
    "merge_results",
    "open_build",
    "plan_parts",
    "plan_shards",
    "read_manifest",
    "read_shards",
    "sample_sources",
    "to_one",
    "verify",
    "write_manifest",
]
