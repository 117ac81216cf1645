"""Micro benchmarks of the kernels at every instruction set of the machine: `pytest bench`.

Random codebooks and codes: the work of the scans is that of real ones up to the share of vectors that are rescored.
Every result's `extra_info` says how many units of work a round does.
"""

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.codec import ProgressiveQuantizer

D = 64
N = 100_000


@pytest.fixture(params=_kernels.available_simd_levels(), autouse=True)
def simd(request):
    """Run with the kernels of one instruction set, on one thread."""
    before, threads = _kernels.simd_level(), faiss.omp_get_max_threads()
    _kernels.set_simd_level(request.param)
    faiss.omp_set_num_threads(1)
    yield request.param
    _kernels.set_simd_level(before)
    faiss.omp_set_num_threads(threads)


@pytest.fixture(scope="module")
def rng():
    """A seeded generator."""
    return np.random.default_rng(0)


def quantizer(rng, M, nbits=8):
    """Codebooks that shrink from level to level, as residual codebooks do."""
    codebooks = rng.standard_normal((M, 1 << nbits, D)) * 0.7 ** np.arange(M)[:, None, None]
    return ProgressiveQuantizer(codebooks.astype(np.float32))


def filled_index(rng, M, nbits=8):
    """An index of N random codes, and queries near some of them."""
    index = faiss_dpq.IndexDPQ.from_codebooks(quantizer(rng, M, nbits).codebooks)
    codes = rng.integers(0, 1 << nbits, (N, M)).astype(np.uint16)
    index.add_sa_codes(_kernels.pack_codes(codes, nbits))
    noise = 0.3 * rng.standard_normal((256, D)).astype(np.float32)
    return index, index.residual_quantizer.decode(codes[:256]) + noise


@pytest.mark.parametrize("n", [1, 1000])
def test_linear(benchmark, rng, n):
    """The products of n queries with 1,024 codewords."""
    x = rng.standard_normal((n, D)).astype(np.float32)
    panels = _kernels.pack_panels(rng.standard_normal((1024, D)).astype(np.float32))
    bias = np.zeros(1024, np.float32)
    out = _kernels.aligned_empty((n, 1024))
    benchmark.extra_info["multiply_adds"] = n * 1024 * D
    benchmark(_kernels.linear, x, panels, bias, -2.0, out)


@pytest.mark.parametrize("beam_size", [1, 5, 32])
@pytest.mark.parametrize("M", [4, 8])
def test_encode(benchmark, rng, M, beam_size):
    """Beam search of 1,000 vectors."""
    coder = quantizer(rng, M)
    x = rng.standard_normal((1000, D)).astype(np.float32)
    coder.encode(x, beam_size)
    benchmark.extra_info["vectors"] = len(x)
    benchmark(coder.encode, x, beam_size)


@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("shape", [(4, 8), (8, 8), (16, 8), (8, 4), (4, 6), (4, 10)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("nq", [1, 256], ids=["single", "batch"])
def test_scan(benchmark, rng, nq, shape, k):
    """A whole search, the tables included."""
    index, xq = filled_index(rng, *shape)
    index.search(xq[:nq], k)
    benchmark.extra_info["distances"] = nq * N
    benchmark(index.search, xq[:nq], k)
