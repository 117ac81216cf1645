"""Indexes as commands take them: read, looked into, described in a line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss

import faiss_dpq
from faiss_dpq.index.parameters import OURS

from .. import vectors
from .options import METRICS, CommandError


def read_index(path: Path) -> faiss.Index:
    """The index in a file, or that of a folder of shards."""
    if not path.exists():
        raise CommandError(f"{path}: there is no such file")
    if path.is_dir():
        from faiss_dpq import shards

        return shards.read_shards(path)
    return faiss_dpq.read_index(str(path))


def stack(index: faiss.Index) -> Iterator[faiss.Index]:
    """An index and those within, from the outside in."""
    inner: faiss.Index | None = index
    while isinstance(inner, faiss.Index):
        yield faiss_dpq.downcast_index(inner)
        inner = getattr(inner, "index", None) or getattr(inner, "base_index", None)


def set_parameters(index: faiss.Index, parameters: str) -> None:
    """Set what an option --set says.

    Raises
    ------
    CommandError
        If the index has no such parameter, or the value is none for it.
    """
    if not parameters:
        return
    try:
        faiss_dpq.ParameterSpace().set_index_parameters(index, parameters)
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"^.*set_index_parameters?: ?", "", str(error), flags=re.DOTALL)
        # Of a value that is out of range, the reason says which would do.
        known = f"; codes have {', '.join(OURS)}, lists nprobe" if reason.startswith("could not") else ""
        raise CommandError(f"--set {parameters}: {reason}{known}") from None


def check_fit(index: faiss.Index, path: Path, sources: Sequence[vectors.Source]) -> int:
    """Raise a CommandError unless the index in the file `path` is trained, for vectors such as these; their number."""
    first, n = sources[0], sum(source.n for source in sources)
    if not index.is_trained:
        raise CommandError(f"{path}: the index is not trained; `faiss-dpq train` makes one that is")
    if first.d != index.d:
        raise CommandError(f"{first.name}: vectors of {first.d} dimensions, the index has d={index.d}")
    if not n:
        raise CommandError(f"{first.name}: holds no vectors")
    return n


def described(index: faiss.Index) -> str:
    """A line about an index, and about each of those within."""
    return "\n  of ".join(_described(part) for part in stack(index))


def _described(index: faiss.Index) -> str:
    parts = [type(index).__name__, f"d={index.d}"]
    if hasattr(index, "rq"):
        parts.append(f"{index.rq.M}x{index.rq.nbits.at(0)}")
    if isinstance(index, faiss.IndexIVF):
        parts.append(f"nlist={index.nlist}")
    metrics = {value: name for name, value in METRICS.items()}
    parts.append(f"metric={metrics.get(index.metric_type, index.metric_type)}")
    parts.append(f"{index.ntotal:,} vectors" if index.is_trained else "not trained")
    if isinstance(index, faiss.IndexFlatCodes):
        parts.append(f"{index.code_size} bytes each")
    if isinstance(index, faiss_dpq.IndexDPQ) and index.is_trained:
        parts.append(f"beam_size={index.beam_size}")
    return ", ".join(parts)
