"""Instructions of searches on AArch64, counted under qemu-user: codes in their order beside the plain scan.

    bench/aarch64.sh count             builds indexes here and searches them there, by the two actions
    python -m bench.instructions build FOLDER
    python -m bench.instructions count FOLDER COUNTS

No time is measured: an emulated machine has none of its own. bench/qemu_count.c appends to the file COUNTS how many
instructions were executed, at every call of os.getppid. What both scans find is compared.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq

from . import data, search, timing

_LEVELS, _KS = (4, 8, 16), (10, 100)
_WARM, _COUNTED, _BATCH = 24, 16, 64  # queries: one by one until there is an order, one by one, and in one call
_NO_ORDER = 1  # bytes a vector that may be derived: the bins of terms, no more


def build(folder: Path) -> None:
    """Write the indexes, and the queries."""
    dataset = data.load("glove")
    for M in _LEVELS:
        search.indexes(dataset, M, ["ours"], folder)
    np.save(folder / "queries.npy", dataset.queries[: _WARM + _BATCH])


def counted(call: Callable[[], object], counts: Path) -> int:
    """How many instructions a call executes."""
    os.getppid()
    call()
    os.getppid()
    before, after = np.fromfile(counts, np.uint64)[-2:]
    return int(after - before)


def count(folder: Path, counts: Path) -> None:
    """Search the indexes, and print a table."""
    faiss.omp_set_num_threads(1)
    xq = np.load(folder / "queries.npy")
    one_by_one, batch = xq[_WARM : _WARM + _COUNTED], xq[_WARM:]
    rows = []
    for M in _LEVELS:
        (file,) = folder.glob(f"*-{M}-ours.index")
        index = faiss_dpq.read_index(str(file))
        n = index.ntotal
        for k in _KS:
            found, instructions = [], []
            for room in (_NO_ORDER, None):
                index.derived_bytes_per_vector = room
                for q in range(_WARM):
                    index.search(xq[q : q + 1], k)
                D, I = np.empty((_COUNTED, k), np.float32), np.empty((_COUNTED, k), np.int64)

                def singly(index=index, k=k, D=D, I=I) -> None:
                    for q in range(_COUNTED):
                        D[q], I[q] = index.search(one_by_one[q : q + 1], k)

                instructions.append(counted(singly, counts) / _COUNTED / n)
                found.append((D, I))
            for plain, ordered in zip(*found, strict=True):
                np.testing.assert_array_equal(plain, ordered)
            index.search(batch, k)
            together = counted(lambda index=index, k=k: index.search(batch, k), counts) / _BATCH / n
            plain, ordered = instructions
            rows.append((M, k, f"{plain:.2f}", f"{ordered:.2f}", f"{plain / ordered:.2f}", f"{together:.2f}"))
    print(f"glove: {n:,} x {xq.shape[1]}; {faiss_dpq.simd_level()}; instructions a query and vector\n")
    timing.print_table(("M", "k", "plain", "in order", "times in order", f"{_BATCH} queries together"), rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["build", "count"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("counts", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.action == "build":
        build(arguments.folder)
    else:
        count(arguments.folder, arguments.counts)


if __name__ == "__main__":
    main()
