"""Shards give what one index gives, whatever they are built from, in how many parts, and whatever went wrong before."""

import os

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq import shards

N, D = 1797, 64


def codec(kind, digits, metric=faiss.METRIC_L2):
    """A trained, empty index."""
    index = faiss_dpq.index_factory(D, kind, metric)
    index.train(digits[:600])
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = 3
    return index


def filled(trained, x):
    index = faiss_dpq.clone_index(trained)
    index.add(x)
    return index


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def trained(digits):
    return codec("DPQ3x4", digits)


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("kind", ["DPQ3x4", "IVF16,DPQ2x4", "PCA16,DPQ2x4", "PCA16,IVF8,DPQ2x4"])
@pytest.mark.parametrize(("n_shards", "rows_per_part"), [(1, 5000), (3, 250), (2, 898)])
def test_results_are_those_of_one_index(tmp_path, digits, kind, metric, n_shards, rows_per_part):
    trained = codec(kind, digits, metric)
    one = filled(trained, digits)
    shards.build_shards(trained, digits, tmp_path, n_shards, rows_per_part=rows_per_part)
    threshold = float(np.median(one.search(digits[:40], 30)[0]))
    for mmap in (False, True):
        index = shards.read_shards(tmp_path, mmap=mmap)
        assert (index.count(), index.ntotal) == (n_shards, N)
        for k in (1, 10, 700):
            assert_same(index.search(digits[:40], k), one.search(digits[:40], k))
        assert_same(index.range_search(digits[:40], threshold), one.range_search(digits[:40], threshold))
    shards.to_one(tmp_path, tmp_path / "one.faiss")
    faiss_dpq.write_index(one, tmp_path / "expected.faiss")
    assert (tmp_path / "one.faiss").read_bytes() == (tmp_path / "expected.faiss").read_bytes()


@settings(max_examples=20)
@given(
    ties=st.integers(1, 40),
    n_shards=st.integers(1, 4),
    rows=st.integers(1, 60),
    k=st.integers(1, 70),
    ivf=st.booleans(),
)
def test_equal_distances_stand_by_id_whatever_the_shards(tmp_path_factory, ties, n_shards, rows, k, ivf):
    rng = np.random.default_rng(ties)
    codebooks = naive.random_codebooks(rng, 2, 4, 5)
    # Few different vectors; centres of lists are corners around the origin, so that lists tie as well.
    if ivf:
        coarse = faiss.IndexFlatL2(5)
        coarse.add(np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32))
        trained = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, np.zeros((1, 2, 5), np.float32))
        trained.nprobe = 10
    else:
        trained = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    x = (rng.standard_normal((ties, 5))[rng.integers(0, ties, 120)] * 2).astype(np.float32)
    ids = rng.permutation(1000)[:120]
    xq = np.concatenate([np.zeros((1, 5)), rng.standard_normal((4, 5))]).astype(np.float32)
    output = tmp_path_factory.mktemp("ties")
    shards.build_shards(trained, x, output, n_shards, rows_per_part=rows, ids=ids)
    order = np.argsort(ids)
    D, places = filled(trained, x[order]).search(xq, 120)
    labels = np.where(places < 0, -1, ids[order][places])
    expected = shards.merge_results([D], [labels], k)
    index = shards.read_shards(output)
    assert_same(index.search(xq, k), expected)
    lims, D, I = index.range_search(xq, 3.0)
    for query in range(len(xq)):
        part = slice(int(lims[query]), int(lims[query + 1]))
        np.testing.assert_array_equal(np.lexsort((I[part], D[part])), np.arange(part.stop - part.start))


def test_one_file_of_vectors_with_ids_of_their_own_is_in_the_order_of_ids(tmp_path, digits):
    ids = np.random.default_rng(0).permutation(10 * N)[:N]
    order = np.argsort(ids)
    for kind in ("DPQ3x4", "IVF16,DPQ2x4"):
        output, trained = tmp_path / kind, codec(kind, digits)
        shards.build_shards(trained, digits, output, 3, rows_per_part=400, ids=ids)
        one = filled(trained, digits[order])
        D, I = one.search(digits[:50], 20)
        I = np.where(I < 0, -1, ids[order][I])
        for on_disk in (False, True) if "IVF" in kind else (False,):
            shards.to_one(output, tmp_path / "one.faiss", on_disk=on_disk)
            assert (tmp_path / "one.faiss.lists").exists() == on_disk
            read = faiss_dpq.read_index(str(tmp_path / "one.faiss"))
            assert read.ntotal == N
            assert_same(read.search(digits[:50], 20), (D, I))
    with pytest.raises(ValueError, match="no inverted lists"):
        shards.to_one(tmp_path / "DPQ3x4", tmp_path / "one.faiss", on_disk=True)


def test_shards_are_files_that_stock_faiss_searches(tmp_path, digits):
    for kind in ("DPQ3x4", "IVF16,DPQ2x4"):
        output, trained = tmp_path / kind, codec(kind, digits)
        manifest = shards.build_shards(trained, digits, output, 2)
        one, merged = filled(trained, digits), faiss.IndexShards(D, False, False)
        stock = [faiss.read_index(str(output / shard["file"])) for shard in manifest["shards"]]
        assert not [index for index in stock if type(index).__module__.startswith("faiss_dpq")]
        for index in stock:
            merged.add_shard(index)
        np.testing.assert_array_equal(merged.search(digits[:30], 1)[1], one.search(digits[:30], 1)[1])


def test_settings_that_change_codes_or_results_go_with_the_shards(tmp_path, digits, trained):
    plain = shards.build_shards(trained, digits, tmp_path / "plain", 2)
    changed = faiss_dpq.clone_index(trained)
    changed.prefix_weight, changed.beam_size, changed.levels = 0.5, 2, 2
    manifest = shards.build_shards(changed, digits, tmp_path / "changed", 2)
    assert manifest["codec"] != plain["codec"]
    index = shards.read_shards(tmp_path / "changed")
    inner = index.at(1).index
    assert (inner.prefix_weight, inner.beam_size, inner.levels) == (0.5, 2, 2)
    assert_same(index.search(digits[:20], 9), filled(changed, digits).search(digits[:20], 9))


def test_search_parameters_and_selectors_go_to_every_shard(tmp_path, digits):
    ids = np.arange(N) * 3
    for kind in ("DPQ3x4", "IVF16,DPQ2x4"):
        trained = codec(kind, digits)
        output = tmp_path / kind
        shards.build_shards(trained, digits, output, 3, ids=ids)
        sel = faiss.IDSelectorBatch(ids[::2])
        if kind == "DPQ3x4":
            params = faiss_dpq.SearchParametersDPQ(levels=2, sel=sel)
            one = faiss_dpq.IndexIDMap(faiss_dpq.clone_index(trained))
        else:
            params = faiss_dpq.SearchParametersIVFDPQ(levels=1, nprobe=16, sel=sel)
            one = faiss_dpq.clone_index(trained)
        one.add_with_ids(digits, ids)
        assert_same(
            shards.read_shards(output).search(digits[:30], 8, params=params), one.search(digits[:30], 8, params=params)
        )


def test_merging_is_by_distance_and_id_with_what_is_missing_last():
    far = np.finfo(np.float32).max
    D = [np.array([[1, 3], [far, far]], np.float32), np.array([[1, 2], [5, far]], np.float32)]
    I = [np.array([[7, 1], [-1, -1]]), np.array([[3, 9], [4, -1]])]
    assert_same(shards.merge_results(D, I, 3), ([[1, 1, 2], [5, far, far]], [[3, 7, 9], [4, -1, -1]]))
    assert_same(shards.merge_results(D[::-1], I[::-1], 3), shards.merge_results(D, I, 3))
    D = [np.array([[4, 1]], np.float32), np.array([[4, -far]], np.float32)]
    I = [np.array([[8, 1]]), np.array([[2, -1]])]
    products = shards.merge_results(D, I, 5, faiss.METRIC_INNER_PRODUCT)
    assert_same(products, ([[4, 4, 1, -far, -far]], [[2, 8, 1, -1, -1]]))


@pytest.mark.parametrize("size", [1, 7, 130, 3000])
def test_lists_of_vectors_do_not_depend_on_how_many_come_at_a_time(size):
    """FAISS's own products do: of vectors in the middle between two centres, half would be in the other list."""
    rng = np.random.default_rng(1)
    pairs = np.repeat(rng.standard_normal((20, 1, 7)), 2, axis=1)
    pairs[:, 1] += 0.01 * rng.standard_normal((20, 7))
    coarse = faiss.IndexFlatL2(7)
    coarse.add(pairs.reshape(40, 7).astype(np.float32))
    x = pairs.mean(axis=1)[rng.integers(0, 20, 20_000)].astype(np.float32)
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, naive.random_codebooks(rng, 2, 4, 7))
    whole, n = index.sa_encode(x), 400 if size == 1 else 4000
    cut = [index.sa_encode(x[start : min(start + size, n)]) for start in range(0, n, size)]
    np.testing.assert_array_equal(np.concatenate(cut), whole[:n])


def test_a_sample_is_even_and_the_same_for_a_seed(tmp_path, digits):
    np.save(tmp_path / "a.npy", digits[:1000])
    np.save(tmp_path / "b.npy", digits[1000:])
    first, second = (shards.sample_sources(tmp_path, 300, seed) for seed in (1, 2))
    np.testing.assert_array_equal(shards.sample_sources([digits[:1000], digits[1000:]], 300, 1), first)
    assert first.shape == second.shape == (300, D)
    assert (first != second).any()
    numbered = np.repeat(np.arange(N, dtype=np.float32)[:, None], 2, axis=1)
    drawn = shards.sample_sources([numbered[:7], numbered[7:]], 300, 5)[:, 0]
    stretch = np.array([N * i // 300 for i in range(301)])
    assert ((stretch[:-1] <= drawn) & (drawn < stretch[1:])).all()  # one from each
    np.testing.assert_array_equal(shards.sample_sources(numbered, 10**6)[:, 0], np.arange(N))
    with pytest.raises(ValueError, match="n is 0"):
        shards.sample_sources(numbered, 0)


def test_an_executor_of_processes_builds_the_same(tmp_path, digits, trained):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    here = shards.build_shards(trained, digits, tmp_path / "here", 2, rows_per_part=300)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        there = shards.build_shards(trained, digits, tmp_path / "there", 2, rows_per_part=300, executor=pool)
    assert there == here
    assert not [name for name in os.listdir(tmp_path / "there") if name.startswith(".")]
