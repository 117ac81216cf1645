"""Every index and wrapper names class, method and argument where an argument is of a wrong type."""

import itertools

import faiss
import numpy as np
import pytest

import faiss_dpq

D, N = 8, 60
SOME = np.arange(2)


def _flat(x):
    index = faiss_dpq.IndexDPQ(D, 2, 3)
    index.train(x, effort="fast")
    return index


def _lists(x):
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), D, 2, 2, 3)
    index.train(x, effort="fast")
    return index


def _shards(cls, add):
    def made(x):
        index = cls(D)
        for _ in range(2):
            add(index, _flat(x))
        return index

    return made


MAKERS = {
    "flat": _flat,
    "lists": _lists,
    "IDMap": lambda x: faiss_dpq.IndexIDMap(_flat(x)),
    "IDMap2": lambda x: faiss_dpq.IndexIDMap2(_lists(x)),
    "PreTransform": lambda x: faiss_dpq.IndexPreTransform(faiss.NormalizationTransform(D), _flat(x)),
    "Refine": lambda x: faiss_dpq.IndexRefineFlat(_flat(x)),
    "Shards": _shards(faiss_dpq.IndexShards, lambda index, part: index.add_shard(part)),
    "Replicas": _shards(faiss_dpq.IndexReplicas, lambda index, part: index.add_replica(part)),
}
WRONG = {
    "search: params": lambda i, x, wrong: i.search(x[:2], 2, params=wrong),
    "search: k": lambda i, x, wrong: i.search(x[:2], wrong),
    "search: D": lambda i, x, wrong: i.search(x[:2], 2, wrong),
    "search: I": lambda i, x, wrong: i.search(x[:2], 2, I=wrong),
    "range_search: params": lambda i, x, wrong: i.range_search(x[:2], 1.0, params=wrong),
    "range_search: thresh": lambda i, x, wrong: i.range_search(x[:2], wrong),
    "search_and_reconstruct: params": lambda i, x, wrong: i.search_and_reconstruct(x[:2], 2, params=wrong),
    "search_and_reconstruct: R": lambda i, x, wrong: i.search_and_reconstruct(x[:2], 2, R=wrong),
    "merge_from: otherIndex": lambda i, x, wrong: i.merge_from(wrong),
    "reconstruct: x": lambda i, x, wrong: i.reconstruct(0, wrong),
    "reconstruct_batch: x": lambda i, x, wrong: i.reconstruct_batch(SOME, wrong),
    "reconstruct_n: x": lambda i, x, wrong: i.reconstruct_n(0, 2, wrong),
    "remove_ids: x": lambda i, x, wrong: i.remove_ids(wrong),
}
OF_CODES = {
    "sa_decode: codes": lambda i, codes, wrong: i.sa_decode(wrong),
    "sa_decode: x": lambda i, codes, wrong: i.sa_decode(codes, wrong),
    "add_sa_codes: codes": lambda i, codes, wrong: i.add_sa_codes(wrong, SOME),
    "add_sa_codes: ids": lambda i, codes, wrong: i.add_sa_codes(codes, wrong),
}


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module", params=MAKERS)
def index(request, x):
    index = MAKERS[request.param](x)
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(x, np.arange(N))
    else:
        index.add(x)
    return index


def _refused(index, argument, call):
    """The argument is named; removals raise the type of error that FAISS's do."""
    ntotal = index.ntotal
    with pytest.raises(AttributeError if argument == "remove_ids: x" else TypeError) as raised:
        call()
    assert str(raised.value).startswith(f"{type(index).__name__}.{argument} is a ")
    assert index.ntotal == ntotal


@pytest.mark.parametrize("wrong", [3.5, "a", [1, 2], object()], ids=["float", "text", "list", "object"])
@pytest.mark.parametrize("argument", WRONG)
def test_an_argument_of_a_wrong_type_is_named(index, x, argument, wrong):
    if argument == "range_search: thresh" and wrong == 3.5:
        wrong = None
    _refused(index, argument, lambda: WRONG[argument](index, x, wrong))


@pytest.mark.parametrize("argument", ["merge_from: otherIndex", "search: k", "remove_ids: x"])
def test_none_is_named_where_something_is_needed(index, x, argument):
    _refused(index, argument, lambda: WRONG[argument](index, x, None))


@pytest.mark.parametrize("argument", OF_CODES)
@pytest.mark.parametrize("kind", ["flat", "lists", "PreTransform", "Refine"])  # FAISS has no codes of the others
def test_an_argument_of_a_wrong_type_beside_codes_is_named(x, kind, argument):
    index = MAKERS[kind](x)
    codes = np.zeros((2, index.sa_code_size()), np.uint8)
    _refused(index, argument, lambda: OF_CODES[argument](index, codes, [1, 2]))


def test_an_array_of_a_wrong_shape_is_named(index):
    name = type(index).__name__
    with pytest.raises(AssertionError, match=rf"{name}\.reconstruct: x has shape \(3,\), expected \({D},\)"):
        index.reconstruct(0, np.empty(3, np.float32))
    with pytest.raises(AssertionError, match=rf"{name}\.reconstruct_n: x has shape \(2, 3\), expected \(2, {D}\)"):
        index.reconstruct_n(0, 2, np.empty((2, 3), np.float32))
    with pytest.raises(
        AssertionError, match=rf"{name}\.reconstruct_batch: x has shape \(3, {D}\), expected \(2, {D}\)"
    ):
        index.reconstruct_batch(SOME, np.empty((3, D), np.float32))


def test_an_array_that_cannot_be_written_to_is_named(index):
    name = type(index).__name__
    with pytest.raises(TypeError, match=rf"{name}\.reconstruct: x has dtype uint8, expected float32"):
        index.reconstruct(0, np.empty(D, np.uint8))
    with pytest.raises(TypeError, match=rf"{name}\.reconstruct_batch: x has dtype float64, expected float32"):
        index.reconstruct_batch(SOME, np.empty((2, D)))
    with pytest.raises(ValueError, match=rf"{name}\.reconstruct_n: x is not C-contiguous"):
        index.reconstruct_n(0, 2, np.empty((2, D), np.float32, order="F"))


def test_integers_of_numpy_are_numbers_of_results(index, x):
    for k in (np.int64(3), np.array(3)):
        np.testing.assert_array_equal(index.search(x[:2], k)[1], index.search(x[:2], 3)[1])


@pytest.mark.parametrize("kind", ["flat", "lists"])
@pytest.mark.parametrize(
    "name", ["levels", "coarse_levels", "beam_size", "k_factor", "prefix_weight", "parallel_weight"]
)
def test_a_setting_of_a_wrong_type_is_named(x, kind, name):
    index = MAKERS[kind](x)
    before = getattr(index, name)
    for wrong in ("2", None, [1]):
        with pytest.raises(TypeError, match=f"^{type(index).__name__}: {name} is a {type(wrong).__name__}, expected"):
            setattr(index, name, wrong)
    if name in ("levels", "coarse_levels", "beam_size"):
        with pytest.raises(ValueError, match=rf"^{type(index).__name__}: {name} is 1\.5, expected a whole number"):
            setattr(index, name, 1.5)
    assert getattr(index, name) == before
    setattr(index, name, np.float32(1))  # as ParameterSpace does
    assert getattr(index, name) == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [("lists", "max_nprobe"), *itertools.product(("flat", "lists"), ("levels", "coarse_levels", "k_factor"))],
)
def test_a_wrong_number_within_parameters_is_named(x, kind, name):
    given = {"coarse_levels": 1} if name == "k_factor" else {}
    make = faiss_dpq.SearchParametersDPQ if kind == "flat" else faiss_dpq.SearchParametersIVFDPQ
    index = MAKERS[kind](x)
    index.add(x)
    for queries in (x[:1], x[:5]):
        for _ in range(2):  # the second may go to the kernels at once
            with pytest.raises(TypeError, match=f"{name} is a str, expected a"):
                index.search(queries, 2, params=make(**given, **{name: "1"}))
            index.search(queries, 2)


def test_a_truth_value_is_no_number_of_results(x):
    with pytest.raises(TypeError, match=r"IndexDPQ\.search: k is a bool, expected an integer"):
        _flat(x).search(x, True)


@pytest.mark.parametrize("argument", ["d", "M", "nbits", "metric", "nlist"])
@pytest.mark.parametrize("wrong", ["4", 4.0, None])
def test_an_argument_of_a_constructor_of_a_wrong_type_is_named(argument, wrong):
    given = {"d": D, "M": 2, "nbits": 3, "metric": faiss.METRIC_L2} | {argument: wrong}
    with pytest.raises(TypeError, match=f"^IndexIVFDPQ: {argument} is a {type(wrong).__name__}, expected an integer"):
        faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), nlist=given.pop("nlist", 2), **given)
    if argument != "nlist":
        with pytest.raises(TypeError, match=f"^IndexDPQ: {argument} is a {type(wrong).__name__}, expected an integer"):
            faiss_dpq.IndexDPQ(**given)


def test_numbers_of_numpy_bound_what_is_derived(x):
    index = _flat(x)
    for value in (np.int64(3), np.float32(3)):
        index.derived_bytes_per_vector = value
        assert faiss_dpq.clone_index(index).derived_bytes_per_vector == 3


@pytest.mark.parametrize("wrap", [lambda i: i, faiss_dpq.IndexIDMap2, faiss_dpq.IndexPreTransform])
@pytest.mark.parametrize("n", [1, 5])
def test_parameters_of_another_kind_of_index_are_refused(x, wrap, n):
    """As IndexPQ refuses them: what they hold within, a selector say, would not be seen."""
    index = wrap(_flat(x))
    index.is_trained = True
    index.add_with_ids(x, np.arange(N)) if isinstance(index, faiss.IndexIDMap) else index.add(x)
    inner = faiss_dpq.SearchParametersDPQ(sel=faiss.IDSelectorRange(0, 2))
    others = [faiss.IndexRefineSearchParameters(base_index_params=inner), faiss.SearchParametersIVF(nprobe=2)]
    if not isinstance(index, faiss.IndexPreTransform):
        others.append(faiss.SearchParametersPreTransform(index_params=inner))
    for params in others:
        message = f"IndexDPQ: params is a {type(params).__name__}, expected SearchParameters or SearchParametersDPQ"
        with pytest.raises(RuntimeError, match=message):
            index.search(x[:n], 2, params=params)
        with pytest.raises(RuntimeError, match=message):
            index.range_search(x[:n], 1.0, params=params)
        with pytest.raises(RuntimeError, match=message):
            index.search_and_reconstruct(x[:n], 2, params=params)
        index.search(x[:n], 2)
