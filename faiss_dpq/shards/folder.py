"""The folder of a build, and what may be done there.

    trained.faiss                    the trained, empty index: the codec
    parts/<hash of the plan>/        plan.json; part-*.json: what is done; part-*.codes: attempts; shard-*.json
    shards/shard-*.faiss             ordinary files of FAISS
    manifest.json                    written last

A part is done when its part-*.json is there, which names the attempt file with its checksum: an attempt that was killed
leaves nothing that counts. Once the manifest is there, `parts` is needed only to make a lost shard anew.
"""

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from typing import Any, BinaryIO

import faiss

import faiss_dpq

from ..index import writing
from . import codec as codecs
from .plan import Plan, hash_of
from .records import Refused, read_record, write_record

FORMAT = 1  # of all that is written here; a newer one is refused


@dataclass(frozen=True)
class BuildFolder:
    """What the tasks of a build need to know. It is small, and can be pickled.

    Attributes
    ----------
    output : str
        The folder.
    plan : str
        Hash of the plan.
    codec : str
        SHA-256 of trained.faiss.
    version : str
        Of faiss_dpq; tasks of another one are refused.
    """

    output: str
    plan: str
    codec: str
    version: str

    @property
    def trained(self) -> str:
        """The file of the codec."""
        return os.path.join(self.output, "trained.faiss")

    @property
    def parts(self) -> str:
        """The folder of the parts."""
        return os.path.join(self.output, "parts", self.plan)

    def part_record(self, number: int) -> str:
        """The file that says that a part is done."""
        return os.path.join(self.parts, f"part-{number:07d}.json")

    def shard(self, number: int) -> str:
        """The file of a shard."""
        return os.path.join(self.output, shard_name(number))

    def shard_record(self, number: int) -> str:
        """The file that says that a shard is done."""
        return os.path.join(self.parts, f"shard-{number:05d}.json")

    def check_version(self) -> None:
        """Refuse to work for a build of another version of this package, whose codes may differ."""
        if self.version != faiss_dpq.__version__:
            raise Refused(
                f"{self.output}: a build of faiss_dpq {self.version}; this is faiss_dpq {faiss_dpq.__version__}, whose "
                "codes may be others"
            )

    def record(self, path: str) -> dict[str, Any] | None:
        """A record of this build; None if there is none yet."""
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        found = {"plan": record.get("plan"), "codec": record.get("codec"), "faiss_dpq": record.get("faiss_dpq")}
        if found != self.marks():
            raise Refused(f"{path}: of another build: {found}, expected {self.marks()}")
        return record

    def marks(self) -> dict[str, str]:
        """What every record of this build holds."""
        return {"plan": self.plan, "codec": self.codec, "faiss_dpq": self.version}


def shard_name(number: int) -> str:
    """The file of a shard, within the folder."""
    return f"shards/shard-{number:05d}.faiss"


def open_build(trained: faiss.Index, plan: Plan, output: str | os.PathLike[str], *, resume: bool = True) -> BuildFolder:
    """Prepare a folder for a build, or find what an earlier run of the same build has done there.

    Parameters
    ----------
    trained : faiss.Index
        A trained, empty IndexDPQ or IndexIVFDPQ, also in an IndexPreTransform.
    plan : Plan
    output : str or path
    resume : bool
        Whether to keep what is done.

    Raises
    ------
    RuntimeError
        If the folder holds something else: another build, sources that have changed since, other files.
    TypeError, ValueError
        If `trained` is not such an index, or of another dimension than the sources.
    """
    output = os.path.abspath(output)
    data = codecs.bytes_of(trained)
    if trained.d != plan.d:
        source = plan.parts[0].source.name
        raise ValueError(f"build_shards: {source} holds vectors of {plan.d} dimensions, the index has d={trained.d}")
    codec = codecs.hash_of_bytes(data)
    description = {"format": FORMAT, "faiss_dpq": faiss_dpq.__version__, "codec": codec, **plan.description}
    folder = BuildFolder(output, hash_of(description), codec, faiss_dpq.__version__)
    _refuse_another(folder, description)
    if not resume:
        _clear(folder)
    os.makedirs(folder.parts, exist_ok=True)
    os.makedirs(os.path.join(output, "shards"), exist_ok=True)
    plan_file = os.path.join(folder.parts, "plan.json")
    if not os.path.exists(plan_file):
        write_record(plan_file, description)
    if os.path.exists(folder.trained):
        codecs.read_trained(folder.trained, codec)
    else:
        _write_bytes(folder.trained, data)
    return folder


def _write_bytes(path: str, data: bytes) -> None:
    def produce(file: BinaryIO) -> None:
        file.write(data)

    writing.write(path, produce)


def _refuse_another(folder: BuildFolder, description: dict[str, Any]) -> None:
    output = folder.output
    if not os.path.exists(output):
        return
    if not os.path.isdir(output):
        raise Refused(f"{output}: a file, expected a folder")
    names = sorted(os.listdir(output))
    parts = os.path.join(output, "parts")
    plans = sorted(os.listdir(parts)) if os.path.isdir(parts) else []
    for name in plans:
        if name == folder.plan:
            continue
        with contextlib.suppress(FileNotFoundError):
            earlier = read_record(os.path.join(parts, name, "plan.json"))
            raise Refused(f"{output}: holds another build: {_difference(earlier, description)}")
    with contextlib.suppress(FileNotFoundError):
        manifest = read_record(os.path.join(output, "manifest.json"))
        if manifest.get("plan") != folder.plan:
            raise Refused(f"{output}: holds another build, of plan {manifest.get('plan')}; this one is {folder.plan}")
        return
    if not plans:
        foreign = [
            name for name in names if name not in ("trained.faiss", "parts", "shards") and not _is_leftover(name)
        ]
        if foreign:
            raise Refused(f"{output}: holds other files, such as {foreign[0]}; expected an empty or a new folder")


def _is_leftover(name: str) -> bool:
    return re.fullmatch(r"\.faiss_dpq-\w+\.tmp", name) is not None


def _difference(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """What of an earlier plan is different now."""
    old_sources, new_sources = ({s["name"]: s for s in plan.get("sources", [])} for plan in (earlier, now))
    for name, old in old_sources.items():
        new = new_sources.get(name)
        if new is not None and new != old:
            changed = [f"{key} was {old[key]}, is {new.get(key)}" for key in old if old[key] != new.get(key)]
            return f"{name} has changed since the build began: {'; '.join(changed)}"
    for key, value in now.items():
        if key == "sources" and list(old_sources) != list(new_sources):
            return f"its sources are {', '.join(old_sources)}; now they are {', '.join(new_sources)}"
        if earlier.get(key) != value:
            return f"its {key} is {earlier.get(key)}, now it is {value}"
    return "its plan is damaged"


def _clear(folder: BuildFolder) -> None:
    """Remove what is done; the manifest first, so that nothing refers to what is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder.output, "manifest.json"))
    for path in (folder.parts, os.path.join(folder.output, "shards")):
        shutil.rmtree(path, ignore_errors=True)
