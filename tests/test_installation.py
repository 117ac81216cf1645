"""`install()` lets programs that call FAISS by its own name use DPQ, and `uninstall()` takes it back."""

import faiss
import numpy as np
import pytest
from faiss.contrib import big_batch_search, factory_tools

import faiss_dpq

D = 16
X = np.random.default_rng(0).standard_normal((1500, D)).astype(np.float32)
NAMES = {
    faiss: ["index_factory", "read_index", "clone_index", "deserialize_index"],
    factory_tools: ["get_code_size", "reverse_index_factory"],
    big_batch_search: ["BlockComputer"],
}


def functions():
    return [getattr(module, name) for module, names in NAMES.items() for name in names]


STOCK = functions()


@pytest.fixture(autouse=True)
def taken_back():
    yield
    faiss_dpq.uninstall()
    assert functions() == STOCK


def filled(description):
    index = faiss.index_factory(D, description)
    index.train(X)
    index.add(X)
    return index


def test_what_is_installed_is_taken_back_exactly():
    with pytest.raises(RuntimeError):
        faiss.index_factory(D, "DPQ4x4")
    faiss_dpq.uninstall()  # nothing is installed
    faiss_dpq.install()
    faiss_dpq.install()
    assert all(ours is not stock for ours, stock in zip(functions(), STOCK, strict=True))
    assert type(faiss.index_factory(D, "DPQ4x4")) is faiss_dpq.IndexDPQ
    faiss_dpq.uninstall()
    assert functions() == STOCK


def test_as_a_context_manager_the_outermost_takes_it_back():
    with faiss_dpq.install():
        with faiss_dpq.install():
            pass
        assert functions() != STOCK
        with pytest.raises(ZeroDivisionError), faiss_dpq.install():
            1 / 0  # noqa: B018
        assert functions() != STOCK
    assert functions() == STOCK
    with pytest.raises(ZeroDivisionError), faiss_dpq.install():
        1 / 0  # noqa: B018
    assert functions() == STOCK


def test_faiss_makes_reads_and_copies_ours(tmp_path):
    faiss_dpq.install()
    for description in ("DPQ4x4", "IVF4,DPQ4x4", "IDMap2,PCA8,DPQ4x4"):
        index = faiss.index_factory(D, description, faiss.METRIC_L2)
        assert type(index).__module__.startswith("faiss_dpq")
        index.train(X)
        index.add_with_ids(X, np.arange(len(X))) if "IDMap" in description else index.add(X)
        faiss.write_index(index, str(tmp_path / "index"))
        for copy in (
            faiss.read_index(str(tmp_path / "index")),
            faiss.read_index(str(tmp_path / "index"), 0),
            faiss.deserialize_index(faiss.serialize_index(index)),
            faiss.clone_index(index),
        ):
            assert type(copy) is type(index)
            np.testing.assert_array_equal(copy.search(X[:9], 3)[1], index.search(X[:9], 3)[1])


@pytest.mark.parametrize(
    "description", ["PQ4x4", "IVF4,PQ4x4", "PCA8,Flat", "IDMap2,Flat", "Residual16,PQ4x4", "HNSW8"]
)
def test_what_has_no_dpq_stays_of_faiss(description):
    expected = type(faiss.index_factory(D, description))
    faiss_dpq.install()
    assert type(faiss.index_factory(D, description)) is expected
    assert expected.__module__.startswith("faiss.")
    with pytest.raises(RuntimeError):
        faiss.index_factory(D, "nonsense")


def test_functions_of_this_package_work_the_same_when_installed():
    faiss_dpq.install()
    index = faiss_dpq.index_factory(D, "PCA8,DPQ4x4")
    index.train(X, effort="fast")
    assert type(faiss_dpq.clone_index(index)) is faiss_dpq.IndexPreTransform
    assert type(faiss_dpq.index_factory(D, "Flat")) is faiss.IndexFlat


@pytest.mark.parametrize(
    ("description", "size"),
    [
        ("DPQ4x6", 3),
        ("DPQ8", 8),
        ("IVF64,DPQ4x6", 3),
        ("PCA8,DPQ4x8", 4),
        ("DPQ4x8,RFlat", 4 + 4 * D),
        ("OPQ4_8,DPQ4", 4),
    ],
)
def test_code_sizes_of_descriptions(description, size):
    with faiss_dpq.install():
        assert factory_tools.get_code_size(D, description) == size
        assert factory_tools.get_code_size(D, description.replace("DPQ", "PQ")) == size
    with pytest.raises(RuntimeError):
        factory_tools.get_code_size(D, "DPQ4x6")


@pytest.mark.parametrize(
    "description",
    [
        "DPQ4x6",
        "IVF8,DPQ4x6",
        "IMI2x3,DPQ2x4",
        "IVF8_HNSW8,DPQ4x6",
        "PCA8,DPQ4x6",
        "IDMap2,DPQ4x6",
        "IVF8(DPQ2x3),DPQ4x6",
    ],
)
def test_descriptions_of_indexes(description):
    with faiss_dpq.install():
        index = faiss.index_factory(D, description)
        assert factory_tools.reverse_index_factory(index) == description
        assert factory_tools.reverse_index_factory(faiss.IndexPQ(D, 4, 4)) == "PQ4x4"


@pytest.mark.parametrize("method", ["index", "pairwise_distances", "knn_function"])
def test_big_batches(method):
    with faiss_dpq.install():
        index = filled("IVF16,DPQ4x4")
        index.nprobe = 5
        D_expected, I_expected = index.search(X[:200], 4)
        D_found, I = big_batch_search.big_batch_search(index, X[:200], 4, method=method)
        np.testing.assert_allclose(D_found, D_expected, rtol=1e-4, atol=1e-4)
        assert (I_expected == I).mean() > 0.99
        stock = filled("IVF16,PQ4x4")
        np.testing.assert_allclose(
            big_batch_search.big_batch_search(stock, X[:50], 4, method=method)[0], stock.search(X[:50], 4)[0], rtol=1e-3
        )
        products = faiss.index_factory(D, "IVF16,DPQ4x4", faiss.METRIC_INNER_PRODUCT)
        products.train(X)
        with pytest.raises(RuntimeError, match="METRIC_L2"):
            big_batch_search.big_batch_search(products, X[:50], 4, method=method)


def test_no_index_is_written_and_read_as_faiss_does():
    writer = faiss.VectorIOWriter()
    faiss_dpq.write_index(None, writer)
    data = faiss.vector_to_array(writer.data)
    assert faiss.deserialize_index(data) is None
    assert faiss_dpq.deserialize_index(data) is None


def test_extracted_lists_are_ours():
    index = faiss_dpq.index_factory(D, "PCA8,IVF8,DPQ4x4")
    index.train(X, effort="fast")
    index.add(X)
    lists = faiss_dpq.downcast_index(faiss.extract_index_ivf(index))
    assert type(lists) is faiss_dpq.IndexIVFDPQ and lists.ntotal == len(X)
    lists.nprobe = 8
    xq = index._apply(X[:9], "search")
    np.testing.assert_array_equal(lists.search(xq, 3)[0], index.search(X[:9], 3)[0])
    assert faiss_dpq.downcast_index(index) is index
    assert faiss_dpq.downcast_index(None) is None


def test_blocks_that_overlap_keep_it_installed_until_the_last_ends():
    stock = faiss.index_factory
    first, second = faiss_dpq.install(), faiss_dpq.install()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert faiss.index_factory is not stock
    second.__exit__(None, None, None)
    assert faiss.index_factory is stock
    faiss_dpq.install()
    with faiss_dpq.install():
        pass
    assert faiss.index_factory is not stock
    faiss_dpq.uninstall()
    assert faiss.index_factory is stock


def test_what_others_have_replaced_since_stays():
    stock = faiss.index_factory
    faiss_dpq.install()
    ours = faiss.index_factory
    others = lambda *arguments: ours(*arguments)  # noqa: E731
    faiss.index_factory = others
    assert type(faiss.index_factory(8, "DPQ2x4")) is faiss_dpq.IndexDPQ
    faiss_dpq.uninstall()
    assert faiss.index_factory is others
    with pytest.raises(RuntimeError):
        faiss.index_factory(8, "DPQ2x4")
    faiss.index_factory = stock
