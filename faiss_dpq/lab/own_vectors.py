"""A user's own vectors, for ``faiss-dpq bench``: read from files, with the true neighbours of the queries."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from .. import vectors as readers
from ..index import writing
from .datasets import VectorSet, cache_folder

N_QUERIES = 1000  # held out where none are given
_LEAST_VECTORS = 256

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OwnVectors:
    """Vectors from files.

    Attributes
    ----------
    name : str
        Of the base's file, without its suffix.
    vectors : VectorSet
    nearest : array, shape (nq,), int64
        The number of every query's nearest vector of the base.
    checksum : str
        Of all vectors.
    """

    name: str
    vectors: VectorSet
    nearest: Ids
    checksum: str

    def check_folder(self, folder: Path) -> None:
        """Note in a folder of measurements which vectors they are of.

        Raises
        ------
        ValueError
            If it holds measurements of other vectors under the same name.
        """
        path = folder / f"{self.name}.json"
        if path.exists() and (known := json.loads(path.read_text())["checksum"]) != self.checksum:
            raise ValueError(
                f"{folder}: holds measurements of other vectors named {self.name} (checksum {known[:12]}, now "
                f"{self.checksum[:12]}); choose another --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        train, base, queries = self.vectors
        shapes = {"train": len(train), "base": len(base), "queries": len(queries), "d": base.shape[1]}
        path.write_text(json.dumps({"checksum": self.checksum, **shapes}) + "\n")


def read(
    base: Path,
    queries: Path | None = None,
    groundtruth: Path | None = None,
    *,
    max_train: int = 100_000,
    seed: int = 0,
    column: str | None = None,
) -> OwnVectors:
    """Vectors from files, of which some are trained on; true neighbours are computed where none are given.

    Parameters
    ----------
    base : Path
        What is stored and searched: .npy, .npz, .fvecs, .bvecs, .ivecs or .parquet.
    queries : Path, optional
        Unless given, `N_QUERIES` vectors of the base, a tenth of it at most, are taken out and used.
    groundtruth : Path, optional
        The numbers of each query's nearest vectors, the nearest first (.ivecs, .npy, ...). Unless given, FAISS's flat
        index finds them, and they are kept in the cache folder under the checksum of the vectors.
    max_train : int
        Vectors of the base to train on, drawn at random.
    seed : int
        Of what is drawn.
    column : str, optional
        Of .parquet and .npz files, the column (array) with the vectors.

    Raises
    ------
    ValueError, FileNotFoundError
        If a file does not hold what it should.
    """
    x = readers.read(base, column)
    rng = np.random.default_rng(seed)
    if queries is None:
        if groundtruth is not None:
            raise ValueError("groundtruth is given, but no queries; expected both")
        order = rng.permutation(len(x))
        held_out = min(N_QUERIES, len(x) // 10)
        xq, x = x[order[:held_out]], x[np.sort(order[held_out:])]
    else:
        xq = readers.read(queries, column)
    if len(x) < _LEAST_VECTORS:
        raise ValueError(f"{base}: {len(x)} vectors to train on, expected {_LEAST_VECTORS} or more, one a codeword")
    if xq.shape[1] != x.shape[1]:
        raise ValueError(f"{queries}: queries of d={xq.shape[1]}, expected d={x.shape[1]}, as {base} has")
    checksum = hashlib.sha256()
    for part in (x, xq):
        checksum.update(str(part.shape).encode())
        checksum.update(part.data)
    name = checksum.hexdigest()
    if groundtruth is not None:
        nearest = readers.read_neighbours(groundtruth, len(xq), len(x))[:, 0]
    else:
        nearest = _cached_nearest(x, xq, name)
    chosen = np.sort(rng.permutation(len(x))[:max_train])
    return OwnVectors(base.stem, VectorSet(x[chosen], x, xq), nearest, name)


def _cached_nearest(x: npt.NDArray[np.float32], xq: npt.NDArray[np.float32], checksum: str) -> Ids:
    path = cache_folder() / "groundtruth" / f"{checksum}.npy"
    if path.exists():
        return np.load(path)
    flat = faiss.IndexFlatL2(x.shape[1])
    flat.add(x)
    nearest = flat.search(xq, 1)[1][:, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write(str(path), lambda file: np.save(file, nearest))
    return nearest
