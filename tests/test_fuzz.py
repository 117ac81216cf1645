"""Thousands of damaged files: every one is refused by a RuntimeError, or is a whole index that searches exactly.

They are read in processes of their own with little memory, where a crash, an abort or a huge allocation shows.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

WAYS = ["sealed", "stock", "bytes", "reader", "mapped"]

PROGRAM = """
import os
import resource
import struct
import sys

import faiss
import numpy as np

import faiss_dpq
import naive

how, wrapped, first, count, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
rng = np.random.default_rng(0)
dpq = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, 3, 16, 5))
dpq.add(rng.standard_normal((20, 5), dtype=np.float32))
index = dpq
if wrapped == "IVF":
    coarse = faiss.IndexFlatL2(5)
    coarse.add(rng.standard_normal((4, 5), dtype=np.float32))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, dpq.codebooks)
    index.add(dpq.reconstruct_n(0, 20))
elif wrapped == "IDMap2":
    index = faiss.IndexIDMap2(faiss_dpq.IndexDPQ.from_codebooks(dpq.codebooks))
    index.add_with_ids(dpq.reconstruct_n(0, 20), np.arange(20) + 1000)
xq = rng.standard_normal((2, 5), dtype=np.float32)

stock = faiss.serialize_index(index).tobytes()
start = 4 + 33 if wrapped == "IDMap2" else 0  # of the residual quantizer
M, K, d, n = 3, 16, 5, 20
codes_at = start + 85 + 1 + 8 + 4 * M * K * d + 12 + 8
FIELDS = {  # name: (offset, size)
    "fourcc": (start, 4), "d": (start + 4, 4), "ntotal": (start + 8, 8), "is_trained": (start + 32, 1),
    "metric_type": (start + 33, 4), "rq.d": (start + 37, 8), "rq.M": (start + 45, 8), "n nbits": (start + 53, 8),
    "nbits": (start + 61, 8), "last nbits": (start + 77, 8), "rq.is_trained": (start + 85, 1),
    "n codebooks": (start + 86, 8), "search_type": (codes_at - 20, 4), "norm_min": (codes_at - 16, 4),
    "train_type": (codes_at - 8, 4), "max_beam_size": (codes_at - 4, 4), "code_size": (codes_at, 8),
    "n codes": (codes_at + 8, 8), "fourcc of all": (0, 4), "ntotal of all": (8, 8),
}
assert wrapped == "IVF" or struct.unpack_from("<QQ", stock, codes_at) == (2, 40)
VALUES = [0, 1, 2, 3, 4, 5, 12, 19, 21, 30, 255, 2**15, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**37, 2**40, 2**62, 2**63]
VALUES += [2**64 - 1, 2**60 + 2, 2**61 + 15]
# Not IxLS: FAISS's reader of that class has been seen to crash on such bytes, and they are not ours to read.
FOURCCS = [b"IxPq", b"IxFl", b"IxF2", b"IwFl", b"IxMp", b"IxM2", b"IxRQ", b"IxPT", b"IxRF", b"null", b"IxHp"]


def damaged(content, rng):
    data = bytearray(content)
    kind = rng.integers(6)
    if kind == 0:  # truncated
        del data[rng.integers(len(data)) :]
    elif kind == 1:  # flipped bits
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 2:  # one field is another number
        at, size = list(FIELDS.values())[rng.integers(len(FIELDS))]
        value = VALUES[rng.integers(len(VALUES))]
        data[at : at + size] = value.to_bytes(9, "little")[:size]
    elif kind == 3:  # bytes inserted, or appended
        at = len(data) if rng.integers(2) else rng.integers(len(data))
        data[at:at] = rng.bytes(rng.integers(1, 50))
    elif kind == 4:  # bytes lost; if the checksum went along, the rest might be as long as a file without one
        at = rng.integers(len(data))
        del data[at : at + rng.integers(1, 9 if how == "sealed" else 50)]
    else:  # another class, or anything
        data[:4] = FOURCCS[rng.integers(len(FOURCCS))] if rng.integers(2) else rng.bytes(4)
    return bytes(data)


def reader(data):
    at = 0
    def read(n):
        nonlocal at
        at += n
        return data[at - n : at]
    return faiss.PyCallbackIOReader(read)


def read(data):
    if how == "reader":
        return faiss_dpq.read_index(reader(data))
    if how == "bytes":
        return faiss_dpq.deserialize_index(np.frombuffer(data, np.uint8))
    if os.path.exists(path):
        os.unlink(path)  # an index mapped before keeps its file
    with open(path, "wb") as file:
        file.write(data)
    flag = faiss.IO_FLAG_MMAP_IFC if how == "mapped" else 0
    return faiss_dpq.read_index(path, flag)


def check_whole(found):
    D, I = found.search(xq, 4)
    assert D.shape == I.shape == (2, 4)
    inner = faiss_dpq.downcast_index(found.index) if hasattr(found, "index") else found
    if type(inner) is not faiss_dpq.IndexDPQ or not inner.is_trained:
        return
    codes = faiss_dpq._kernels.unpack_codes(inner._packed_codes(), inner.rq.M, inner._nbits)
    if np.abs(inner.codebooks).max() < 100 and len(codes) >= 4:
        product = inner.metric_type == faiss.METRIC_INNER_PRODUCT
        exact = naive.search(inner.codebooks, codes, xq, 4, product)[0]
        np.testing.assert_allclose(inner.search(xq, 4)[0], exact, rtol=1e-4, atol=1e-3)


if how == "sealed":
    faiss_dpq.write_index(index, path)
    content = open(path, "rb").read()
    assert content.startswith(stock) and len(content) > len(stock)
else:
    content = stock
assert read(content).ntotal == 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
refused = 0
for seed in range(first, first + count):
    print(seed, flush=True)
    data = damaged(content, np.random.default_rng(seed))
    try:
        found = read(data)
    except RuntimeError as error:
        assert str(error)
        refused += 1
        continue
    if how == "sealed":
        # Either nothing but the checksum is lost, or the damage undid itself.
        assert faiss.serialize_index(found).tobytes() == stock, "a changed file was accepted"
    try:
        check_whole(found)
    except RuntimeError as error:
        assert "not trained" in str(error) or "nprobe" in str(error), error
print(refused, "refused")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to limit its memory")
@pytest.mark.parametrize(
    "how, wrapped",
    # Not damaged lists that are mapped: FAISS reads these by itself, and has been seen to crash.
    [*itertools.product(WAYS, ["IndexDPQ", "IDMap2"]), *itertools.product(WAYS[:-1], ["IVF"])],
)
def test_damaged_files_are_refused_or_whole(tmp_path, how, wrapped):
    count = 400
    arguments = [how, wrapped, "0", str(count), str(tmp_path / "index.faiss")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"damage of seed {lines[-1:]}: {done.returncode}\\n{done.stderr[-2000:]}"
    refused = int(lines[-1].split()[0])
    assert refused > (0.85 if how == "sealed" else 0.4) * count
