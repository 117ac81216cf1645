"""integrations/ann_benchmarks, used as the runner of ann-benchmarks uses an algorithm."""

import importlib
import itertools
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from faiss.contrib.datasets import SyntheticDataset

yaml = pytest.importorskip("yaml")
pytest.importorskip("sklearn")

MODULE = Path(__file__).parents[1] / "integrations" / "ann_benchmarks"

# What ann-benchmarks' BaseANN has, as far as the runner calls it.
BASE = """
class BaseANN:
    def done(self): pass
    def get_additional(self): return {}
    def __str__(self): return self.name
"""


@pytest.fixture
def algorithm(tmp_path, monkeypatch):
    """The module, where a checkout of ann-benchmarks has it."""
    algorithms = tmp_path / "ann_benchmarks" / "algorithms"
    (algorithms / "base").mkdir(parents=True)
    (algorithms / "base" / "module.py").write_text(BASE)
    shutil.copytree(MODULE, algorithms / "faiss_dpq")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in importlib.sys.modules if name.startswith("ann_benchmarks")]:
        monkeypatch.delitem(importlib.sys.modules, name)
    return importlib.import_module("ann_benchmarks.algorithms.faiss_dpq.module")


def definitions(metric):
    """The constructor, its arguments, and those of each round of queries, from config.yml."""
    (entry,) = yaml.safe_load((MODULE / "config.yml").read_text())["float"]["any"]
    for group in entry["run_groups"].values():
        for (arguments,) in group["args"]:
            yield entry["constructor"], [metric, arguments], list(itertools.product(*group["query_args"]))


def test_names_are_those_that_the_runner_looks_for():
    (entry,) = yaml.safe_load((MODULE / "config.yml").read_text())["float"]["any"]
    assert entry["docker_tag"] == "ann-benchmarks-faiss_dpq"  # install.py makes it of the folder's name
    assert entry["module"] == "ann_benchmarks.algorithms.faiss_dpq"
    assert (MODULE / "Dockerfile").read_text().startswith("FROM ann-benchmarks\n")


@pytest.mark.parametrize(("metric", "kind"), [("euclidean", faiss.METRIC_L2), ("angular", faiss.METRIC_INNER_PRODUCT)])
def test_runs_as_configured(algorithm, metric, kind):
    data = SyntheticDataset(16, 0, 1500, 20)
    x, queries = data.get_database().astype(np.float64), data.get_queries().astype(np.float64)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) if metric == "angular" else v for v in (x, queries)]
    exact = faiss.knn(unit[1].astype(np.float32), unit[0].astype(np.float32), 10, metric=kind)[1]
    for constructor, arguments, rounds in definitions(metric):
        algo = getattr(algorithm, constructor)(*arguments)
        algo.fit(x)
        recalls = {}
        for nprobe, rerank in [rounds[0], rounds[-1]]:
            algo.set_query_arguments(nprobe, rerank)
            assert str(algo) == f"FaissDPQ({arguments[1]}, nprobe={nprobe}, rerank={rerank})"
            single = [algo.query(v, 10) for v in queries]
            algo.batch_query(queries, 10)
            batch = algo.get_batch_results()
            assert [list(a) for a in single] == [list(b) for b in batch]
            assert all(len(ids) <= 10 and (ids >= 0).all() for ids in batch)
            recalls[rerank] = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(batch, exact, strict=True)])
        algo.done()
        assert recalls[max(recalls)] > 0.95  # by the vectors themselves
        assert recalls[0] < recalls[max(recalls)]


def test_other_metrics_are_refused(algorithm):
    with pytest.raises(NotImplementedError, match="jaccard"):
        algorithm.FaissDPQ("jaccard", "DPQ4x8")
