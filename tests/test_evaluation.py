"""Retrieval measures against scikit-learn, hand-made cases and loops."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import faiss_dpq
from faiss_dpq.lab import evaluation


def on_a_line(positions):
    """An index of points on a line: a query at 0 finds them by ascending position."""
    index = faiss.IndexFlatL2(1)
    index.add(np.asarray(positions, np.float32)[:, None])
    return index


ORIGIN = np.zeros((1, 1), np.float32)


@pytest.fixture(scope="module")
def coded_digits(digits):
    """Digits in short codes, which tie often: index, queries, and the labels of both."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    index = faiss_dpq.IndexDPQ(64, 3, 4)
    index.train(digits[200:], effort="fast")
    index.add(digits[200:])
    return index, digits[:200], labels[:200], labels[200:]


def loop_average_precision(relevant):
    """AP of one ranking, from its definition."""
    hits, total = 0, 0.0
    for i, is_hit in enumerate(relevant, start=1):
        hits += is_hit
        total += is_hit * hits / i
    return total / hits if hits else 0.0


@pytest.mark.parametrize(
    ("labels", "R", "expected"),
    [
        ([1, 0, 1, 0], None, (1 + 2 / 3) / 2),
        ([1, 0, 1, 0], 2, 1.0),  # divided by the one relevant vector among the first two
        ([1, 0, 1, 0], 1, 1.0),
        ([0, 0, 1, 1], None, (1 / 3 + 2 / 4) / 2),
        ([0, 0, 1, 1], 2, 0.0),
        ([0, 0, 0, 0], None, 0.0),
        ([1, 1, 1, 1], 10, 1.0),  # R beyond the database
    ],
)
def test_average_precision_by_hand(labels, R, expected):
    index = on_a_line([1, 2, 3, 4])
    assert evaluation.mean_average_precision(index, ORIGIN, [1], labels, R) == pytest.approx(expected, abs=1e-15)


def test_precision_and_recall_by_hand():
    index = on_a_line([1, 2, 3, 4])
    xq = np.array([[0], [5]], np.float32)  # the second finds them in reverse
    precision, recall = evaluation.precision_recall(index, xq, [1, 1], [1, 1, 0, 1])
    np.testing.assert_allclose(precision, [1, (2 + 1) / 4, (2 + 2) / 6, 3 / 4])
    np.testing.assert_allclose(recall, [1 / 3, (2 + 1) / 6, (2 + 2) / 6, 1])
    np.testing.assert_array_equal(evaluation.precision_at(index, xq, [1, 1], [1, 1, 0, 1], [4, 2]), precision[[3, 1]])
    assert evaluation.precision_at(index, xq, [1, 1], [1, 1, 0, 1], 2) == precision[1]


def test_a_label_missing_from_the_database_has_no_recall():
    xq = np.zeros((2, 1), np.float32)
    found = evaluation.evaluate(on_a_line([1, 2]), xq, [0, 7], [0, 0])
    np.testing.assert_array_equal(found.average_precision, [1, 0])
    np.testing.assert_array_equal(found.recall, [0.25, 0.5])


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_full_ranking_is_scikit_learns_average_precision(digits, metric):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    index = faiss.IndexFlat(64, metric)
    x = digits + np.random.default_rng(0).normal(0, 0.01, digits.shape).astype(np.float32)  # no equal distances
    index.add(x[100:])
    scores = (
        x[:100] @ x[100:].T if metric == faiss.METRIC_INNER_PRODUCT else -faiss.pairwise_distances(x[:100], x[100:])
    )
    expected = [
        average_precision_score(labels[100:] == label, row) for label, row in zip(labels[:100], scores, strict=True)
    ]
    found = evaluation.evaluate(index, x[:100], labels[:100], labels[100:])
    np.testing.assert_allclose(found.average_precision, expected, rtol=2e-4)
    assert found.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ties_by_threshold_are_scikit_learns_and_do_not_depend_on_the_order(coded_digits, levels):
    index, xq, query_labels, labels = coded_digits
    params = faiss_dpq.SearchParametersDPQ(levels=levels)
    D, I = index.search(xq, index.ntotal, params=params)
    assert all(len(np.unique(row)) < index.ntotal for row in D)
    expected = [
        average_precision_score(labels[ids] == label, -row) for label, ids, row in zip(query_labels, I, D, strict=True)
    ]
    found = evaluation.evaluate(index, xq, query_labels, labels, params=params, ties="threshold")
    np.testing.assert_allclose(found.average_precision, expected, rtol=1e-12)

    order = np.argsort(labels)
    shuffled = faiss_dpq.IndexDPQ.from_codebooks(index.codebooks)
    shuffled.add_sa_codes(index.sa_encode(index.reconstruct_n(0, index.ntotal)[order]))
    again = evaluation.mean_average_precision(
        shuffled, xq, query_labels, labels[order], params=params, ties="threshold"
    )
    assert again == pytest.approx(found.mean_average_precision, abs=1e-4)


@pytest.mark.parametrize("R", [1, 7, 300, None])
def test_order_of_results_is_what_counts_by_default(coded_digits, R):
    index, xq, query_labels, labels = coded_digits
    params = faiss_dpq.SearchParametersDPQ(levels=1)
    _, I = index.search(xq, R or index.ntotal, params=params)
    relevant = labels[I] == query_labels[:, None]
    found = evaluation.evaluate(index, xq, query_labels, labels, R, params)
    np.testing.assert_allclose(found.average_precision, list(map(loop_average_precision, relevant)), rtol=1e-12)
    np.testing.assert_allclose(found.precision, relevant.cumsum(1).mean(0) / np.arange(1, I.shape[1] + 1))
    n_relevant = (labels == query_labels[:, None]).sum(1)
    np.testing.assert_allclose(found.recall, (relevant.cumsum(1) / n_relevant[:, None]).mean(0))
    if R is None:
        ranking = -np.arange(index.ntotal)
        expected = [average_precision_score(row, ranking) for row in relevant]
        np.testing.assert_allclose(found.average_precision, expected, rtol=1e-12)


@given(st.data())
def test_several_labels_are_relevant_if_any_is_shared(data):
    n, nq, c = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x, xq = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(nq, 4)).astype(np.float32)
    labels, query_labels = rng.random((n, c)) < 0.3, rng.random((nq, c)) < 0.3
    R = data.draw(st.integers(1, n))
    index = faiss.IndexFlatL2(4)
    index.add(x)
    _, I = index.search(xq, R)
    relevant = [
        [bool(set(np.flatnonzero(labels[i])) & set(np.flatnonzero(wanted))) for i in ids]
        for ids, wanted in zip(I, query_labels, strict=True)
    ]
    kind = data.draw(st.sampled_from([bool, np.float32, np.int64]))
    found = evaluation.evaluate(index, xq, query_labels.astype(kind), labels.astype(kind), R)
    np.testing.assert_allclose(found.average_precision, list(map(loop_average_precision, relevant)), rtol=1e-12)


def test_one_label_is_the_multi_hot_of_one(coded_digits):
    index, xq, query_labels, labels = coded_digits
    one, several = (
        evaluation.evaluate(index, xq, wanted, given_labels, 50)
        for wanted, given_labels in ((query_labels, labels), (np.eye(10)[query_labels], np.eye(10)[labels]))
    )
    for name in ("average_precision", "precision", "recall"):
        np.testing.assert_array_equal(getattr(one, name), getattr(several, name))


@pytest.mark.parametrize("several", [False, True])
def test_blocks_of_queries_do_not_show(coded_digits, monkeypatch, several):
    index, xq, query_labels, labels = coded_digits
    if several:
        query_labels, labels = np.eye(10)[query_labels], np.eye(10)[labels]
    whole = evaluation.evaluate(index, xq, query_labels, labels, 100)
    sizes = []
    search = index.search
    monkeypatch.setattr(evaluation, "_BLOCK_NUMBERS", 3 * (index.ntotal if several else 100))
    monkeypatch.setattr(type(index), "search", lambda self, x, k, **kw: sizes.append(len(x)) or search(x, k, **kw))
    blocks = evaluation.evaluate(index, xq, query_labels, labels, 100)
    assert set(sizes) == {3, 2}  # 200 = 66 * 3 + 2: memory is bounded by the block
    np.testing.assert_allclose(blocks.average_precision, whole.average_precision, rtol=1e-12)
    np.testing.assert_allclose(blocks.precision, whole.precision, rtol=1e-12)


def test_what_a_search_does_not_find_is_not_relevant():
    sel = faiss.IDSelectorRange(1, 3)
    found = evaluation.evaluate(
        on_a_line([1, 2, 3, 4]), ORIGIN, [1], [1, 0, 1, 1], params=faiss.SearchParameters(sel=sel)
    )
    np.testing.assert_array_equal(found.average_precision, [1 / 2])
    np.testing.assert_allclose(found.precision, [0, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(found.recall, [0, 1 / 3, 1 / 3, 1 / 3])


def test_recall_at_counts_the_true_nearest():
    index = on_a_line([1, 2, 3, 4])
    xq = np.array([[0], [5], [0]], np.float32)
    nearest = np.array([[0, 1], [2, 1], [3, 0]])  # found first, second, fourth
    np.testing.assert_allclose(evaluation.recall_at(index, xq, nearest, (1, 2, 4)), [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(evaluation.recall_at(index, xq, nearest[:, 0], [2]), [2 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_labels": [1, 2]}, "xq has 1 rows and query_labels 2"),
        ({"database_labels": [1, 2, 3]}, "database_labels has 3 rows, the index holds 4"),
        ({"database_labels": np.eye(4)}, r"query_labels has shape \(1,\) and database_labels \(4, 4\)"),
        ({"query_labels": np.ones((1, 3)), "database_labels": np.ones((4, 2))}, r"\(1, 3\).*\(4, 2\)"),
        ({"query_labels": [0.5]}, "query_labels has shape .* float64"),
        ({"query_labels": -np.ones((1, 2)), "database_labels": np.ones((4, 2))}, "query_labels has negative"),
        ({"R": 0}, "R is 0"),
        ({"ties": "fair"}, "ties is 'fair'"),
        ({"index": faiss.IndexFlatL2(1)}, "index is empty"),
        ({"xq": np.empty((0, 1), np.float32), "query_labels": np.empty(0, int)}, "xq has 0 rows"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arguments = {"index": on_a_line([1, 2, 3, 4]), "xq": ORIGIN, "query_labels": [1], "database_labels": [1, 0, 1, 0]}
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(**{**arguments, **changes})


def test_ids_beyond_the_labels_are_an_error():
    index = faiss.IndexIDMap2(faiss.IndexFlatL2(1))
    index.add_with_ids(np.zeros((1, 1), np.float32), np.array([9]))
    with pytest.raises(ValueError, match="the id 9, database_labels has 1 rows"):
        evaluation.evaluate(index, ORIGIN, [1], [1])


@pytest.mark.parametrize("ranks", [[0], [5], [], [1.5]])
def test_precision_at_refuses_ranks_outside_the_database(ranks):
    with pytest.raises(ValueError, match="ranks is"):
        evaluation.precision_at(on_a_line([1, 2, 3, 4]), ORIGIN, [1], [1, 0, 1, 0], ranks)


def test_recall_at_refuses_what_does_not_fit():
    index = on_a_line([1, 2])
    with pytest.raises(ValueError, match="nearest 2"):
        evaluation.recall_at(index, ORIGIN, np.zeros(2, int), [1])
    with pytest.raises(ValueError, match="ranks is"):
        evaluation.recall_at(index, ORIGIN, np.zeros(1, int), [0, 1])
