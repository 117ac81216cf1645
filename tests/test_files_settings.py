"""Whatever changes codes or results goes with an index in every way of copying it; so do untrained indexes."""

import copy
import io
import pickle

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.index.settings import settings_of

joblib = pytest.importorskip("joblib")

D = 8
X = naive.normal(np.random.default_rng(0), 700, D)


def dpq():
    return faiss_dpq.IndexDPQ(D, 4, 4)


def lists(coarse=None):
    return faiss_dpq.IndexIVFDPQ(coarse or faiss.IndexFlatL2(D), D, 4, 4, 4)


def shards():
    index = faiss_dpq.IndexShards(D)
    for _ in range(2):
        index.add_shard(dpq())
    return index


def replicas():
    index = faiss_dpq.IndexReplicas(D)
    index.add_replica(faiss_dpq.IndexPreTransform(faiss.NormalizationTransform(D), lists()))
    return index


UNTRAINED = {
    "flat": dpq,
    "inner products": lambda: faiss_dpq.IndexDPQ(D, 4, 4, faiss.METRIC_INNER_PRODUCT),
    "one level": lambda: faiss_dpq.IndexDPQ(D, 1, 4),
    "lists": lists,
    "IDMap": lambda: faiss_dpq.IndexIDMap(dpq()),
    "IDMap2": lambda: faiss_dpq.IndexIDMap2(lists()),
    "PCA": lambda: faiss_dpq.IndexPreTransform(faiss.PCAMatrix(D, D), dpq()),
    "L2norm": lambda: faiss_dpq.IndexPreTransform(faiss.NormalizationTransform(D), dpq()),
    "RefineFlat": lambda: faiss_dpq.IndexRefineFlat(dpq()),
    "RefineFlat of PCA of lists": lambda: faiss_dpq.IndexRefineFlat(
        faiss_dpq.IndexPreTransform(faiss.PCAMatrix(D, D), lists())
    ),
    "refined by lists' twin": lambda: faiss_dpq.IndexRefine(dpq(), dpq()),
    "from a string": lambda: faiss_dpq.index_factory(D, "IDMap2,OPQ2_6,IVF4,DPQ4x4"),
    "ITQ": lambda: faiss_dpq.index_factory(D, "IDMap2,ITQ6,L2norm,DPQ4x4"),
    "ITQ without PCA": lambda: faiss_dpq.IndexPreTransform(faiss.ITQTransform(D, D, False), dpq()),
    "shards": shards,
    "replicas": replicas,
}
IN_FILES = [name for name in UNTRAINED if name not in ("shards", "replicas")]


def by_joblib(index, path):
    joblib.dump(index, path)
    return joblib.load(path)


def by_file(index, path):
    faiss_dpq.write_index(index, path)
    return faiss_dpq.read_index(path)


def by_pipe(index, path):
    """As a pipe is read: once, with the trailer behind."""
    faiss_dpq.write_index(index, path)
    return faiss_dpq.read_index(path, faiss.IO_FLAG_MMAP)


IN_PYTHON = {
    "pickle": lambda index, path: pickle.loads(pickle.dumps(index)),
    "deepcopy": lambda index, path: copy.deepcopy(index),
    "copy": lambda index, path: pickle.loads(pickle.dumps(copy.deepcopy(index), protocol=5)),
    "joblib": by_joblib,
    "clone": lambda index, path: faiss_dpq.clone_index(index),
}
AS_BYTES = {
    "file": by_file,
    "mapped": by_pipe,
    "bytes": lambda index, path: faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index)),
}
COPIES = IN_PYTHON | AS_BYTES


def add(index, x):
    index.add_with_ids(x, np.arange(index.ntotal, index.ntotal + len(x))) if "IDMap" in type(
        index
    ).__name__ else index.add(x)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", UNTRAINED)
def test_an_untrained_index_is_copied_and_trains_as_the_original(name, how, tmp_path):
    if how in AS_BYTES and name not in IN_FILES:
        with pytest.raises(RuntimeError, match="don't know how to serialize"):
            COPIES[how](UNTRAINED[name](), tmp_path / "index")
        return
    original = UNTRAINED[name]()
    twin = COPIES[how](original, tmp_path / "index")
    assert type(twin) is type(original) and not twin.is_trained and twin.ntotal == 0
    with pytest.raises(RuntimeError):
        twin.search(X[:2], 1)
    if how == "deepcopy":
        for index in (original, twin):
            index.train(X, effort="fast")
            add(index, X)
        for a, b in zip(original.search(X[:20], 5), twin.search(X[:20], 5), strict=True):
            np.testing.assert_array_equal(a, b)


def test_stock_faiss_reads_an_untrained_index(tmp_path):
    faiss_dpq.write_index(faiss_dpq.IndexIDMap2(lists()), tmp_path / "index")
    stock = faiss.read_index(str(tmp_path / "index"))
    assert not stock.is_trained and stock.d == D


def set_all(index):
    """Every setting of every index of a stack to what no other has."""
    number = iter(range(1, 100))

    def change(inner):
        for name in getattr(inner, "_settings", ()):
            *path, last = name.split(".")
            owner = inner
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, another(name, getattr(owner, last), next(number), inner))
        for part in inner._inner_indexes() if hasattr(inner, "_inner_indexes") else []:
            change(part)

    change(index)


def another(name, value, n, index):
    if name == "coarse_levels":
        return min(2, index.rq.M)
    if isinstance(value, list):  # of what is not trained
        return value
    if name == "levels":
        return max(1, index.rq.M - 1)
    return not value if isinstance(value, bool) else 1 + 0.25 * n if isinstance(value, float) else 2 - n % 2


@pytest.fixture(scope="module")
def trained():
    """Trained, with vectors, by their names."""
    indexes = {name: UNTRAINED[name]() for name in UNTRAINED}
    for index in indexes.values():
        index.train(X, effort="fast")
        if index.ntotal == 0:
            add(index, X[:300])
    return indexes


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", UNTRAINED)
def test_settings_of_every_index_of_a_stack_travel(name, how, trained, tmp_path):
    if how in AS_BYTES and name not in IN_FILES:
        return
    original = copy.deepcopy(trained[name])
    assert settings_of(original) == settings_of(trained[name])
    set_all(original)
    twin = COPIES[how](original, tmp_path / "index")
    assert settings_of(twin) == settings_of(original) != settings_of(trained[name])
    if name != "refined by lists' twin":
        for a, b in zip(twin.search(X[:20], 5), original.search(X[:20], 5), strict=True):
            np.testing.assert_array_equal(a, b)
    if name in ("flat", "lists", "inner products"):
        np.testing.assert_array_equal(twin.sa_encode(X), original.sa_encode(X))
        assert (twin.sa_encode(X) != trained[name].sa_encode(X)).any(), "the settings change no codes"


def test_what_is_added_after_reading_is_encoded_as_before(trained, tmp_path):
    for name in ("flat", "lists", "RefineFlat of PCA of lists"):
        index = copy.deepcopy(trained[name])
        leaf = index
        while not hasattr(leaf, "prefix_weight"):
            leaf = leaf._inner_indexes()[0]
        leaf.prefix_weight, leaf.parallel_weight = 0.3, 0.7
        twin = by_file(index, tmp_path / name)
        add(index, X[300:])
        add(twin, X[300:])
        assert faiss.serialize_index(twin).tobytes() == faiss.serialize_index(index).tobytes()


def test_settings_within_stock_wrappers_travel(trained, tmp_path):
    index = copy.deepcopy(trained["flat"])
    index.reset()
    index.prefix_weight = 0.75
    stock = faiss.IndexIDMap2(faiss.IndexRefineFlat(index))
    stock.add_with_ids(X, np.arange(len(X)))
    assert by_file(stock, tmp_path / "index").index.base_index.prefix_weight == 0.75
    assert faiss_dpq.clone_index(stock).index.base_index.prefix_weight == 0.75


@pytest.mark.parametrize("name", ["flat", "lists"])
def test_a_truncated_index_keeps_the_settings(name, trained):
    index = copy.deepcopy(trained[name])
    set_all(index)
    (cut, _), (own, _) = settings_of(index.truncate(3)), settings_of(index)
    of_length = {"levels": 0, "coarse_levels": 0}
    assert {**cut, **of_length} == {**own, **of_length}
    assert index.truncate(3).beam_size == index.beam_size


def test_truncating_lists_keeps_the_class_of_the_coarse_quantizer(trained):
    coarse = faiss_dpq.IndexDPQ(D, 4, 4)
    coarse.train(X, effort="fast")
    coarse.add(X[:4])
    coarse.prefix_weight = 0.5
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, trained["lists"].codebooks)
    index.add(X)
    cut = index.truncate(2)
    assert type(cut._coarse_quantizer) is faiss_dpq.IndexDPQ and cut._coarse_quantizer is not coarse
    assert cut._coarse_quantizer.prefix_weight == 0.5


@pytest.mark.parametrize("name", ["flat", "lists"])
def test_merging_keeps_the_settings(name, trained):
    index, other = copy.deepcopy(trained[name]), copy.deepcopy(trained[name])
    set_all(index)
    before = settings_of(index)
    index.merge_from(other)
    assert settings_of(index) == before and index.ntotal == 600


def test_bytes_with_settings_are_read_by_stock_faiss(trained):
    for name in IN_FILES:
        data = faiss_dpq.serialize_index(trained[name])
        assert faiss.deserialize_index(data).ntotal == trained[name].ntotal
        reader = faiss.VectorIOReader()
        faiss.copy_array_to_vector(data, reader.data)
        assert faiss.read_index(reader).ntotal == trained[name].ntotal


def test_copies_of_a_quantizer_hold_no_derived_tables(trained):
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(np.random.default_rng(0), 8, 256, 32))
    quantizer = index.residual_quantizer
    before = len(pickle.dumps(quantizer))
    assert before < quantizer.codebooks.nbytes + 1000
    x = naive.normal(np.random.default_rng(1), 50, 32)
    codes = quantizer.encode(x)
    index.add(x)
    index.search(x, 3)
    assert quantizer.derived_bytes() > 10 * before
    assert len(pickle.dumps(quantizer)) == before
    assert len(pickle.dumps(index)) < before + 4000
    for twin in (pickle.loads(pickle.dumps(quantizer)), copy.deepcopy(quantizer), copy.copy(quantizer)):
        assert twin.derived_bytes() < before and twin.shrinkage == quantizer.shrinkage
        np.testing.assert_array_equal(twin.encode(x), codes)
    buffer = io.BytesIO()
    joblib.dump(quantizer, buffer)
    assert buffer.tell() < before + 1000


def shrunk_and_plain():
    """Two indexes, of other codebooks, the first with a shrinkage of its own."""
    a, b = dpq(), dpq()
    a.train(X, effort="fast", shrinkage=0.6)
    b.train(X[::-1][:400] * 2, effort="fast", shrinkage=1.0)
    return a, b


@pytest.mark.parametrize("how", ["field", "array", "quantizer"])
def test_codebooks_of_another_index_bring_their_own_shrinkage_or_none(how):
    a, b = shrunk_and_plain()
    assert (a.shrinkage, b.shrinkage) == (pytest.approx(0.6), 1)
    a.search(X[:1], 1) if a.ntotal else None
    for taker, giver, expected in ((a, b, 1), (b, shrunk_and_plain()[0], 0.6)):
        if how == "field":
            taker.rq.codebooks = giver.rq.codebooks
        elif how == "array":
            faiss.copy_array_to_vector(faiss.vector_to_array(giver.rq.codebooks), taker.rq.codebooks)
        else:
            taker.rq = giver.rq
        # Codebooks that come alone have none; the whole quantizer brings its own.
        expected = expected if how == "quantizer" else 1
        assert taker.shrinkage == taker.residual_quantizer.shrinkage == pytest.approx(expected)
        plain = faiss_dpq.ProgressiveQuantizer(giver.codebooks, expected)
        encoded = plain.encode(X, taker.beam_size, taker.prefix_weight, taker.parallel_weight)
        np.testing.assert_array_equal(taker.sa_encode(X), faiss_dpq._kernels.pack_codes(encoded, 4))


def test_the_shrinkage_stays_with_its_codebooks_in_every_copy(tmp_path):
    a, _ = shrunk_and_plain()
    for how in COPIES:
        assert COPIES[how](a, tmp_path / "index").shrinkage == pytest.approx(0.6)
    assert faiss_dpq.downcast_index(faiss.clone_index(a)).shrinkage == pytest.approx(0.6)
    assert a.truncate(2).shrinkage == pytest.approx(0.6)


def test_the_shrinkage_in_files_of_release_0_1_is_kept():
    a, b = shrunk_and_plain()
    a.rq.norm_min = float("nan")  # as 0.1 wrote it
    twin = faiss_dpq.deserialize_index(faiss.serialize_index(a))
    assert twin.shrinkage == pytest.approx(0.6)
    twin.sa_encode(X[:1])
    twin.rq.codebooks = b.rq.codebooks
    assert twin.shrinkage == 1


def test_what_faiss_cannot_clone_is_cloned(trained):
    for name in ("L2norm", "shards", "replicas"):
        clone = faiss_dpq.clone_index(trained[name])
        assert type(clone) is type(trained[name])
        before = trained[name].ntotal
        clone.reset()
        assert (clone.ntotal, trained[name].ntotal) == (0, before)
    with pytest.raises(RuntimeError, match="clone not supported"):
        faiss_dpq.clone_index(faiss.IndexSplitVectors(D))
