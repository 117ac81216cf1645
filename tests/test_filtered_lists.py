"""Searches of inverted lists with selectors, and lists that are probed until there are enough results."""

import faiss
import numpy as np
import pytest
from ivf_model import assert_finds, filled, probed
from naive import METRICS, normal

import faiss_dpq
from faiss_dpq import _kernels

N, NLIST = 6000, 12
SHARES = [0.0, 0.002, 0.03, 0.2, 0.7, 1.0]


def bitmap(members):
    return faiss.IDSelectorBitmap(np.packbits(members, bitorder="little"))


@pytest.fixture(scope="module")
def indexes():
    """By metric and levels: an index, its model and queries."""
    made = {}
    for metric in METRICS:
        for M in (5, 20):
            rng = np.random.default_rng(M)
            index, model = filled(rng, N, 6, NLIST, M, 8 if M == 5 else 4, metric)
            index.nprobe = 4
            made[metric, M] = index, model, normal(rng, 60, 6)
    return made


@pytest.mark.parametrize("M", [5, 20])
@pytest.mark.parametrize("metric", METRICS)
def test_lists_of_what_a_mask_lets_through(simd, indexes, metric, M):
    index, model, xq = indexes[metric, M]
    rng = np.random.default_rng(0)
    for share in SHARES:
        members = rng.random(N) < share
        params = faiss.SearchParametersIVF(nprobe=4, sel=bitmap(members))
        ids = np.flatnonzero(members).tolist()
        for nq in (1, 60):  # alone and together
            for _ in range(2):
                D, I = index.search(xq[:nq], 20, params=params)
                assert_finds(D, I, model, xq[:nq], probed(index, xq[:nq], 4), metric, ids)


def test_lists_whose_ids_lie_together(indexes):
    """A mask of some lists alone, a mask of single vectors, and what is in between."""
    index, model, xq = indexes[faiss.METRIC_L2, 5]
    lists = np.array([model.lists[i] for i in range(N)])
    rng = np.random.default_rng(0)
    for members in (lists % 3 == 0, (lists % 3 == 0) | (rng.random(N) < 0.01), rng.random(N) < lists / NLIST):
        params = faiss_dpq.SearchParametersIVFDPQ(nprobe=6, sel=bitmap(members))
        for nq in (1, 60):
            D, I = index.search(xq[:nq], 20, params=params)
            assert_finds(D, I, model, xq[:nq], probed(index, xq[:nq], 6), members=np.flatnonzero(members).tolist())
        thresh = float(D[D < 1e30].max())
        lims, D, I = index.range_search(xq[:5], thresh, params=params)
        ids, expected = model.distances(
            xq[:5], probed(index, xq[:5], 6), faiss.METRIC_L2, np.flatnonzero(members).tolist()
        )
        for q in range(5):
            assert len(set(I[lims[q] : lims[q + 1]].tolist()) ^ set(ids[expected[q] < thresh].tolist())) <= 1


def test_coarse_to_fine_of_lists(indexes):
    index, model, xq = indexes[faiss.METRIC_L2, 20]
    members = np.random.default_rng(0).random(N) < 0.1
    params = faiss_dpq.SearchParametersIVFDPQ(nprobe=4, coarse_levels=6, k_factor=N, sel=bitmap(members))
    for nq in (1, 60):
        D, I = index.search(xq[:nq], 20, params=params)
        assert_finds(D, I, model, xq[:nq], probed(index, xq[:nq], 4), members=np.flatnonzero(members).tolist())


def test_few_of_a_list_are_scored_one_by_one(indexes):
    index, model, xq = indexes[faiss.METRIC_L2, 5]
    members = np.random.default_rng(0).random(N) < 0.01
    params = faiss.SearchParametersIVF(nprobe=4, sel=bitmap(members))
    lists = np.array([model.lists[i] for i in np.flatnonzero(members)])
    for nq in (1, 60):
        _kernels.reset_counters()
        index.search(xq[:nq], 300, params=params)
        counts = _kernels.counters()
        assert counts["bounded"] == 0
        assert counts["floated"] == sum((lists[:, None] == row).sum() for row in probed(index, xq[:nq], 4))


def one_by_one(index, xq, k, params):
    """Searches of one query each, and how many of them went to the kernels at once."""
    _kernels.reset_counters()
    found = [index.search(xq[i : i + 1], k, params=params) for i in range(len(xq))]
    return np.concatenate([D for D, _ in found]), np.concatenate([I for _, I in found]), dict(_kernels.counters())


@pytest.mark.parametrize("M", [5, 20])
def test_one_query_with_a_selector_goes_to_the_kernels_at_once(simd, indexes, M):
    index, model, xq = indexes[faiss.METRIC_L2, M]
    rng = np.random.default_rng(0)
    params = faiss.SearchParametersIVF(nprobe=4)
    index.search(xq, 20, params=params)
    index.search(xq[:1], 20, params=params)
    for share in SHARES:
        members = rng.random(N) < share
        ids = np.flatnonzero(members)
        for selector in (
            bitmap(members),
            faiss.IDSelectorNot(bitmap(~members)),
            faiss_dpq.Filter(faiss.IDSelectorArray(ids)),
        ):
            params = faiss.SearchParametersIVF(nprobe=4, sel=selector)
            D, I, counts = one_by_one(index, xq, 20, params)
            assert_finds(D, I, model, xq, probed(index, xq, 4), members=ids.tolist())
            again = one_by_one(index, xq, 20, params)
            assert counts["direct_lists"] == again[2]["direct_lists"] == len(xq)
            together = index.search(xq, 20, params=params)
            for these in (again, together):
                np.testing.assert_array_equal(D, these[0])
                np.testing.assert_array_equal(I, these[1])


@pytest.mark.parametrize("M", [5, 20])
def test_bits_of_ids_of_any_size(simd, M):
    """Ids that are negative, that lie behind a bitmap's end, and in its last bytes; bitmaps of every length."""
    rng = np.random.default_rng(M)
    index, _ = filled(rng, 900, 6, 3, M, 8 if M == 5 else 4)
    codes = index.sa_encode(normal(rng, 900, 6))
    index.reset()
    ids = np.r_[-(2**62), -1, 2**40, 2**62, rng.permutation(2000)[:896] - 20]
    index.add_sa_codes(codes, ids)
    xq = normal(rng, 20, 6)
    index.search(xq[:1], 5, params=faiss.SearchParametersIVF(nprobe=3))
    for size in (*range(10), 63, 64, 65, 66, 67, 250):
        for share in (0.02, 0.5):  # masks of the lists, and bits that are read of hits
            bits = np.packbits(rng.random(8 * size) < share, bitorder="little")
            allowed = {int(i) for i in ids if 0 <= i < 8 * size and bits[i >> 3] >> (i & 7) & 1}
            params = faiss.SearchParametersIVF(nprobe=3, sel=faiss.IDSelectorBitmap(bits))
            before = index.memory_usage()["masks"]
            D, I, counts = one_by_one(index, xq[:3], 900, params)
            assert counts["direct_lists"] == 3 and index.memory_usage()["masks"] == before
            assert counts["masked_lists"] == (9 if share < 0.1 or size < 8 else 0)
            assert all(set(row[row != -1].tolist()) == allowed for row in I)
            together = index.search(np.resize(xq, (200, 6)), 900, params=params)
            np.testing.assert_array_equal(D, together[0][:3])
            np.testing.assert_array_equal(I, together[1][:3])


def test_what_parameters_say_is_heeded_at_once(indexes):
    """Parameters that were searched with before are not taken for others."""
    index, model, xq = indexes[faiss.METRIC_L2, 5]
    members = np.random.default_rng(0).random(N) < 0.3
    ids, selector = np.flatnonzero(members).tolist(), bitmap(members)
    for _ in range(2):
        for nprobe in (1, 3, 12):
            for levels in (2, 5):
                params = faiss_dpq.SearchParametersIVFDPQ(levels, nprobe=nprobe, sel=selector)
                found, keys = one_by_one(index, xq[:9], 20, params), probed(index, xq[:9], nprobe)
                np.testing.assert_array_equal(found[1], index.search(xq[:9], 20, params=params)[1])
                if levels == 5:
                    assert_finds(*found[:2], model, xq[:9], keys, members=ids)
        # Of a selector, only what it admits counts towards max_codes: that is looked at closer.
        params = faiss.SearchParametersIVF(nprobe=12, max_codes=40, sel=selector)
        found = one_by_one(index, xq[:9], 20, params)
        assert found[2]["direct_lists"] == 0
        np.testing.assert_array_equal(found[1], index.search(xq[:9], 20, params=params)[1])
        full = faiss.SearchParametersIVF(nprobe=1, ensure_topk_full=True, sel=selector)
        assert (one_by_one(index, xq[:9], 300, full)[1] >= 0).all()


def test_masks_follow_the_lists():
    rng = np.random.default_rng(0)
    index, model = filled(rng, 900, 6, 3, 4, 6)
    xq = normal(rng, 7, 6)
    selectors = faiss_dpq.Filter(faiss.IDSelectorRange(100, 5000)), bitmap(np.arange(5000) >= 100)

    def check():
        members = [i for i in model.x if 100 <= i < 5000]
        for selector in selectors:
            for nq in (1, 7, 1):
                params = faiss.SearchParametersIVF(nprobe=3, sel=selector)
                D, I = index.search(xq[:nq], 30, params=params)
                assert_finds(D, I, model, xq[:nq], probed(index, xq[:nq], 3), members=members)

    check()
    for step in range(4):
        x, ids = normal(rng, 5, 6), np.arange(5) + 1000 + 4000 * (step % 2) + 10 * step
        index.add_with_ids(x, ids)
        codes = index.sa_encode(x)
        model.put(ids, codes[:, 0].astype(np.int64), index.sa_decode(codes).astype(np.float64))
        check()
        gone = rng.choice(list(model.x), 5, replace=False)
        # By FAISS's C++, which tells us nothing.
        faiss.IndexIVF.remove_ids(index, gone) if step % 2 else index.remove_ids(gone)
        model.drop(gone)
        check()
    assert index.memory_usage()["masks"] > 0


# ---- enough results -------------------------------------------------------------------------------------------------


def extended(index, xq, k, nprobe, most, sizes):
    """The lists that every query probes, worked out one query at a time."""
    order = index.quantizer.search(xq, index.nlist)[1]
    keys = np.full_like(order, -1)
    for q, row in enumerate(order):
        n = nprobe
        while n < most and sizes[row[:n]].sum() < k:
            n += 1
        keys[q, :n] = row[:n]
    return keys


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("max_nprobe", [0, 1, 5, 100])
def test_lists_are_probed_until_there_are_k_results(indexes, metric, max_nprobe):
    index, model, xq = indexes[metric, 5]
    rng = np.random.default_rng(1)
    for share in (0.0, 0.004, 0.02, 1.0):
        members = rng.random(N) < share
        lists = np.array([model.lists[i] for i in np.flatnonzero(members)], np.int64)
        sizes = np.bincount(lists, minlength=NLIST)
        params = faiss_dpq.SearchParametersIVFDPQ(
            nprobe=2, max_nprobe=max_nprobe, ensure_topk_full=True, sel=bitmap(members)
        )
        for k in (1, 12, 1500):
            keys = extended(index, xq, k, 2, min(max(max_nprobe, 2) if max_nprobe else NLIST, NLIST), sizes)
            for nq in (1, 60):
                D, I = index.search(xq[:nq], k, params=params)
                assert_finds(D, I, model, xq[:nq], keys[:nq], metric, np.flatnonzero(members).tolist())
                if not max_nprobe:
                    assert ((I >= 0).sum(axis=1) == min(k, members.sum())).all()
        found = index.search_and_reconstruct(xq[:3], 12, params=params)
        np.testing.assert_array_equal(found[1], index.search(xq[:3], 12, params=params)[1])


def test_faiss_own_parameters_and_wrappers_ask_for_enough_results(indexes):
    index, model, xq = indexes[faiss.METRIC_L2, 5]
    inner = faiss_dpq.clone_index(index)
    inner.reset()
    wrapped = faiss_dpq.IndexIDMap2(inner)
    x = np.stack([model.x[i] for i in range(N)]).astype(np.float32)
    wrapped.add_with_ids(x, np.arange(N) + 7_000_000)
    for each, first in ((index, 0), (wrapped, 7_000_000)):
        selector = faiss.IDSelectorBatch(np.arange(first, first + N, 400))
        params = faiss.SearchParametersIVF(nprobe=1, ensure_topk_full=True, sel=selector)
        for nq in (1, 60):
            _, I = each.search(xq[:nq], 12, params=params)
            assert I.min() >= first and ((I - first) % 400 == 0).all()
        params = faiss.SearchParametersIVF(nprobe=1, sel=selector)
        assert (each.search(xq, 12, params=params)[1] < 0).any()


def test_short_lists_without_a_selector_are_followed_by_others(indexes):
    index, model, xq = indexes[faiss.METRIC_L2, 5]
    sizes = np.bincount([model.lists[i] for i in range(N)], minlength=NLIST)
    params = faiss.SearchParametersIVF(nprobe=1, ensure_topk_full=True)
    D, I = index.search(xq, 1200, params=params)
    assert_finds(D, I, model, xq, extended(index, xq, 1200, 1, NLIST, sizes))
    assert (I >= 0).all()


def test_a_limit_that_is_no_number_of_lists_is_refused(indexes):
    index, _, xq = indexes[faiss.METRIC_L2, 5]
    with pytest.raises(ValueError, match="max_nprobe is -1, expected 0"):
        index.search(xq, 3, params=faiss_dpq.SearchParametersIVFDPQ(max_nprobe=-1))
