"""ParameterSpace: FAISS's parameters and ours by name, within wrappers too, and operating points of our search."""

from types import SimpleNamespace

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq.index import parameters as parameter_space

DIM, N, NQ = 12, 800, 30
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, DIM)).astype(np.float32)
XQ = (X[:NQ] + 0.3 * RNG.standard_normal((NQ, DIM))).astype(np.float32)
CODEBOOKS = naive.random_codebooks(RNG, 4, 32, DIM)


@pytest.fixture
def space():
    space = faiss_dpq.ParameterSpace()
    space.verbose = 0
    return space


def dpq():
    return faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS)


def ivf_dpq(quantizer=None, nlist=16):
    if quantizer is None:
        quantizer = faiss.IndexFlatL2(DIM)
        quantizer.add(X[:nlist])
    return faiss_dpq.IndexIVFDPQ.from_codebooks(quantizer, CODEBOOKS)


def pre_transform(inner):
    transform = faiss.RandomRotationMatrix(DIM, DIM)
    transform.init(1)
    return faiss_dpq.IndexPreTransform(transform, inner)


def shards(*inners):
    wrapper = faiss_dpq.IndexShards(DIM)
    for inner in inners:
        wrapper.add_shard(inner)
    return wrapper


def ranges_of(space):
    ranges = {}
    for i in range(space.parameter_ranges.size()):
        parameter_range = space.parameter_ranges.at(i)
        ranges[parameter_range.name] = faiss.vector_to_array(parameter_range.values).tolist()
    return ranges


def recall(k=10):
    truth = faiss.IndexFlatL2(DIM)
    truth.add(X)
    criterion = faiss.OneRecallAtRCriterion(NQ, k)
    criterion.nnn = k
    criterion.set_groundtruth(*truth.search(XQ, k))
    return criterion


# ---- set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda index: index,
        lambda index: faiss_dpq.IndexIDMap(index),
        lambda index: faiss_dpq.IndexIDMap2(pre_transform(index)),
        lambda index: faiss_dpq.IndexRefineFlat(pre_transform(index)),
        lambda index: faiss_dpq.IndexIDMap2(faiss_dpq.IndexRefine(index, faiss.IndexFlatL2(DIM))),
    ],
)
def test_parameters_reach_the_index_within(space, wrap):
    inner = dpq()
    space.set_index_parameters(wrap(inner), "levels=2, beam_size=5")
    assert (inner.levels, inner.beam_size) == (2, 5)
    inner = ivf_dpq()
    space.set_index_parameters(wrap(inner), "prefix_weight = 0.25 , parallel_weight= 1.5")
    assert (inner.prefix_weight, inner.parallel_weight) == (0.25, 1.5)
    space.set_index_parameters(wrap(inner), "levels=3,beam_size=7,nprobe=11 max_codes=100")
    assert (inner.levels, inner.beam_size, inner.nprobe, inner.max_codes) == (3, 7, 11, 100)
    space.set_index_parameter(wrap(inner), "max_codes", float("inf"))
    assert inner.max_codes == 0


def test_parameters_reach_all_shards_and_replicas(space):
    inners = [ivf_dpq(), ivf_dpq()]
    replicas = faiss_dpq.IndexReplicas(DIM)
    for inner in inners:
        replicas.addIndex(inner)
    for number, wrapper in enumerate([shards(*inners), replicas], 2):
        space.set_index_parameters(wrapper, f"nprobe={number},levels={number}")
        assert [(inner.nprobe, inner.levels) for inner in inners] == [(number, number)] * 2


@pytest.mark.parametrize("name", ["k_factor", "k_factor_rf"])
def test_the_factor_of_refinement(space, name):
    refined = faiss_dpq.IndexRefineFlat(dpq())
    space.set_index_parameter(faiss_dpq.IndexIDMap2(refined), name, 7)
    assert refined.k_factor == 7
    # FAISS truncates it; so does this.
    for index, chosen in ((refined, space), (faiss.IndexRefineFlat(dpq()), faiss.ParameterSpace())):
        chosen.set_index_parameter(index, "k_factor_rf", 3.7)
        assert index.k_factor == 3


def test_an_inner_factor_of_that_name_comes_first(space):
    inner = faiss.index_factory(DIM, "IVF4,PQ4+4")
    refined = faiss_dpq.IndexRefineFlat(inner)
    space.set_index_parameter(refined, "k_factor", 9)
    space.set_index_parameter(refined, "k_factor_rf", 5)
    assert (inner.k_factor, refined.k_factor) == (9, 5)


def test_parameters_of_the_coarse_quantizer(space):
    coarse = dpq()
    coarse.add(X[:64])
    index = ivf_dpq(coarse)
    space.set_index_parameters(faiss_dpq.IndexIDMap2(index), "quantizer_levels=2,nprobe=3")
    assert (coarse.levels, index.levels, index.nprobe) == (2, 4, 3)
    fine = faiss.index_factory(DIM, "IVF8,Flat")
    fine.train(X)
    fine.add(X[:64])
    index = ivf_dpq(fine)
    space.set_index_parameters(index, "quantizer_nprobe=5,nprobe=2")
    assert (fine.nprobe, index.nprobe) == (5, 2)
    hnsw = faiss.IndexHNSWFlat(DIM, 8)
    hnsw.add(X[:64])
    index = ivf_dpq(hnsw)
    space.set_index_parameters(index, "efSearch=21")
    assert hnsw.hnsw.efSearch == 21
    space.set_index_parameters(index, "quantizer_efSearch=22")
    assert hnsw.hnsw.efSearch == 22


def test_verbose_is_set_all_the_way_in(space):
    inner = dpq()
    wrapper = faiss_dpq.IndexIDMap2(pre_transform(inner))
    space.set_index_parameter(wrapper, "verbose", 1)
    assert wrapper.verbose and wrapper.index.verbose and inner.verbose
    space.set_index_parameters(wrapper, "verbose=0")
    assert not (wrapper.verbose or wrapper.index.verbose or inner.verbose)


def test_indexes_of_faiss_are_set_as_by_faiss(space):
    for description, parameters in [
        ("IVF16,PQ4", "nprobe=7,ht=12,max_codes=9"),
        ("PCA8,IVF16_HNSW8,PQ4,RFlat", "nprobe=3,efSearch=44,k_factor_rf=8"),
        ("IDMap2,HNSW8", "efSearch=33"),
    ]:
        ours, stock = (faiss.index_factory(DIM, description) for _ in range(2))
        space.set_index_parameters(ours, parameters)
        faiss.ParameterSpace().set_index_parameters(stock, parameters)
        np.testing.assert_array_equal(faiss.serialize_index(ours), faiss.serialize_index(stock))


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ("foo=1", RuntimeError, "could not set parameter foo"),
        ("nprobe=3", RuntimeError, "could not set parameter nprobe"),
        ("quantizer_levels=1", RuntimeError, "could not set parameter quantizer_levels"),
        ("k_factor=0.5", ValueError, "k_factor is 0.5"),
        ("k_factor=nan", ValueError, "k_factor is nan"),
        ("coarse_levels=5", ValueError, "coarse_levels is 5"),
        ("levels", RuntimeError, "could not interpret parameters levels"),
        ("levels=", RuntimeError, "could not interpret parameters levels="),
        ("levels=two", RuntimeError, "could not interpret parameters levels=two"),
        ("=2", RuntimeError, "could not interpret parameters =2"),
        ("levels=3,levels", RuntimeError, "could not interpret"),
        ("levels=5", ValueError, "levels is 5"),
        ("levels=0", ValueError, "levels is 0"),
        ("beam_size=0", ValueError, "beam_size is 0"),
    ],
)
def test_what_cannot_be_set_is_refused(space, parameters, error, message):
    inner = dpq()
    before = inner.levels, inner.beam_size
    for index in (inner, faiss_dpq.IndexIDMap2(pre_transform(inner))):
        with pytest.raises(error, match=message):
            space.set_index_parameters(index, parameters)
    assert (inner.levels, inner.beam_size) == before


@given(
    values=st.lists(st.tuples(st.sampled_from(["levels", "beam_size", "nprobe"]), st.integers(1, 4)), max_size=6),
    separator=st.sampled_from([",", " ", ", ", ",,"]),
)
def test_strings_of_parameters(values, separator):
    index = ivf_dpq()
    expected = {"levels": index.levels, "beam_size": index.beam_size, "nprobe": index.nprobe} | dict(values)
    faiss_dpq.ParameterSpace().set_index_parameters(index, separator.join(f"{name}={value}" for name, value in values))
    assert {name: getattr(index, name) for name in expected} == expected


# ---- explore -------------------------------------------------------------------------------------------------------


def test_ranges_that_suit_the_index(space):
    space.initialize(faiss_dpq.IndexIDMap2(faiss_dpq.IndexRefineFlat(pre_transform(ivf_dpq()))))
    assert ranges_of(space) == {
        "k_factor_rf": [1, 2, 4, 8, 16, 32, 64],
        "nprobe": [1, 2, 4, 8],
        "levels": [1, 2, 3, 4],
    }
    coarse = dpq()
    coarse.add(X[:64])
    of_shards = faiss_dpq.ParameterSpace()
    of_shards.initialize(shards(ivf_dpq(coarse), ivf_dpq(coarse)))
    assert ranges_of(of_shards) == {
        "nprobe": [1, 2, 4, 8, 16, 32],
        "levels": [1, 2, 3, 4],
        "quantizer_levels": [1, 2, 3, 4],
    }
    of_many = faiss_dpq.ParameterSpace()
    of_many.initialize(faiss_dpq.IndexDPQ(DIM, 20, 2))
    assert ranges_of(of_many) == {"levels": [1, 2, 3, 4, 5, 6, 7, 8, 16, 20]}


@pytest.mark.parametrize(
    "description", ["IVF64,PQ4", "PCA8,IVF16_HNSW8,PQ4,RFlat", "HNSW8", "Flat", "IDMap2,IVF16,PQ4"]
)
def test_ranges_of_faiss_indexes_are_those_of_faiss(space, description):
    index = faiss.index_factory(DIM, description)
    space.initialize(index)
    stock = faiss.ParameterSpace()
    stock.initialize(index)
    assert ranges_of(space) == ranges_of(stock)


def test_combinations_are_numbered_as_by_faiss(space):
    index = ivf_dpq()
    space.initialize(index)
    assert space.n_combinations() == 16
    for number in range(16):
        space.set_index_parameters(index, number)
        assert space.combination_name(number) == f"nprobe={index.nprobe},levels={index.levels}"
    for number in (16, -1):
        with pytest.raises(RuntimeError, match=f"combination {number}, but there are 16"):
            space.set_index_parameters(index, number)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only searches move, by what the parameters cost: 10 * nprobe + levels seconds."""

    clock = SimpleNamespace(now=0.0, searched=[])
    original = faiss_dpq.IndexIVFDPQ.search

    def search(self, x, k, **more):
        clock.now += 10 * self.nprobe + self.levels
        clock.searched.append((len(x), self.nprobe, self.levels))
        return original(self, x, k, **more)

    monkeypatch.setattr(faiss_dpq.IndexIVFDPQ, "search", search)
    monkeypatch.setattr(parameter_space.time, "perf_counter", lambda: clock.now)
    return clock


def filled_ivf():
    index = ivf_dpq()
    index.add(X)
    return index


def pareto(points):
    """(performance, time) of those that no other is as good and faster than."""
    best, least = [], np.inf
    for performance, seconds in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if seconds < least and performance > 0:
            best.append((performance, seconds))
            least = seconds
    return best[::-1]


@pytest.mark.parametrize("wrap", [lambda index: index, lambda index: shards(index)])
def test_explore_finds_the_pareto_set(space, clock, wrap):
    index = filled_ivf()
    wrapper = wrap(index)
    space.initialize(wrapper)
    space.n_experiments = 0  # all
    points = space.explore(wrapper, XQ, recall())
    assert isinstance(points, faiss.OperatingPoints)
    assert points.all_pts.size() == len(clock.searched) == 16
    found = []
    for i in range(points.all_pts.size()):
        point = points.all_pts.at(i)
        space.set_index_parameters(wrapper, point.cno)
        assert point.key == f"nprobe={index.nprobe},levels={index.levels}"
        assert point.t == pytest.approx(10 * index.nprobe + index.levels)
        found.append((point.perf, point.t))
    optimal = [(points.optimal_pts.at(i).perf, points.optimal_pts.at(i).t) for i in range(points.optimal_pts.size())]
    assert optimal[0] == (0, 0)  # FAISS's first: doing nothing
    assert optimal[1:] == pareto(found)
    assert len(optimal) > 3
    assert points.t_for_perf(optimal[-1][0]) == optimal[-1][1]


def test_performance_is_that_of_the_python_search(space):
    index = filled_ivf()
    space.initialize(index)
    criterion = recall()
    points = space.explore(index, XQ, criterion)
    for i in range(points.all_pts.size()):
        point = points.all_pts.at(i)
        space.set_index_parameters(index, point.cno)
        D, I = index.search(XQ, 10)
        assert point.perf == faiss.AutoTuneCriterion.evaluate(criterion, D, I)
        assert point.t > 0


def test_explore_leaves_out_what_cannot_be_better(space, clock, monkeypatch):
    index = filled_ivf()
    space.initialize(index)
    criterion = recall()
    timed = faiss_dpq.IndexIVFDPQ.search

    def graded(self, x, k, **more):
        """More of both parameters is never worse, and good enough from nprobe * levels = 5 on."""
        D, I = timed(self, x, k, **more)
        I[:] = -1
        n_right = min(NQ, 6 * self.nprobe * self.levels)
        I[:n_right, 0] = np.arange(n_right)
        return D, I

    monkeypatch.setattr(faiss_dpq.IndexIVFDPQ, "search", graded)
    pruned = space.explore(index, XQ, criterion)
    tried = [(nprobe, levels) for _, nprobe, levels in clock.searched]
    assert tried[:2] == [(1, 1), (8, 4)]  # the fastest and the slowest, as in FAISS
    assert len(tried) == len(set(tried)) == pruned.all_pts.size() < 16
    space.n_experiments = 0
    everything = space.explore(index, XQ, criterion)
    assert everything.all_pts.size() == 16
    for i in range(everything.optimal_pts.size()):
        point = everything.optimal_pts.at(i)
        assert pruned.t_for_perf(point.perf) == point.t
    space.n_experiments = 3
    assert space.explore(index, XQ, criterion).all_pts.size() == 3


def test_explore_prunes_in_faiss_own_way(space, monkeypatch):
    """On an index of FAISS's, with all searches equally long: the same experiments as faiss.ParameterSpace."""
    monkeypatch.setattr(parameter_space.time, "perf_counter", lambda: 0.0)
    index = faiss.index_factory(DIM, "IVF16,PQ4x4np")
    index.train(X)
    index.add(X)
    space.initialize(index)
    points = space.explore(index, XQ, recall())
    assert points.all_pts.size() == 2  # no time passes: after two, nothing can be faster than doing nothing
    assert [points.all_pts.at(i).cno for i in range(2)] == [0, space.n_combinations() - 1]


@pytest.mark.parametrize("threads_over_batches", [False, True])
def test_batches_and_repetitions(space, clock, threads_over_batches):
    index = filled_ivf()
    space.initialize(index)
    space.n_experiments = 0
    whole = space.explore(index, XQ, recall())
    clock.searched.clear()
    space.batchsize, space.thread_over_batches = 7, threads_over_batches
    space.min_test_duration = 100
    points = space.explore(index, XQ, recall())
    assert {n for n, _, _ in clock.searched} == {7, 2}
    for i in range(points.all_pts.size()):
        assert points.all_pts.at(i).perf == whole.all_pts.at(i).perf
        # 5 batches a run, as many runs as it takes to 100 seconds: the mean is that of one run.
        assert points.all_pts.at(i).t == pytest.approx(5 * whole.all_pts.at(i).t)
    assert len(clock.searched) > 5 * 16


def test_explore_refuses_what_faiss_refuses(space):
    index = filled_ivf()
    space.initialize(index)
    with pytest.raises(AssertionError, match="xq has shape"):
        space.explore(index, XQ[:5], recall())
    with pytest.raises(AssertionError, match="xq has shape"):
        space.explore(index, XQ[:, :5], recall())
    space.n_experiments = 2
    with pytest.raises(RuntimeError, match="n_experiments is 2"):
        space.explore(index, XQ, recall())


def test_explore_without_parameters_measures_once(space):
    index = faiss.IndexFlatL2(DIM)
    index.add(X)
    space.initialize(index)
    points = space.explore(index, XQ, recall())
    assert points.all_pts.size() == 1 and points.all_pts.at(0).perf == 1


def test_verbose_tells_what_is_tried(space, capsys):
    index = dpq()
    index.add(X)
    space.initialize(index)
    space.verbose, space.n_experiments = 1, 0
    space.explore(index, XQ, recall())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "levels=1" in lines[0] and "perf=" in lines[0]


def test_it_is_a_faiss_parameter_space(space):
    assert isinstance(space, faiss.ParameterSpace)
    space.initialize(dpq())
    space.display()
    assert space.combination_ge(3, 1) and not space.combination_ge(1, 3)
