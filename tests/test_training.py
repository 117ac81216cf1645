"""Training lowers the progressive loss, repeats exactly, and is no worse than FAISS's residual quantizer."""

import pickle
import sys

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import training
from faiss_dpq.codec import ProgressiveQuantizer
from faiss_dpq.training import alternation, least_squares, registry, shrinkage, structure


def prefix_errors(codebooks, x, beam_size):
    quantizer = ProgressiveQuantizer(codebooks)
    codes = quantizer.encode(x, beam_size)
    M = len(codebooks)
    return [((x - quantizer.decode(codes[:, : l + 1])) ** 2).sum(1).mean() for l in range(M)]


def test_stats_tell_what_training_did(digits):
    index = faiss_dpq.IndexDPQ(64, 4, 5)
    assert index.train_stats is None
    index.train(digits)
    stats = index.train_stats
    assert (stats.n, len(stats.mse), stats.seconds > 0) == (len(digits), 4, True)
    assert len(stats.history) == stats.iterations + 1
    assert min(stats.history) < stats.history[0]
    assert stats.mse == sorted(stats.mse, reverse=True)


def test_same_seed_same_codebooks_whatever_the_threads(digits, threads):
    effort = training.Effort(iterations=4, beam_size=4, max_points_per_centroid=64)
    results = []
    for n_threads in (1, 2, 2):
        threads(n_threads)
        codebooks, stats = training.train_codebooks(digits, 3, 4, effort=effort)
        assert stats.n == 64 * 16
        results.append(codebooks)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[1], results[2])
    other = training.train_codebooks(digits, 3, 4, effort=effort, seed=5)[0]
    assert (other != results[0]).any()


def test_the_seed_is_that_of_faiss_clustering_parameters(digits):
    def trained(seed):
        index = faiss_dpq.IndexDPQ(64, 2, 4)
        index.rq.cp.seed = seed
        index.train(digits, effort="fast")
        return index.codebooks

    np.testing.assert_array_equal(trained(1), trained(1))
    assert (trained(1) != trained(2)).any()


def test_not_worse_than_faiss_at_the_same_encoder(digits):
    order = np.random.default_rng(0).permutation(len(digits))
    x, unseen = digits[order[:1400]], digits[order[1400:]]
    stock = faiss.ResidualQuantizer(64, 4, 5)
    stock.train(x)
    theirs = faiss.vector_to_array(stock.codebooks).reshape(4, 32, 64)
    ours, _ = training.train_codebooks(x, 4, 5)
    for beam_size in (1, 5, 16):
        for data in (x, unseen):
            assert prefix_errors(ours, data, beam_size)[-1] < prefix_errors(theirs, data, beam_size)[-1]


def test_the_solve_is_the_minimum_of_the_progressive_loss(digits):
    rng = np.random.default_rng(0)
    x, M, K = digits[:400], 3, 8
    codes = rng.integers(0, K, (len(x), M)).astype(np.uint16)
    w = np.array([3.0, 1.0, 2.0])
    # The same problem written out: one block of equations a prefix length.
    one_hot = np.zeros((len(x), M, K))
    one_hot[np.arange(len(x))[:, None], np.arange(M), codes] = 1
    rows = [np.sqrt(w[l]) * np.where(np.arange(M)[:, None] <= l, one_hot, 0).reshape(len(x), M * K) for l in range(M)]
    targets = [np.sqrt(w[l]) * x for l in range(M)]
    expected, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)
    last = rng.standard_normal((M, K, 64)).astype(np.float32)
    solved = least_squares.solve(x, codes, last, w, ridge=0.0)
    np.testing.assert_allclose(solved.reshape(M * K, 64), expected, atol=1e-3)


def test_conjugate_gradients_reach_the_same_codebooks(digits, monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, (len(digits), 3)).astype(np.uint16)
    last = rng.standard_normal((3, 8, 64)).astype(np.float32)
    arguments = (digits, codes, last, np.array([3.0, 1.0, 2.0]), 0.5)
    dense = least_squares.solve(*arguments)
    monkeypatch.setattr(least_squares, "_DENSE_UNKNOWNS", 0)
    monkeypatch.setattr(least_squares, "_GRADIENT_STEPS", 60)
    np.testing.assert_allclose(least_squares.solve(*arguments), dense, atol=1e-3)


def test_training_without_the_normal_matrix_is_as_good(digits, monkeypatch):
    _, dense = training.train_codebooks(digits, 3, 4, effort="fast")
    monkeypatch.setattr(least_squares, "_DENSE_UNKNOWNS", 0)
    _, matrix_free = training.train_codebooks(digits, 3, 4, effort="fast")
    assert matrix_free.history[0] == dense.history[0]
    assert matrix_free.mse[-1] == pytest.approx(dense.mse[-1], rel=0.02)
    assert matrix_free.mse[-1] != dense.mse[-1]


def test_the_codebooks_that_code_vectors_held_out_best_are_kept(digits, monkeypatch):
    seen = []

    def scripted_error(quantizer, held_out, beam_size):
        seen.append(quantizer.codebooks)
        return {0: 9.0, 3: 5.0, 6: 4.0}.get(len(seen) - 1, 7.0)

    monkeypatch.setattr(alternation, "coding_error", scripted_error)
    codebooks, stats = training.train_codebooks(digits, 2, 4, effort=training.Effort(32, 4, 256))
    np.testing.assert_array_equal(codebooks, seen[6])
    # Turns 17 to 24, a quarter of 32, are no better than turns 9 to 16.
    assert stats.iterations == 24
    assert stats.history == [9, 7, 7, 5, 7, 7, 4, *[7] * 18]


def test_training_goes_on_while_errors_fall_from_above_those_of_the_start(digits, monkeypatch):
    errors = iter([9, 8.5, *np.linspace(12, 8, 31)])
    monkeypatch.setattr(alternation, "coding_error", lambda *_: next(errors))
    _, stats = training.train_codebooks(digits, 2, 4, effort=training.Effort(32, 4, 256))
    assert stats.iterations == 32 and min(stats.history) == stats.history[-1] == 8


def test_vectors_held_out_are_not_learned_from(digits, monkeypatch):
    held_out, learned = [], []
    error, kmeans = alternation.coding_error, structure.residual_kmeans
    monkeypatch.setattr(alternation, "coding_error", lambda q, x, beam: held_out.append(x) or error(q, x, beam))
    monkeypatch.setattr(structure, "residual_kmeans", lambda x, *rest: learned.append(x) or kmeans(x, *rest))
    training.train_codebooks(digits, 2, 4, effort="fast")
    assert len(held_out[0]) == len(digits) // 20
    together = np.concatenate([held_out[0], learned[0]])
    np.testing.assert_array_equal(together[np.lexsort(together.T)], digits[np.lexsort(digits.T)])


def test_vectors_are_moved_by_the_error_of_another_of_their_group():
    groups = np.random.default_rng(0).integers(0, 9, 200).astype(np.uint16)
    groups[7] = 20
    others = alternation._others(groups, np.random.default_rng(1))
    assert sorted(others) == list(range(200))
    np.testing.assert_array_equal(groups[others], groups)
    np.testing.assert_array_equal(np.flatnonzero(others == np.arange(200)), [7])
    assert (others != alternation._others(groups, np.random.default_rng(2))).any()


@pytest.mark.parametrize("offset", [0, 1e5])
def test_kmeans_starts_from_the_directions_of_most_variance(digits, offset):
    """Residual k-means, rotated and back, codes at least as well as plain k-means level upon level."""
    order = np.random.default_rng(0).permutation(len(digits))
    x = np.repeat(digits[order], 4, axis=1) + np.float32(offset)  # 256 dimensions
    codebooks, _ = training.train_codebooks(x, 3, 5, effort=training.Effort(0, 1, 256))
    residuals, plain = x.astype(np.float64) - offset, []
    for level in range(3):
        kmeans = faiss.Kmeans(256, 32, niter=10, seed=1234 + level)
        kmeans.train(residuals.astype(np.float32))
        plain.append(kmeans.centroids)
        residuals -= kmeans.centroids[kmeans.index.search(residuals.astype(np.float32), 1)[1][:, 0]]
    codes = ProgressiveQuantizer(codebooks).encode(x, 1)
    error = ((x - ProgressiveQuantizer(codebooks).decode(codes)) ** 2).sum(1).mean()
    assert error < 0.99 * (residuals**2).sum(1).mean()


@pytest.mark.parametrize(
    "x",
    [
        np.ones((64, 8)),
        np.random.default_rng(0).standard_normal((32, 64)),
        np.random.default_rng(0).standard_normal((60, 1)),
        np.pad(np.random.default_rng(0).standard_normal((300, 3)), ((0, 0), (0, 9))),
        np.random.default_rng(0).integers(0, 2, (200, 3)),
    ],
    ids=["all the same", "fewer than dimensions", "one dimension", "empty dimensions", "few different"],
)
def test_degenerate_vectors_train(x):
    index = faiss_dpq.IndexDPQ(x.shape[1], 3, 4)
    index.train(x)
    assert np.isfinite(index.codebooks).all()
    assert index.train_stats.mse[-1] <= ((x - x.mean(0)) ** 2).sum(1).mean() + 1e-3


@pytest.mark.parametrize("n", [300, 600])
def test_few_vectors_teach_more_than_they_teach_faiss(digits, n, M=8):
    order = np.random.default_rng(0).permutation(len(digits))
    x, unseen = digits[order[:n]], digits[order[1300:]]
    stock = faiss.ResidualQuantizer(64, M, 8)
    stock.cp.min_points_per_centroid = 1
    stock.train(x)
    theirs = faiss.vector_to_array(stock.codebooks).reshape(M, 256, 64)
    ours, stats = training.train_codebooks(x, M, 8)
    assert stats.iterations == 0  # too few to fit all codewords together
    assert prefix_errors(ours, unseen, 16)[-1] < prefix_errors(theirs, unseen, 16)[-1]


def test_weights_favour_their_prefix(digits):
    short, _ = training.train_codebooks(digits, 4, 4, weights=[100, 1, 1, 1])
    long, _ = training.train_codebooks(digits, 4, 4, weights=[0.01, 0.01, 0.01, 1])
    short_errors, long_errors = (prefix_errors(c, digits, 8) for c in (short, long))
    assert short_errors[0] < long_errors[0]
    assert long_errors[3] < short_errors[3]


def test_index_passes_weights_and_effort_on(digits):
    index = faiss_dpq.IndexDPQ(64, 2, 4)
    index.train(digits, effort="fast", weights=[1, 5], shrinkage=1)
    assert index.train_stats.iterations == training.EFFORTS["fast"].iterations
    expected, _ = training.train_codebooks(digits, 2, 4, effort="fast", weights=[1, 5])
    np.testing.assert_array_equal(index.codebooks, expected)
    other, _ = training.train_codebooks(digits, 2, 4, effort="fast")
    assert (other != expected).any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"effort": "more"}, "effort is 'more', expected one of 'fast', 'default', 'best'"),
        ({"weights": [1, 1, 1]}, "expected M=2 finite numbers"),
        ({"weights": [1, 0]}, "the last > 0"),
        ({"weights": [-1, 1]}, ">= 0"),
        ({"weights": [np.nan, 1]}, "finite"),
    ],
)
def test_bad_arguments_leave_the_index_as_it_was(digits, arguments, message):
    index = faiss_dpq.IndexDPQ(64, 2, 4)
    with pytest.raises(ValueError, match=message):
        index.train(digits, **arguments)
    assert not index.is_trained


def test_more_effort_lowers_the_error_on_unseen_vectors(digits):
    order = np.random.default_rng(0).permutation(len(digits))
    x, unseen = digits[order[:1400]], digits[order[1400:]]
    errors = [
        prefix_errors(training.train_codebooks(x, 4, 5, effort=effort)[0], unseen, 32)[-1]
        for effort in (training.Effort(0, 4, 256), "fast", "default")
    ]
    assert errors[0] > errors[1] > errors[2]


def test_moving_the_vectors_helps_on_unseen_ones(digits, monkeypatch):
    order = np.random.default_rng(0).permutation(len(digits))
    x, unseen = digits[order[:600]], digits[order[600:]]
    moved, _ = training.train_codebooks(x, 4, 5)
    annealed = structure.annealed
    monkeypatch.setattr(structure, "annealed", lambda *args: annealed(*args[:-1], 0 * args[-1]))
    unmoved, _ = training.train_codebooks(x, 4, 5)
    assert prefix_errors(moved, unseen, 32)[-1] < prefix_errors(unmoved, unseen, 32)[-1]


def test_every_prefix_is_nearly_as_good_as_a_training_of_that_length(digits):
    whole = prefix_errors(training.train_codebooks(digits, 6, 4)[0], digits, 32)
    for levels in (1, 2, 4):
        alone, _ = training.train_codebooks(digits, levels, 4)
        assert whole[levels - 1] < 1.15 * prefix_errors(alone, digits, 32)[-1]


def test_as_many_vectors_as_codewords(digits):
    index = faiss_dpq.IndexDPQ(64, 2, 5)
    index.train(digits[:32])
    assert index.train_stats.mse[0] == pytest.approx(0, abs=1e-3)


def test_verbose_prints_every_step_and_silence_is_the_default(digits, capfd):
    index = faiss_dpq.IndexDPQ(64, 2, 3)
    index.train(digits)
    assert capfd.readouterr() == ("", "")
    index = faiss_dpq.IndexDPQ(64, 2, 3)
    index.verbose = True
    index.train(digits)
    out = capfd.readouterr().out
    assert out.count("IndexDPQ.train: step") == 2 + index.train_stats.iterations + 1


def test_unused_codewords_go_to_the_worst_vectors(digits):
    rng = np.random.default_rng(0)
    x = digits[:200]
    codebooks = np.stack([x[rng.choice(200, 8)], 5 * rng.standard_normal((8, 64)).astype(np.float32)])
    codebooks[0, 3] = codebooks[1, 5] = 1000  # nearest to nothing
    codes = ProgressiveQuantizer(codebooks).encode(x, 8)
    dead = [(level, k) for level in range(2) for k in range(8) if k not in codes[:, level]]
    errors = x - ProgressiveQuantizer(codebooks).decode(codes)
    worst = np.argsort(-(errors**2).sum(1), kind="stable")[: len(dead)]
    assert {(0, 3), (1, 5)} <= set(dead)
    before = codes.copy()
    revived = alternation._revived(codebooks, codes, errors)
    for (level, k), vector in zip(dead, worst, strict=True):
        assert codes[vector, level] == k
    np.testing.assert_allclose(ProgressiveQuantizer(revived).decode(codes[worst]), x[worst], atol=1e-3)
    assert (codes != before).sum() == len(dead)
    unchanged = np.ones((2, 8), bool)
    unchanged[tuple(zip(*dead, strict=True))] = False
    np.testing.assert_array_equal(revived[unchanged], codebooks[unchanged])
    assert alternation._revived(codebooks, np.tile(np.arange(8)[:, None], (1, 2)), errors) is codebooks


def test_sgd_goes_on_from_least_squares(digits):
    index, again, start = (faiss_dpq.IndexDPQ(64, 3, 4) for _ in range(3))
    index.train(digits, trainer="sgd", effort="fast")
    again.train(digits, trainer="sgd", effort="fast")
    start.train(digits, effort="fast")
    np.testing.assert_allclose(index.codebooks, again.codebooks, rtol=1e-3, atol=1e-3)  # torch's threads round anew
    assert np.abs(index.codebooks - start.codebooks).max() > 0.1
    assert index.train_stats.mse[-1] < 1.1 * start.train_stats.mse[-1]


def test_sgd_says_what_is_missing_before_it_works(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("faiss_dpq.nn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(faiss_dpq, "nn", raising=False)
    monkeypatch.delitem(registry._methods, "sgd", raising=False)
    monkeypatch.setattr(structure, "residual_kmeans", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(ImportError, match="deep"):
        faiss_dpq.IndexDPQ(64, 3, 4).train(digits, trainer="sgd")


def test_unknown_trainer_is_refused(digits):
    with pytest.raises(ValueError, match="trainer is 'adam'"):
        faiss_dpq.IndexDPQ(64, 3, 4).train(digits, trainer="adam")


# ---- shrinkage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directions():
    """Unit vectors around some directions."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 24))[rng.integers(0, 40, 3000)] + rng.standard_normal((3000, 24))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_shrinkage_is_the_mildest_of_those_that_rank_about_best(directions, monkeypatch):
    monkeypatch.setattr(shrinkage, "_RANKED", 700)
    monkeypatch.setattr(shrinkage, "_QUERIES", 150)
    codebooks, _ = training.train_codebooks(directions, 3, 4, effort="fast")
    quantizer = ProgressiveQuantizer(codebooks)
    base = directions[np.random.default_rng(9).permutation(3000)[:700]]
    centre = codebooks[0].mean(0)
    decoded = quantizer.decode(quantizer.encode(base, 4))
    found = []
    for s in shrinkage.SHRINKAGES:
        moved = centre + s * (decoded - centre)
        found.append([])
        for i, query in enumerate(base[:150]):
            others = np.arange(700) != i
            nearest = np.where(others, ((base - query) ** 2).sum(1), np.inf).argmin()
            distances = ((moved - query) ** 2).sum(1)
            found[-1].append(1 / (1 + (distances[others] < distances[nearest] * (1 - 1e-6)).sum()))
    found = np.array(found)
    behind = found[found.mean(1).argmax()] - found
    about_best = [s for s, b in zip(shrinkage.SHRINKAGES, behind, strict=True) if b.mean() <= b.std() / 150**0.5 / 2]
    chosen, _, _ = training.Ranking(directions, faiss.METRIC_L2, 4, 9).choice(quantizer, None, 0.0)
    assert chosen == about_best[0]
    assert chosen < 1


def test_train_shrinks_what_a_search_sees():
    directions = np.random.default_rng(0).standard_normal((9000, 24)).astype(np.float32)
    x, base, queries = np.split(directions / np.linalg.norm(directions, axis=1, keepdims=True), 3)
    index, plain = faiss_dpq.IndexDPQ(24, 4, 4), faiss_dpq.IndexDPQ(24, 4, 4)
    index.train(x)
    plain.train(x, shrinkage=1)
    assert (plain.shrinkage, plain.train_stats.shrinkage) == (1, 1)
    assert index.shrinkage == pytest.approx(index.train_stats.shrinkage)
    assert index.train_stats.mse == plain.train_stats.mse
    for each in (index, plain):
        each.add(base)
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes), faiss.vector_to_array(plain.codes))
    centre = plain.codebooks[0].mean(0)
    expected = centre + index.shrinkage * (plain.reconstruct_n(0, 3000) - centre)
    np.testing.assert_allclose(index.reconstruct_n(0, 3000), expected, atol=1e-6)
    nearest = faiss.knn(queries, base, 1)[1]
    recall, without = ((each.search(queries, 20)[1] == nearest).any(1).mean() for each in (index, plain))
    assert recall > without
    D, I = index.search(queries, 5)
    np.testing.assert_allclose(D, ((queries[:, None] - expected[I]) ** 2).sum(2), rtol=1e-4)


@pytest.mark.parametrize("copy", ["file", "serialized", "clone", "pickle", "truncate", "stock object"])
def test_copies_encode_as_the_index_does(directions, tmp_path, copy):
    index = faiss_dpq.IndexDPQ(24, 2, 4)
    index.train(directions, effort="fast", shrinkage=0.8, parallel_weight=0)  # which stock copies lose
    if copy == "file":
        faiss_dpq.write_index(index, str(tmp_path / "index"))
        other = faiss_dpq.read_index(str(tmp_path / "index"))
    elif copy == "serialized":
        other = faiss_dpq.deserialize_index(faiss.serialize_index(index))
    elif copy == "clone":
        other = faiss_dpq.clone_index(index)
    elif copy == "pickle":
        other = pickle.loads(pickle.dumps(index))
    elif copy == "truncate":
        other = index.truncate(2)
    else:
        other = faiss_dpq.downcast_index(faiss.deserialize_index(faiss.serialize_index(index)))
    assert other.shrinkage == index.shrinkage == pytest.approx(0.8)
    np.testing.assert_array_equal(other.sa_encode(directions), index.sa_encode(directions))


def test_only_l2_distances_are_shrunk(directions):
    index = faiss_dpq.IndexDPQ(24, 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(directions, effort="fast", shrinkage=0.8)
    assert index.shrinkage == 1
    stock = faiss.IndexResidualQuantizer(24, 2, 4, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_from_LUT)
    stock.train(directions)
    assert faiss_dpq.downcast_index(stock).shrinkage == 1
    index = faiss_dpq.IndexDPQ(24, 2, 4)
    index.train(directions, effort="fast", shrinkage=0.8)
    super(faiss_dpq.IndexDPQ, index).train(directions)  # FAISS's own training knows of none
    assert index.shrinkage == 1


@pytest.mark.parametrize("shrinkage", [0, -1, 1.01, float("nan"), float("inf")])
def test_a_shrinkage_outside_its_range_is_refused(directions, shrinkage):
    index = faiss_dpq.IndexDPQ(24, 2, 4)
    with pytest.raises(ValueError, match=r"shrinkage is .*, expected above 0 and at most 1"):
        index.train(directions, shrinkage=shrinkage)
    assert not index.is_trained
    index.train(directions, effort="fast", shrinkage=0.8)
    index.rq.norm_max = shrinkage
    if shrinkage == shrinkage:  # not NaN, which says 1
        with pytest.raises(RuntimeError, match=r"rq.norm_max, the shrinkage, is"):
            faiss_dpq.deserialize_index(faiss.serialize_index(index))


def test_more_iterations_of_k_means_leave_less_error(digits):
    few, many = (
        training.train_codebooks(digits, 2, 5, weights=[2, 1], effort=training.Effort(0, 1, 256, kmeans_iterations=n))
        for n in (1, 10)
    )
    assert few[1].mse[0] > many[1].mse[0]
    default = training.train_codebooks(digits, 2, 5, weights=[2, 1], effort=training.Effort(0, 1, 256))
    np.testing.assert_array_equal(default[0], many[0])
