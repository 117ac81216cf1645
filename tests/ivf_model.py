"""What an IndexIVFDPQ holds, as arrays, and a search of it in float64."""

from dataclasses import dataclass, field

import faiss
import naive
import numpy as np
from naive import FLT_MAX

import faiss_dpq

# ---- the model: what an index holds, as arrays, and a search of it in float64 ---------------------------------------


@dataclass
class Model:
    """Vectors of an index by id, as reconstructions in float64, and the list that each is in."""

    x: dict = field(default_factory=dict)
    lists: dict = field(default_factory=dict)

    def put(self, ids, lists, x):
        self.x.update(zip(ids.tolist(), x, strict=True))
        self.lists.update(zip(ids.tolist(), lists.tolist(), strict=True))

    def drop(self, ids):
        for i in ids:
            del self.x[i], self.lists[i]

    def distances(self, xq, keys, metric, members=None):
        """Ids, and distances of queries to them: inf outside the probed lists (negated inner products)."""
        ids = np.array(sorted(self.x), np.int64)
        if not len(ids):
            return ids, np.empty((len(xq), 0))
        x, lists = np.stack([self.x[i] for i in ids]), np.array([self.lists[i] for i in ids])
        xq = xq.astype(np.float64)
        D = ((xq[:, None] - x) ** 2).sum(2) if metric == faiss.METRIC_L2 else -(xq @ x.T)
        D[~(lists[None, :, None] == keys[:, None]).any(2)] = np.inf
        if members is not None:
            D[:, ~np.isin(ids, list(members))] = np.inf
        return ids, D


def assert_finds(D, I, model, xq, keys, metric=faiss.METRIC_L2, members=None):
    """D and I are the k best of the model, up to rounding and the order of equal distances."""
    k = I.shape[1]
    ids, expected = model.distances(xq, keys, metric, members)
    expected = np.concatenate([expected, np.full((len(xq), k), np.inf)], axis=1)
    ids = np.append(ids, np.full(k, -1))
    best = np.sort(expected, axis=1)[:, :k]
    found = np.isfinite(best)
    np.testing.assert_array_equal(I >= 0, found)
    D = D if metric == faiss.METRIC_L2 else -D
    np.testing.assert_array_equal(D[~found], FLT_MAX)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(D[found], best[found], rtol=1e-5, atol=2e-6 * scale)
    column = {int(i): at for at, i in enumerate(ids)}
    own = np.array([[expected[q, column[i]] if i >= 0 else np.inf for i in row] for q, row in enumerate(I.tolist())])
    np.testing.assert_allclose(own[found], best[found], rtol=1e-5, atol=2e-6 * scale)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in I)


def sa_codes(index, lists, codes):
    numbers = lists.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : index.coarse_code_size()]
    return np.concatenate([numbers, naive.pack(codes, int(index.rq.nbits.at(0)))], axis=1)


def filled(rng, n, d, nlist, M, nbits, metric=faiss.METRIC_L2, offset=0.0):
    """An index of random centres, codebooks and codes, and the model of it."""
    quantizer = faiss.IndexFlat(d, metric)
    centres = (2 * rng.standard_normal((nlist, d)) + offset).astype(np.float32)
    quantizer.add(centres)
    codebooks = naive.random_codebooks(rng, M, 1 << nbits, d)
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(quantizer, codebooks, metric)
    lists, codes = rng.integers(0, nlist, n), rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16)
    if n:
        index.add_sa_codes(sa_codes(index, lists, codes))
    model = Model()
    model.put(np.arange(n), lists, centres.astype(np.float64)[lists] + naive.decode(codebooks, codes))
    return index, model


def probed(index, xq, nprobe=None):
    return index.quantizer.search(xq, nprobe or index.nprobe)[1]


# ---- the index changes ----------------------------------------------------------------------------------------------


def stored(index):
    """Reconstructions by id, of what the lists hold now."""
    vectors = {}
    for number in range(index.nlist):
        n = index.invlists.list_size(number)
        if n:
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), n)
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), n * index.code_size).reshape(n, -1)
            numbers = np.full((n, index.coarse_code_size()), number, np.uint8)
            vectors |= zip(ids.tolist(), index.sa_decode(np.concatenate([numbers, codes], axis=1)), strict=True)
    return vectors
