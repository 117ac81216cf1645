import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from faiss_dpq import _kernels

# Examples are drawn from a fixed seed: a failure in CI is a failure everywhere.
settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fixed")


@pytest.fixture(params=_kernels.available_simd_levels())
def simd(request):
    """Run the test with the kernels of every instruction set that the machine has."""
    before = _kernels.simd_level()
    _kernels.set_simd_level(request.param)
    yield request.param
    _kernels.set_simd_level(before)


@pytest.fixture
def threads():
    """A function that sets FAISS's number of threads, undone after the test."""
    before = faiss.omp_get_max_threads()
    yield faiss.omp_set_num_threads
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="session")
def digits():
    """Real vectors: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    return np.ascontiguousarray(load_digits().data, np.float32)
