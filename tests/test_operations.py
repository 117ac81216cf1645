"""Random sequences of everything that changes an index: after each, searches equal those of a naive model.

The model is an array of codes. Bins and radii that the index derives from its codes would show if any way of
changing these left them stale: our methods, FAISS's own through other Python objects of the same C++ index, and
writing to the codes' memory, after which `invalidate` is called.
"""

import faiss
import naive
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.codec import levels as levels_module

D = 7
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 40) | st.just(17_000)  # beyond what is scanned in float32


class Operations(RuleBasedStateMachine):
    """An index, the codes that it should hold, and ways to change both."""

    @initialize(
        metric=st.sampled_from([faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]),
        shape=st.sampled_from([(1, 4), (2, 8), (4, 8), (3, 5), (5, 4)]),
        seed=seeds,
        n=counts,
    )
    def start(self, metric, shape, seed, n):
        self.M, self.nbits = shape
        rng = np.random.default_rng(seed)
        codebooks = naive.random_codebooks(rng, self.M, 1 << self.nbits, D)
        self.index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
        self.owner = self.index  # of the C++ index, which what FAISS's downcast returns does not keep alive
        self.index.beam_size = 2
        self.codes = np.empty((0, self.M), np.uint16)
        self.stock = faiss.downcast_index(self.index)  # a faiss.IndexResidualQuantizer of the same C++ object
        self.add_sa_codes(seed, n)

    def random_codes(self, rng, n):
        return rng.integers(0, 1 << self.nbits, (n, self.M)).astype(np.uint16)

    @rule(seed=seeds, n=st.integers(0, 40), by_stock=st.booleans())
    def add(self, seed, n, by_stock):
        x = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
        codes = _kernels.unpack_codes((self.stock if by_stock else self.index).sa_encode(x), self.M, self.nbits)
        (self.stock if by_stock else self.index).add(x)
        self.codes = np.concatenate([self.codes, codes])

    @rule(seed=seeds, n=counts)
    def add_sa_codes(self, seed, n):
        codes = self.random_codes(np.random.default_rng(seed), n)
        self.index.add_sa_codes(naive.pack(codes, self.nbits))
        self.codes = np.concatenate([self.codes, codes])

    @rule(seed=seeds, share=st.sampled_from([0.001, 0.5, 0.999]), by_stock=st.booleans())
    def remove_ids(self, seed, share, by_stock):
        gone = np.random.default_rng(seed).random(len(self.codes)) < share
        removed = (self.stock if by_stock else self.index).remove_ids(np.flatnonzero(gone))
        assert removed == gone.sum()
        self.codes = self.codes[~gone]

    @rule(seed=seeds, by_stock=st.booleans())
    def permute_entries(self, seed, by_stock):
        order = np.random.default_rng(seed).permutation(len(self.codes))
        (self.stock if by_stock else self.index).permute_entries(order)
        self.codes = self.codes[order]

    @rule(seed=seeds, n=st.integers(0, 40))
    def merge_from(self, seed, n):
        codes = self.random_codes(np.random.default_rng(seed), n)
        other = faiss_dpq.IndexDPQ.from_codebooks(self.index.codebooks, self.index.metric_type)
        other.add_sa_codes(naive.pack(codes, self.nbits))
        self.index.merge_from(other)
        assert other.ntotal == 0
        self.codes = np.concatenate([self.codes, codes])

    @rule(seed=seeds, by_wrapper=st.booleans())
    def write_codes(self, seed, by_wrapper):
        """Into the memory itself, as our object or a stock wrapper of the same C++ index shows it."""
        rng = np.random.default_rng(seed)
        index = self.wrapped() if by_wrapper else self.index
        if not len(self.codes):
            return
        memory = faiss.rev_swig_ptr(index.codes.data(), index.codes.size()).reshape(-1, index.code_size)
        rows = rng.integers(0, len(memory), 5)
        codes = self.random_codes(rng, len(rows))
        memory[rows] = naive.pack(codes, self.nbits)
        for row, code in zip(rows, codes, strict=True):
            self.codes[row] = code
        self.index.invalidate()

    def wrapped(self):
        """The index as a stock IndexPreTransform gives it back."""
        self.wrapper = faiss.IndexPreTransform(self.index)
        return faiss.downcast_index(self.wrapper.index)

    @rule()
    def reset(self):
        self.index.reset()
        self.codes = self.codes[:0]

    @rule(seed=seeds)
    def search_a_prefix(self, seed):
        levels = 1 + seed % self.M
        self.index.levels = levels
        self.check(seed, levels)
        self.index.levels = self.M

    @rule(how=st.sampled_from(["clone", "bytes", "downcast"]))
    def copy(self, how):
        if how == "downcast":
            self.index = faiss_dpq.downcast_index(self.stock)
        else:
            copies = faiss_dpq.clone_index, lambda i: faiss_dpq.deserialize_index(faiss_dpq.serialize_index(i))
            self.index = self.owner = copies[how == "bytes"](self.index)
        self.stock = faiss.downcast_index(self.index)
        self.stock.rq.max_beam_size = 2

    @rule(levels=st.integers(1, 5), seed=seeds)
    def truncate(self, levels, seed):
        levels = min(levels, self.M)
        self.index = self.owner = self.index.truncate(levels)
        self.stock = faiss.downcast_index(self.index)
        self.M, self.codes = levels, self.codes[:, :levels].copy()
        self.check(seed, levels)

    @invariant()
    def is_what_the_model_is(self):
        if not hasattr(self, "codes"):
            return
        assert self.index.ntotal == self.stock.ntotal == len(self.codes)
        self.check(len(self.codes), self.M)

    def check(self, seed, levels):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, 6))
        xq = rng.standard_normal((1 + seed % 3, D)).astype(np.float32)
        product = self.index.metric_type == faiss.METRIC_INNER_PRODUCT
        found_D, found_I = self.index.search(xq, k)
        n = len(self.codes)
        np.testing.assert_array_equal(found_I >= 0, np.arange(k) < n * np.ones((len(xq), 1)))
        if not n:
            return
        expected_D, _, all_D = naive.search(self.index.codebooks[:levels], self.codes[:, :levels], xq, k, product)
        width = min(k, n)
        np.testing.assert_allclose(found_D[:, :width], expected_D, rtol=1e-5, atol=1e-4)
        rows = np.arange(len(xq))[:, None]
        np.testing.assert_allclose(all_D[rows, found_I[:, :width]], expected_D, rtol=1e-5, atol=1e-4)
        self.check_range(xq, all_D, float(expected_D[0, -1]) + (-1e-3 if product else 1e-3), product)

    def check_range(self, xq, all_D, thresh, product):
        lims, _, I = self.index.range_search(xq, thresh)
        for q, distances in enumerate(all_D):
            found = np.zeros(len(distances), bool)
            found[I[lims[q] : lims[q + 1]]] = True
            within = distances > thresh if product else distances < thresh
            clear = np.abs(distances - thresh) > 1e-4  # rounding decides the others
            np.testing.assert_array_equal(found[clear], within[clear])


@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_searches_equal_the_models_after_any_operations(tables, monkeypatch):
    if tables == "no cross tables":
        monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", -1)
    case = Operations.TestCase()
    case.settings = settings(max_examples=25, stateful_step_count=12, deadline=None, derandomize=True)
    case.runTest()
