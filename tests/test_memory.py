"""What an index costs in memory while it searches."""

import json
import subprocess
import sys

N = 1_000_000

_PROGRAM = """
import json, sys
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq


def resident():
    status = Path("/proc/self/status").read_text()
    return {key: int(status.split(key + ":")[1].split()[0]) << 10 for key in ("VmRSS", "VmHWM")}


n = int(sys.argv[1])
faiss.omp_set_num_threads(2)
rng = np.random.default_rng(0)
index = faiss_dpq.IndexDPQ.from_codebooks(rng.standard_normal((4, 256, 128)).astype(np.float32))
xq = rng.standard_normal((1000, 128)).astype(np.float32)
block = n // 10
empty = resident()
for _ in range(10):
    index.add_sa_codes(rng.integers(0, 256, (block, 4)).astype(np.uint8))
for nq in (1, 16, 1000):
    for k in (1, 10, 1000):
        index.search(xq[:nq], k)
searched = resident()
print(json.dumps([index.ntotal, empty["VmRSS"], searched["VmHWM"]]))
"""


def test_a_search_takes_8_bytes_a_vector_and_64_MiB():
    run = subprocess.run([sys.executable, "-c", _PROGRAM, str(N)], capture_output=True, text=True, check=True)
    ntotal, empty, peak = json.loads(run.stdout)
    assert ntotal == N
    assert peak - empty <= 8 * N + (64 << 20)
