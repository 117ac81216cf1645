"""faiss_dpq in ann-benchmarks: this folder goes to ann_benchmarks/algorithms/faiss_dpq of its checkout."""

import faiss
import numpy as np
import sklearn.preprocessing

import faiss_dpq

from ..base.module import BaseANN

METRICS = {"angular": faiss.METRIC_INNER_PRODUCT, "euclidean": faiss.METRIC_L2}


class FaissDPQ(BaseANN):
    """An index of a factory string of faiss_dpq, with the vectors beside it where results are to be ranked again."""

    def __init__(self, metric, description):
        if metric not in METRICS:
            raise NotImplementedError(f"FaissDPQ: metric is {metric!r}, and has to be one of {', '.join(METRICS)}")
        self._metric = metric
        self._description = description
        self._nprobe = self._rerank = 0
        self.name = str(self)

    def _vectors(self, X):
        """As float32; of unit length where the angle counts."""
        if self._metric == "angular":
            X = sklearn.preprocessing.normalize(X)
        return np.ascontiguousarray(X, np.float32)

    def fit(self, X):
        x = self._vectors(X)
        lists, n_bytes = 2 ** round(np.log2(4 * np.sqrt(len(x)))), min(max(x.shape[1] // 4, 4), 64)
        description = self._description.format(lists=lists, bytes=n_bytes)
        self._codes = faiss_dpq.index_factory(x.shape[1], description, METRICS[self._metric])
        self._codes.train(x)
        self._codes.add(x)
        vectors = faiss.IndexFlat(x.shape[1], METRICS[self._metric])
        vectors.add(x)
        self._exact = faiss_dpq.IndexRefine(self._codes, vectors)
        self._index = self._codes

    def set_query_arguments(self, nprobe, rerank):
        """Search `nprobe` lists; compare `rerank` times as many results as wanted by their vectors, unless it is 0."""
        self._nprobe, self._rerank = nprobe, rerank
        if hasattr(self._codes, "nprobe"):
            self._codes.nprobe = nprobe
        self._exact.k_factor = max(rerank, 1)
        self._index = self._exact if rerank else self._codes

    def query(self, v, n):
        ids = self._index.search(self._vectors(v[None]), n)[1][0]
        return ids[ids >= 0]

    def batch_query(self, X, n):
        self._ids = self._index.search(self._vectors(X), n)[1]

    def get_batch_results(self):
        return [ids[ids >= 0] for ids in self._ids]

    def __str__(self):
        return f"FaissDPQ({self._description}, nprobe={self._nprobe}, rerank={self._rerank})"
