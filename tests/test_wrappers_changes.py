"""One C++ object, seen from several sides: changes are seen from all of them."""

import copy

import faiss
import naive
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from naive import FLT_MAX, METRICS
from nestings import CODEBOOKS_10, DIM, IDS, XQ, N, X, assert_same_result, dpq, leaf_of, pre_transform, rotation

import faiss_dpq


def test_changes_through_a_stock_wrapper_are_seen():
    inner = dpq()
    stock = faiss.IndexIDMap2(inner)
    ours = faiss_dpq.downcast_index(stock)
    ours.add_with_ids(X[:100], IDS[:100])
    assert ours.search(XQ, 1)[1].max() <= IDS[99]
    stock.add_with_ids(X[100:], IDS[100:])
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    assert ours.search(XQ, N)[1].min() == 1000
    assert stock.remove_ids(IDS[::2]) == N // 2
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    assert ours.remove_ids(faiss.IDSelectorRange(0, 2000)) > 0 and ours.ntotal == stock.ntotal
    stock.check_consistency()
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    faiss.rev_swig_ptr(inner.codes.data(), inner.codes.size())[:] = 0
    assert len(set(ours.search(XQ, 5)[0][0])) == 1
    stock.reset()
    assert (ours.search(XQ, 2)[1] == -1).all()


def test_another_index_put_within_is_seen():
    """Through our property, through FAISS's, and through a stock wrapper of the same object."""
    ours = faiss_dpq.IndexPreTransform(rotation(DIM), dpq())
    ours.add(X)
    other = dpq()
    other.add(X[:50])
    ours.index = other
    assert ours.index is other and other.thisown
    assert ours.search(XQ, 60)[1].max() == 49
    third = faiss.IndexFlatL2(DIM)
    third.add(X[:5])
    stock = faiss.downcast_index(ours)
    stock.index, stock.ntotal = third, 5
    third.this.own(True)
    stock.referenced_objects = [third]
    assert isinstance(ours.index, faiss.IndexFlat)
    np.testing.assert_array_equal(ours.search(XQ, 5)[1], stock.search(XQ, 5)[1])


@pytest.mark.parametrize("name", ["IDMap2", "PreTransform", "RefineFlat"])
def test_a_stock_wrapper_of_a_stock_quantizer_becomes_ours(name, digits):
    rq = faiss.IndexResidualQuantizer(64, 2, 4)
    stock = {
        "IDMap2": lambda: faiss.IndexIDMap2(rq),
        "PreTransform": lambda: faiss.IndexPreTransform(faiss.PCAMatrix(64, 64), rq),
        "RefineFlat": lambda: faiss.IndexRefineFlat(rq),
    }[name]()
    stock.train(digits[:600])
    ours = faiss_dpq.downcast_index(stock)
    assert type(leaf_of(ours)) is faiss_dpq.IndexDPQ
    arguments = (digits[:300], 3 * np.arange(300)) if name == "IDMap2" else (digits[:300],)
    (ours.add_with_ids if name == "IDMap2" else ours.add)(*arguments)
    assert stock.ntotal == 300
    np.testing.assert_allclose(ours.search(digits[:9], 4)[0], stock.search(digits[:9], 4)[0], rtol=1e-3, atol=1e-2)


def test_classes_that_search_otherwise_stay_stock():
    flat = faiss.IndexFlatL2(DIM)
    panorama = faiss.IndexRefinePanorama(flat, faiss.IndexFlatL2(DIM))
    assert faiss_dpq.downcast_index(panorama) is panorama


class Model(RuleBasedStateMachine):
    """Random operations on IDMap2 of PreTransform of IndexDPQ, through ours, a stock wrapper, or the codes themselves.

    The model is a list of ids and codes; every search must be the naive one over them.
    """

    ids: list[int]

    @initialize(metric=st.sampled_from(METRICS))
    def make(self, metric):
        self.metric, self.next_id, self.ids = metric, 50, []
        self.rng = np.random.default_rng(0)
        self.codes = np.empty((0, 3), np.uint16)
        self.index = faiss_dpq.IndexIDMap2(pre_transform(faiss_dpq, metric))

    def add_by(self, wrapper, n, encoded_by):
        x = self.rng.standard_normal((n, DIM)).astype(np.float32)
        ids = self.next_id + self.rng.permutation(n)
        self.next_id += n
        wrapper.add_with_ids(x, ids)
        packed = self.leaf._packed_codes()[len(self.ids) :]
        expected = encoded_by(self.index.index._apply(x, "add"))
        np.testing.assert_array_equal(packed, expected)
        self.ids += ids.tolist()
        self.codes = np.concatenate([self.codes, naive_unpacked(packed)])

    @property
    def leaf(self):
        return self.index.index.index

    @rule(n=st.integers(0, 40))
    def add(self, n):
        self.add_by(self.index, n, self.leaf.sa_encode)

    @rule(n=st.integers(1, 20))
    def add_through_a_stock_wrapper(self, n):
        stock = faiss.downcast_index(self.index)
        self.add_by(stock, n, faiss.downcast_index(self.leaf).sa_encode)

    @rule(every=st.integers(2, 5), stock=st.booleans())
    def remove(self, every, stock):
        wrapper = faiss.downcast_index(self.index) if stock else self.index
        gone = np.array([i for i in self.ids if i % every == 0], np.int64)
        assert wrapper.remove_ids(gone) == len(gone)
        kept = [place for place, i in enumerate(self.ids) if i % every]
        self.ids, self.codes = [self.ids[place] for place in kept], self.codes[kept]

    @precondition(lambda self: self.ids)
    @rule(seed=st.integers(0, 100))
    def write_codes(self, seed):
        rng = np.random.default_rng(seed)
        places = rng.integers(0, len(self.ids), 3)
        self.codes[places] = rng.integers(0, 32, (3, 3))
        stored = faiss.rev_swig_ptr(self.leaf.codes.data(), self.leaf.codes.size()).reshape(len(self.ids), -1)
        stored[places] = naive.pack(self.codes[places], 5)

    @rule(how=st.sampled_from([copy.deepcopy, faiss_dpq.clone_index, lambda i: faiss_dpq.downcast_index(i)]))
    def replace_by_a_copy(self, how):
        levels = self.leaf.levels
        self.index = how(self.index)
        assert self.leaf.levels == levels

    @rule()
    def write_and_read(self):
        levels = self.leaf.levels
        self.index = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(self.index))
        self.leaf.levels = levels

    @rule()
    def reset(self):
        self.index.reset()
        self.ids, self.codes = [], self.codes[:0]

    @rule(levels=st.integers(1, 3))
    def set_levels(self, levels):
        self.leaf.levels = levels

    @rule(nq=st.integers(1, 40), k=st.integers(1, 12), every=st.integers(1, 4), levels=st.integers(0, 3))
    def search(self, nq, k, every, levels):
        xq = self.rng.standard_normal((nq, DIM)).astype(np.float32)
        sel = faiss.IDSelectorBatch(np.array(self.ids[::every], np.int64)) if every > 1 else None
        D, I = self.index.search(xq, k, params=faiss_dpq.SearchParametersDPQ(levels=levels, sel=sel))
        members = np.arange(len(self.ids)) % every == 0
        expected = np.full((nq, k), FLT_MAX if self.metric == faiss.METRIC_L2 else -FLT_MAX)
        levels = levels or self.leaf.levels
        if self.ids:
            found_D, _, all_D = naive.search(
                CODEBOOKS_10[:levels],
                self.codes[:, :levels],
                self.index.index._apply(xq, "search"),
                k,
                self.metric == faiss.METRIC_INNER_PRODUCT,
                members,
            )
            n = min(k, int(members.sum()))
            expected[:, :n] = found_D[:, :n]
            places = np.array([self.ids.index(i) for i in I[:, :n].ravel()], np.int64).reshape(nq, n)
            np.testing.assert_allclose(np.take_along_axis(all_D, places, 1), D[:, :n], rtol=1e-4, atol=1e-4)
            assert members[places].all()
        np.testing.assert_allclose(D, expected, rtol=1e-4, atol=1e-4)
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in I)

    @invariant()
    def agrees(self):
        if not hasattr(self, "index"):
            return
        assert self.index.ntotal == self.index.index.ntotal == self.leaf.ntotal == len(self.ids)
        self.index.check_consistency()
        np.testing.assert_array_equal(faiss.vector_to_array(self.index.id_map), self.ids)
        if self.ids:
            x = self.index.reconstruct(self.ids[-1])
            back = self.index.index.chain.at(0).reverse_transform(
                naive.decode(CODEBOOKS_10, self.codes[-1:]).astype(np.float32)
            )
            np.testing.assert_allclose(x, back[0], rtol=1e-4, atol=1e-4)


def naive_unpacked(packed):
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :15].reshape(len(packed), 3, 5)
    return (bits << np.arange(5)).sum(2).astype(np.uint16)


TestRandomOperations = Model.TestCase
TestRandomOperations.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
