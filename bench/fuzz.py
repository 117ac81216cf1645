"""Damaged files by the million: each is refused by an error, or is an index that works within its memory.

    python -m bench.fuzz                 # 1,000,000 damages, some minutes
    python -m bench.fuzz -n 20000 --asan # with kernels that look at every access to memory

Tiny indexes of every nesting are written, so that most bytes are sizes, numbers and ids rather than codes; then bytes
are changed, read in every way, and used: search, reconstruction, encoding, adding, removing. This is done in processes
of their own with little memory, where a crash, an abort or a huge allocation shows. What was being read in one that
died is printed: the seed, to do it again by `--here /tmp --first SEED -n 1`, and the index.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

D, N = 4, 12
MEMORY = 512 << 20  # that a process may allocate beyond what it has at its start
BLOCK = 5000  # damages a process
MAY_RAISE = (RuntimeError, ValueError, AssertionError, OverflowError)
ROOT = Path(__file__).parent.parent


def _vectors(n: int = N, d: int = D) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def _dpq(d: int = D, metric: int = faiss.METRIC_L2) -> faiss_dpq.IndexDPQ:
    codebooks = np.random.default_rng(1).standard_normal((2, 4, d)).astype(np.float32)
    return faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)


def _lists(coarse: faiss.Index | None = None, direct_map: int = faiss.DirectMap.NoMap) -> faiss_dpq.IndexIVFDPQ:
    if coarse is None:
        coarse = faiss.IndexFlatL2(D)
    if coarse.ntotal == 0:
        coarse.add(_vectors(3))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, _dpq().codebooks)
    index.set_direct_map_type(direct_map)
    index.nprobe = 2
    return index


def _pca(d_out: int = 3) -> faiss.PCAMatrix:
    transform = faiss.PCAMatrix(D, d_out)
    transform.train(_vectors(50))
    return transform


def _centring() -> faiss.CenteringTransform:
    transform = faiss.CenteringTransform(D)
    transform.train(_vectors())
    return transform


def _sq8() -> faiss.IndexScalarQuantizer:
    index = faiss.IndexScalarQuantizer(D, faiss.ScalarQuantizer.QT_8bit)
    index.train(_vectors())
    return index


def _with_norms() -> faiss.IndexResidualQuantizer:
    index = faiss.IndexResidualQuantizer(D, 2, 2, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_cqint4)
    index.train(_vectors(300))
    return index


_c = faiss_dpq
WHOLES: dict[str, Callable[[], faiss.Index]] = {
    "DPQ": _dpq,
    "DPQ of inner products": lambda: _dpq(metric=faiss.METRIC_INNER_PRODUCT),
    "RQ with norms": _with_norms,
    "IDMap": lambda: _c.IndexIDMap(_dpq()),
    "IDMap2": lambda: _c.IndexIDMap2(_dpq()),
    "PCA": lambda: _c.IndexPreTransform(_pca(), _dpq(3)),
    "L2norm": lambda: _c.IndexPreTransform(faiss.NormalizationTransform(D), _dpq()),
    "IDMap2 of centring": lambda: _c.IndexIDMap2(_c.IndexPreTransform(_centring(), _dpq())),
    "padding": lambda: _c.IndexPreTransform(faiss.RemapDimensionsTransform(D, 6, True), _dpq(6)),
    "RefineFlat": lambda: _c.IndexRefineFlat(_dpq()),
    "Refine by SQ8": lambda: _c.IndexRefine(_dpq(), _sq8()),
    "IDMap2 of RefineFlat of PCA": lambda: _c.IndexIDMap2(_c.IndexRefineFlat(_c.IndexPreTransform(_pca(), _dpq(3)))),
    "IVF": _lists,
    "IVF, array": lambda: _lists(direct_map=faiss.DirectMap.Array),
    "IVF, hash table": lambda: _lists(direct_map=faiss.DirectMap.Hashtable),
    "IVF of DPQ": lambda: _lists(_dpq()),
    "IVF of HNSW": lambda: _lists(faiss.IndexHNSWFlat(D, 2)),
    "IDMap2 of IVF": lambda: _c.IndexIDMap2(_lists()),
    "RefineFlat of PCA of IVF": lambda: _c.IndexRefineFlat(_c.IndexPreTransform(_pca(D), _lists())),
}
WAYS = ["sealed", "sealed anew", "stock", "bytes", "reader", "mapped", "lists mapped"]

SPECIAL = [0, 1, 2, 3, 4, 5, 12, 13, 255, 2**15, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**37, 2**40, 2**62, 2**63]
SPECIAL += [2**64 - 1, 2**60 + 2, 2**61 + 15, 0x7FC00000, 0x7F800000, 0xFF7FFFFF, 0x7FF8000000000000]
#: Classes that may be put in place of another. FAISS reads all others by itself.
CLASSES = [b"IxFl", b"IxF2", b"IxFI", b"IxRq", b"IwRQ", b"IxMp", b"IxM2", b"IxPT", b"IxRF", b"null", b"IxSQ", b"ilar"]


def whole(name: str) -> faiss.Index:
    """A small index that is not damaged."""
    index = WHOLES[name]()
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(_vectors(), 100 + np.arange(N))
    else:
        index.add(_vectors())
    return index


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one kind of damage, anywhere."""
    data, at = bytearray(content), int(rng.integers(len(content)))
    kind = rng.integers(8)
    if kind == 0:  # truncated
        del data[at:]
    elif kind == 1:  # flipped bits
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] ^= 1 << rng.integers(8)
    elif kind <= 4:  # a number is another
        size = int(rng.choice([1, 4, 8]))
        data[at : at + size] = SPECIAL[rng.integers(len(SPECIAL))].to_bytes(9, "little")[:size]
        del data[len(content) :]
    elif kind == 5:  # bytes inserted, or appended; zeros among them
        at = len(data) if rng.integers(2) else at
        n = int(rng.integers(1, 50))
        data[at:at] = bytes(n) if rng.integers(2) else rng.bytes(n)
    elif kind == 6:  # bytes lost
        del data[at : at + int(rng.integers(1, 50))]
    else:  # another class
        starts = [i for c in CLASSES for i in _places(content, c)]
        start = starts[rng.integers(len(starts))]
        data[start : start + 4] = CLASSES[rng.integers(len(CLASSES))]
    return bytes(data)


def _places(content: bytes, what: bytes) -> list[int]:
    places, at = [], content.find(what)
    while at >= 0:
        places.append(at)
        at = content.find(what, at + 1)
    return places


def read(data: bytes, way: str, path: str) -> faiss.Index:
    """What this package reads from these bytes."""
    if way == "bytes":
        return faiss_dpq.deserialize_index(np.frombuffer(data, np.uint8))
    if way == "reader":
        left = memoryview(data)

        def take(n: int) -> bytes:
            nonlocal left
            piece, left = left[:n], left[n:]
            return bytes(piece)

        return faiss_dpq.read_index(faiss.PyCallbackIOReader(take))
    if os.path.exists(path):
        os.unlink(path)  # an index that was mapped before keeps its file
    with open(path, "wb") as file:
        file.write(data)
    return faiss_dpq.read_index(
        path, {"mapped": faiss.IO_FLAG_MMAP_IFC, "lists mapped": faiss.IO_FLAG_MMAP}.get(way, 0)
    )


def use(index: faiss.Index) -> None:
    """Call what reads and changes memory. It may raise, and must not leave its memory."""
    if index is None:  # what FAISS writes for no index
        return
    xq = np.random.default_rng(2).standard_normal((3, index.d)).astype(np.float32)

    def search() -> None:
        D, I = index.search(xq, 4)
        assert D.shape == I.shape == (3, 4)

    reading = [
        search,
        lambda: index.range_search(xq, 2.0),
        # FAISS ends the process where an IDMap has none of these ids.
        lambda: isinstance(index, faiss.IndexIDMap) or index.reconstruct_n(0, min(index.ntotal, 100)),
        lambda: [index.reconstruct(i) for i in (0, 5, 100, 105, index.ntotal - 1)],
        lambda: index.search_and_reconstruct(xq, 3),
        lambda: index.sa_encode(xq),
    ]
    changing = [
        lambda: index.remove_ids(np.array([0, 3, 103])),
        lambda: index.add_with_ids(xq, np.arange(3)) if isinstance(index, faiss.IndexIDMap) else index.add(xq),
        search,
    ]
    # FAISS ends the process where one of its own indexes that is mapped from a file is changed.
    for call in reading + changing * hasattr(index, "invalidate"):
        try:
            call()
        except MAY_RAISE:
            continue


def _contents(name: str, way: str, path: str) -> tuple[bytes, int]:
    """The bytes to be damaged, and how many of them are FAISS's."""
    index = whole(name)
    plain = faiss.serialize_index(index).tobytes()
    if way in ("sealed", "bytes"):
        faiss_dpq.write_index(index, path)
        return Path(path).read_bytes(), len(plain)
    return plain, len(plain)


def run(first: int, count: int, path: str, names: list[str], ways: list[str]) -> int:
    """Damage, read and use `count` times from a seed on; how many files were refused."""
    combinations = [(name, way) for name in names for way in ways]
    contents = {both: _contents(*both, path) for both in combinations}
    for both in combinations:
        print("whole:", *both, flush=True)
        use(read(contents[both][0], both[1], path))
    if resource is not None and "LD_PRELOAD" not in os.environ:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    refused = 0
    for seed in range(first, first + count):
        name, way = both = combinations[seed % len(combinations)]
        print(f"{seed}: {name}, {way}", flush=True)
        content, n_plain = contents[both]
        data = damaged(content, np.random.default_rng(seed))
        if way == "sealed anew":  # by someone who knows how
            data += faiss_dpq.index.trailer.make([{}, []], faiss_dpq.index.trailer.checksum(_reader(data), len(data)))
        try:
            found = read(data, way, path)
        except RuntimeError as error:
            assert str(error)
            refused += 1
            continue
        # Nothing was changed after all, or the whole trailer is lost.
        if way in ("sealed", "bytes") and data not in (content, content[:n_plain]):
            raise AssertionError("a file was accepted whose checksum is not that of its bytes")
        use(found)
    return refused


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda at, n: data[at : at + n]


def run_apart(first: int, count: int, arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """`run` in a process of its own: how many files were refused, and how it died, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "bench.fuzz", "--here", folder, "--first", str(first)]
        with open(Path(folder, "out"), "w+") as out, open(Path(folder, "err"), "w+") as err:
            done = subprocess.run([*command, "-n", str(count), *arguments], stdout=out, stderr=err, env=environment)
        lines = Path(folder, "out").read_text().splitlines()
        if done.returncode == 0:
            return int(lines[-1]), ""
        return 0, f"{lines[-1:]}, status {done.returncode}: {Path(folder, 'err').read_text()[-3000:]}"


def environment(package: Path = ROOT, preload: str = "") -> dict[str, str]:
    """Of processes that import the package from a folder."""
    paths = [str(package), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    asan = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1"} if preload else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **asan}


def build_with_asan(folder: Path) -> str:
    """A copy of the package whose kernels check every access to memory; the libraries to preload for it."""
    for name in ("faiss_dpq", "cython_kernels", "setup.py", "pyproject.toml", "README.md", "bench"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    flags = {"CFLAGS": "-fsanitize=address -fno-omit-frame-pointer -g -O1", "LDFLAGS": "-fsanitize=address"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=folder, env={**os.environ, **flags}, check=True, capture_output=True)
    # The sanitizer looks for C++'s own function that throws exceptions when it starts.
    libraries = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    found = [subprocess.run(library, capture_output=True, text=True, check=True).stdout for library in libraries]
    return " ".join(os.path.realpath(path.strip()) for path in found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=1_000_000, help="damages")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--name", nargs="+", choices=WHOLES, default=list(WHOLES), help="of indexes")
    parser.add_argument("--way", nargs="+", choices=WAYS, default=WAYS, help="of reading")
    parser.add_argument("--asan", action="store_true", help="build the kernels with the address sanitizer")
    parser.add_argument("--here", help="do it in this process, with files in this folder")
    args = parser.parse_args()
    chosen = ["--name", *args.name, "--way", *args.way]
    if args.here:
        print(run(args.first, args.n, str(Path(args.here, "index")), args.name, args.way))
        return
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder), build_with_asan(Path(folder))) if args.asan else environment()
        failures = _run_blocks(args.first, args.n, args.jobs, chosen, env)
    sys.exit(1 if failures else 0)


def _run_blocks(first: int, count: int, jobs: int, chosen: list[str], env: dict[str, str]) -> int:
    from concurrent.futures import ThreadPoolExecutor

    refused = failures = 0
    blocks = [(at, min(BLOCK, first + count - at)) for at in range(first, first + count, BLOCK)]
    with ThreadPoolExecutor(jobs) as pool:
        for number, (n, death) in enumerate(pool.map(lambda block: run_apart(*block, chosen, env), blocks)):
            refused += n
            if death:
                failures += 1
                print(f"died: {death}", flush=True)
            print(f"{number + 1} of {len(blocks)} blocks, {refused} refused, {failures} died", flush=True)
    return failures


if __name__ == "__main__":
    main()
