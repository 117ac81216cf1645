import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from naive import idx

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.search import flat as _scan

# Examples are drawn from a fixed seed: a failure in CI is a failure everywhere.
settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Where every example takes long, under an emulator: --hypothesis-profile few.
settings.register_profile("few", settings.get_profile("fixed"), max_examples=10)
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


@pytest.fixture(scope="session")
def trained_dpq(digits):
    """An IndexDPQ of the digits; tests leave it as it is."""
    index = faiss_dpq.IndexDPQ(64, 4, 6)
    index.train(digits)
    index.add(digits[:1000])
    return index


@pytest.fixture(scope="session")
def trained_ivf(digits):
    """An IndexIVFDPQ of the digits; tests leave it as it is."""
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(64), 64, 16, 4, 6)
    index.train(digits, effort="fast")
    index.add(digits[:1000])
    return index


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods of IndexDPQ that are called, in turn."""
    names = []

    def counted(method):
        def call(self, *args, **kwargs):
            names.append(method.__name__.lstrip("_"))
            return method(self, *args, **kwargs)

        return call

    for name in ("train", "add", "_sa_encode", "_search", "_range_search", "_search_and_reconstruct"):
        monkeypatch.setattr(faiss_dpq.IndexDPQ, name, counted(getattr(faiss_dpq.IndexDPQ, name)))
    return names


@pytest.fixture
def worth_threads(monkeypatch):
    """Threads for small indexes."""
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 1000)


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """The digits, three times as large, in files of Fashion-MNIST's names."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron((digits.images * 15.9).astype(np.uint8), np.ones((1, 3, 3), np.uint8))
    images, labels = np.pad(images, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.uint8)
    folder = tmp_path_factory.mktemp("digits")
    for part, rows in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))
    return folder


@pytest.fixture(scope="session")
def run_folders(digit_files, tmp_path_factory):
    """Evaluated runs of deep quantizers: two seeds of E+LC, PQN and RPQN."""
    from digit_runs import tables, trained

    from faiss_dpq.nn import runs

    folder = tmp_path_factory.mktemp("runs")
    for name, config in {
        "lc0": tables(digit_files),
        "lc1": tables(digit_files, seed=1),
        "pqn": tables(digit_files, "PQN"),
        "rpqn": tables(digit_files, "RPQN"),
    }.items():
        runs.evaluate(trained(config, folder / name))
    return folder
