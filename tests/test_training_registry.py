"""Training methods are found by name, and those of packages above are imported when they are first asked for."""

import subprocess
import sys

import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.training import registry, train_codebooks


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(registry, "_announced", dict(registry._announced))


def test_a_registered_method_is_used(digits):
    tasks = []

    def first_vectors(task):
        tasks.append(task)
        return np.stack([task.x[: task.K]] * task.M)

    registry.register("first vectors", first_vectors)
    index = faiss_dpq.IndexDPQ(64, 2, 4)
    index.train(digits, trainer="first vectors", weights=[3, 1], shrinkage=1)
    np.testing.assert_array_equal(index.codebooks, np.stack([digits[:16]] * 2))
    assert (tasks[0].M, tasks[0].K, tasks[0].weights.tolist()) == (2, 16, [3, 1])


def test_an_announced_method_is_imported_at_first_use(digits, tmp_path, monkeypatch):
    (tmp_path / "method_of_a_room_above.py").write_text(
        "from faiss_dpq.training import registry\nregistry.register('above', registry.method('least-squares'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry.announce("above", "method_of_a_room_above")
    assert "method_of_a_room_above" not in sys.modules
    expected, _ = train_codebooks(digits, 2, 4, effort="fast")
    np.testing.assert_array_equal(train_codebooks(digits, 2, 4, effort="fast", trainer="above")[0], expected)
    assert sys.modules.pop("method_of_a_room_above")


def test_an_unknown_name_is_answered_with_the_known_ones(digits):
    with pytest.raises(ValueError, match="trainer is 'adam', expected 'least-squares' or 'sgd'"):
        train_codebooks(digits, 2, 4, trainer="adam")


_SGD_ALONE = """
import sys
import numpy as np
import faiss_dpq
index = faiss_dpq.IndexDPQ(4, 2, 2)
x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
index.train(x)
assert not {"torch", "ray", "matplotlib", "tqdm.auto"} & set(sys.modules)
index.train(x, trainer="sgd")
assert "faiss_dpq.nn.unlabelled" in sys.modules
"""


def test_sgd_needs_no_import_of_nn_by_the_user():
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", _SGD_ALONE], check=True)
