"""`faiss_dpq.suggest`: it measures what the index does, recommends what follows from it, and says how sure it is."""

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.cli import main
from faiss_dpq.lab import intervals, trial


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Less work: fewer vectors are stored and trained on, with one turn of training."""
    monkeypatch.setattr(trial, "_STORED", (1500, 1500))
    monkeypatch.setattr(trial, "_TRAINED", (600, 600))
    monkeypatch.setattr(trial, "_QUERIES", 200)
    monkeypatch.setattr(trial, "_EFFORT", faiss_dpq.Effort(1, 1, 640, kmeans_iterations=1))


@pytest.fixture(scope="module")
def x():
    """Vectors of 12 dimensions in clusters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 12)) * 3
    return (centres[rng.integers(60, size=5000)] + rng.standard_normal((5000, 12))).astype(np.float32)


@pytest.fixture(scope="module")
def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_one_number_of_bytes_is_measured_between_half_and_double(x, capsys):
    found = faiss_dpq.suggest(x, 4)
    assert [row.size for row in found.rows] == [2, 4, 8]
    assert (found.factory, found.metric, found.best.size) == ("DPQ4x8", faiss.METRIC_L2, 4)
    assert (found.n, found.n_measured, found.n_trained, found.n_queries, found.d) == (5000, 1500, 600, 200, 12)
    at_10 = [row.recall_at_k.value for row in found.rows]
    assert at_10 == sorted(at_10)
    assert at_10[0] < at_10[-1]
    for row in found.rows:
        assert row.recall_at_1.low <= row.recall_at_1.value <= row.recall_at_1.high
        assert row.expected_at_k.value <= row.recall_at_k.value  # among more vectors
        assert row.memory >= row.size * found.n
    index = faiss_dpq.index_factory(found.d, found.factory, found.metric)
    assert index.sa_code_size() == 4
    assert capsys.readouterr() == ("", "")


def test_what_is_measured_is_what_the_index_finds(x):
    """Where all is known: queries are given, and all vectors are used."""
    queries, base = x[:100], x[100:1600]
    found = faiss_dpq.suggest(base, [3], k=5, queries=queries, seed=9)
    order = np.random.default_rng(9).permutation(1500)
    index = faiss_dpq.IndexDPQ(12, 3, 8)
    index.rq.cp.seed = 9 + 1234
    index.train(base[order[:600]], effort=trial._EFFORT)
    index.add(base[order])
    hits = index.search(queries, 5)[1] == faiss.knn(queries, base[order], 1)[1]
    (row,) = (row for row in found.rows if row.size == 3)
    assert row.recall_at_1.value == hits[:, 0].mean()
    assert row.recall_at_k.value == hits.any(axis=1).mean()
    assert row.expected_at_k == row.recall_at_k  # of as many vectors as were measured


def test_recall_asks_for_the_fewest_bytes_that_reach_it(x):
    found = faiss_dpq.suggest(x, recall=0.6)
    assert found.best.expected_at_k.value >= 0.6
    shorter = [row for row in found.rows if row.size < found.best.size]
    assert all(row.expected_at_k.value < 0.6 for row in shorter)
    assert "the fewest that were tried with R@10 of 0.6 or more" in found.notes[0]
    out_of_reach = faiss_dpq.suggest(x, bytes=2, recall=1.0)
    assert out_of_reach.best.size == 2
    assert "No length that was tried reaches R@10 1" in out_of_reach.notes[0]


def test_unit_vectors_are_tried_with_both_metrics(unit, x):
    found = faiss_dpq.suggest(unit, 2)
    both = [row for row in found.rows if row.size == 2]
    assert {row.metric for row in both} == {faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT}
    assert found.metric == max(both, key=lambda row: row.recall_at_1.value).metric
    assert any("The vectors have length 1" in note for note in found.notes)
    assert {row.metric for row in faiss_dpq.suggest(x, [2, 3]).rows} == {faiss.METRIC_L2}
    inner = faiss_dpq.suggest(x, [2], metric=faiss.METRIC_INNER_PRODUCT)
    assert 'index_factory(12, "DPQ2x8", faiss.METRIC_INNER_PRODUCT)' in str(inner)


def test_many_vectors_get_inverted_lists(x):
    found = faiss_dpq.suggest(x, [2], n=3_000_000)
    assert found.factory == "IVF8192,DPQ2x8"
    assert any("ask for inverted lists" in note and "nprobe=" in note for note in found.notes)
    assert found.rows[0].memory >= 2 * 3_000_000
    assert trial._lists_of(100_000_000) == 32768
    faiss_dpq.index_factory(12, "IVF32768_HNSW32,DPQ2x8")


def test_mapped_and_half_precision_vectors_are_read_by_rows(x, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    same = faiss_dpq.suggest(x.astype(np.float16).astype(np.float32), [2])
    assert faiss_dpq.suggest(mapped, [2]).rows[0].recall_at_k == same.rows[0].recall_at_k


def test_bad_arguments(x):
    bad = x.copy()
    bad[7, 3] = np.nan
    for message, arguments in [
        (r"bytes is 97, expected whole numbers from 2 to 96", (x, 97)),
        (r"bytes is \[8, 1\]", (x, [8, 1])),
        (r"bytes is 'eight'", (x, "eight")),
        (r"recall is 2, expected a share", (x, 8, 2)),
        (r"k is 0, expected 1 to 5000", (x, 8, None, 0)),
        (r"queries have shape \(3, 4\), expected \(nq, 12\)", (x, 8, None, 10, np.ones((3, 4)))),
        (r"x holds float32 of shape \(999, 12\), .*n >= 1,000", (x[:999],)),
        (r"x: row 7 holds NaN", (np.concatenate([bad[:1000]]), 2)),
    ]:
        with pytest.raises(ValueError, match=message):
            faiss_dpq.suggest(*arguments)


def test_the_command_prints_the_table(x, tmp_path, capsys):
    np.save(tmp_path / "x.npy", x)
    assert main(["suggest", str(tmp_path / "x.npy"), "--bytes", "2", "3", "-k", "5"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["bytes", "metric", "R@1", "R@5"]
    assert [line.split()[0] for line in lines[2:4]] == ["2", "3"]
    assert 'Suggested: faiss_dpq.index_factory(12, "DPQ' in out
    assert err == ""
    assert max(map(len, lines)) <= 140
    assert main(["suggest", str(tmp_path / "x.npy"), "--bytes", "1"]) == 1
    assert "expected whole numbers from 2 to 96" in capsys.readouterr().err


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
def test_intervals_hold_the_truth_95_times_in_100(p):
    rng = np.random.default_rng(1)
    held = [low <= p <= high for _, low, high in (intervals.share(rng.random(300) < p) for _ in range(2000))]
    assert 0.93 <= np.mean(held) <= 0.975
    pairs = rng.random((2000, 300, 2)) < [p, p / 2]
    held = [low <= p / 2 <= high for _, low, high in (intervals.difference(*pair.T) for pair in pairs)]
    assert 0.92 <= np.mean(held) <= 0.975


def test_what_is_expected_of_more_vectors_is_what_is_found(x):
    """Continued from 500, 1,000 and 2,000 vectors to 4,000."""
    queries, base = x[:600], x[600:4600]
    index = faiss_dpq.IndexDPQ(12, 2, 8)
    index.train(base, effort="fast")
    hits = []
    counts = np.array([500, 1000, 2000, 4000])
    for count in counts:
        index.add(base[index.ntotal : count])
        hits.append((index.search(queries, 5)[1] == faiss.knn(queries, base[:count], 1)[1]).any(axis=1))
    value, low, high = intervals.expected(np.array(hits[:3]), counts[:3], 4000)
    found = hits[3].mean()
    assert found < hits[2].mean()
    assert low <= found <= high
    assert abs(value - found) < abs(hits[2].mean() - found)
    assert intervals.expected(np.array(hits), counts, 4000) == intervals.share(hits[3])


def test_expectations_have_no_false_certainty():
    all_found = np.ones((3, 100), bool)
    value, low, high = intervals.expected(all_found, np.array([250, 500, 1000]), 10**6)
    assert low <= intervals.share(all_found[-1]).low < 1
    assert value <= high == 1.0 or high <= 1.0
