"""Building and searching on a cluster of two nodes on the loopback, while parts of it are killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

# Ray takes a loopback address for one that others cannot reach, and would put this machine's own in its place.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"
pytest.importorskip("ray")

import faiss
import ray
from ray.cluster_utils import Cluster

import faiss_dpq
from faiss_dpq import shards
from faiss_dpq.shards.ray import RayExecutor, RayIndex

N, D = 1797, 64
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}


@pytest.fixture(autouse=True)
def bounded():
    """End a test that waits for a cluster in vain."""

    def stop(*_):
        raise TimeoutError("the test took over a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def two_nodes(cluster):
    """A cluster of two nodes with a CPU each, whatever the test before removed."""
    while len(cluster.list_all_nodes()) < 2:
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture(scope="module")
def trained(digits):
    index = faiss_dpq.index_factory(D, "IVF16,DPQ3x4")
    index.train(digits, effort="fast")
    index.nprobe = 4
    return index


@pytest.fixture(scope="module")
def one(trained, digits):
    """The index that is filled in one go."""
    index = faiss_dpq.clone_index(trained)
    index.add(digits)
    return index


@pytest.fixture(scope="module")
def source(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "digits.npy"
    np.save(path, digits)
    return path


@pytest.fixture(scope="module")
def here(trained, source, tmp_path_factory):
    """The manifest of a build by one process, where nothing is killed."""
    return shards.build_shards(trained, source, tmp_path_factory.mktemp("here"), 3, rows_per_part=200)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def checksums(manifest):
    return [shard["sha256"] for shard in manifest["shards"]]


class Striking(RayExecutor):
    """Puts a call before others' in their place; it may end the process, or wait for that."""

    def __init__(self, strike, folder):
        super().__init__()
        self.strike, self.folder = strike, folder

    def submit(self, fn, /, *args):
        return super().submit(self.strike, self.folder, fn, *args)


def first_time(folder, name):
    """Whether no process has asked this before."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die_once_of_each_kind(folder, fn, build, task):
    """Die before a part, after its codes are written but not its record, and in the middle of a shard."""
    from faiss_dpq.shards import parts

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if fn is shards.encode_part and task.number == 2 and first_time(folder, "before"):
        die()
    if fn is shards.encode_part and task.number == 5 and first_time(folder, "between"):
        parts.write_record = die
    if fn is shards.assemble_shard and task.number == 1 and first_time(folder, "shard"):
        die()
    assert faiss.omp_get_max_threads() == 1  # as many as the task's CPUs
    return fn(build, task)


def test_a_build_in_which_workers_are_killed(two_nodes, trained, source, here, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    executor = Striking(die_once_of_each_kind, tmp_path)
    manifest = shards.build_shards(trained, source, tmp_path / "out", 3, rows_per_part=200, executor=executor)
    assert {"before", "between", "shard"} <= set(os.listdir(tmp_path))
    assert checksums(manifest) == checksums(here)
    shards.verify(tmp_path / "out")


def stay_on_the_second_node(folder, fn, build, task, head):
    """Let the second node hold a call until it is removed, and the first do nothing before."""
    if ray.get_runtime_context().get_node_id() != head:
        (folder / "on-second").touch()
        time.sleep(60)
    while not (folder / "on-second").exists():
        time.sleep(0.02)
    return fn(build, task)


def test_a_build_in_which_a_node_is_removed(two_nodes, trained, source, here, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    head = ray.get_runtime_context().get_node_id()

    class Staying(RayExecutor):
        def submit(self, fn, /, *args):
            return super().submit(stay_on_the_second_node, tmp_path, fn, *args, head)

    def remove():
        while not (tmp_path / "on-second").exists():
            time.sleep(0.02)
        second = next(node for node in two_nodes.list_all_nodes() if node is not two_nodes.head_node)
        two_nodes.remove_node(second)

    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    manifest = shards.build_shards(trained, source, tmp_path / "out", 3, rows_per_part=200, executor=Staying())
    remover.join()
    assert checksums(manifest) == checksums(here)


def test_a_driver_that_is_killed_and_run_again(two_nodes, trained, source, here, tmp_path):
    faiss_dpq.write_index(trained, tmp_path / "trained.faiss")
    run = "from faiss_dpq.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", run, "build", tmp_path / "trained.faiss", source]
    command += ["-o", tmp_path / "out", "--shards", "3", "--ray", two_nodes.address, "--rows-per-part", "20"]
    command = list(map(str, command))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (done := list(tmp_path.glob("out/parts/*/part-*.json"))) and driver.poll() is None:
        time.sleep(0.001)
    driver.kill()
    driver.wait(30)
    assert done
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in done}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    assert checksums(shards.verify(tmp_path / "out")) == checksums(here)


def fail(folder, fn, build, task):
    if task.number == 3:
        with (folder / "attempts").open("a") as file:
            file.write("x")
        raise OSError("the disk of part 3 is broken")
    return fn(build, task)


def test_a_part_that_fails_three_times_stops_the_build(two_nodes, trained, source, here, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(shards.BuildError) as caught:
        shards.build_shards(trained, source, tmp_path / "out", 3, rows_per_part=200, executor=Striking(fail, tmp_path))
    text = str(caught.value)
    assert f"part 3 (rows 600 to 800 of {source})" in text
    assert "in fail" in text and "OSError: the disk of part 3 is broken" in text  # the worker's traceback
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert list(tmp_path.glob("out/parts/*/part-*.json"))
    manifest = shards.build_shards(trained, source, tmp_path / "out", 3, rows_per_part=200, executor=RayExecutor())
    assert checksums(manifest) == checksums(here)


def test_bad_rows_and_other_versions_stop_at_once(two_nodes, trained, digits, source, tmp_path, monkeypatch):
    bad = digits.copy()
    bad[1234, 5] = np.nan
    with pytest.raises(ValueError, match="array: row 1234 holds NaN"):
        shards.build_shards(trained, bad, tmp_path / "bad", 2, rows_per_part=500, executor=RayExecutor())
    monkeypatch.setattr(faiss_dpq, "__version__", "99.0.0")
    with pytest.raises(RuntimeError, match=r"a build of faiss_dpq 99\.0\.0; this is faiss_dpq"):
        shards.build_shards(trained, source, tmp_path / "out", 2, rows_per_part=500, executor=RayExecutor())
    monkeypatch.undo()
    shards.build_shards(trained, source, tmp_path / "built", 1, rows_per_part=500)
    monkeypatch.setattr(faiss_dpq, "__version__", "99.0.0")
    with pytest.raises(RuntimeError, match=r"has faiss_dpq .*, expected 99\.0\.0, as where the program runs"):
        RayIndex(tmp_path / "built")


def test_a_search_is_that_of_one_index_whatever_is_killed(two_nodes, trained, one, source, digits, tmp_path):
    shards.build_shards(trained, source, tmp_path, 2, rows_per_part=500)
    queries = np.repeat(digits, 20, axis=0)[:30_001] + np.float32(0.25)
    expected = one.search(queries, 20)
    params = faiss_dpq.SearchParametersIVFDPQ(nprobe=16, levels=2, sel=faiss.IDSelectorArray(np.arange(0, N, 3)))
    with RayIndex(tmp_path) as index:
        assert (index.ntotal, index.d) == (N, D)
        assert_same(index.search(digits[:1], 5), one.search(digits[:1], 5))
        assert_same(index.search(digits[:300], 7, params), one.search(digits[:300], 7, params=params))
        assert_same(index.range_search(digits[:300], 400.0), one.range_search(digits[:300], 400.0))
        assert_same(index.search(digits[:0], 3), one.search(digits[:0], 3))
        pids = [ray.get(replicas[0].actor.ready.remote()) for replicas in index._replicas]
        killer = threading.Timer(0.1, os.kill, (pids[1], signal.SIGKILL))
        killer.start()
        assert_same(index.search(queries, 20), expected)
        killer.join()
        assert ray.get(index._replicas[1][0].actor.ready.remote()) != pids[1]
        for wrong, error in (
            (digits[:2, :3], AssertionError),
            (digits[0], ValueError),
            (digits.astype(str), TypeError),
        ):
            with pytest.raises(error, match=r"RayIndex\.search: x has"):
                index.search(wrong, 1)
        with pytest.raises(AssertionError, match="k is 0"):
            index.search(digits, 0)
        with pytest.raises(ValueError, match="levels is 9"):
            index.search(digits[:5], 1, faiss_dpq.SearchParametersIVFDPQ(levels=9))


def test_a_shard_without_a_replica_raises(two_nodes, trained, one, source, digits, tmp_path):
    shards.build_shards(trained, source, tmp_path, 1, rows_per_part=500)
    with RayIndex(tmp_path, num_replicas=2) as index:
        pids = [ray.get(replica.actor.ready.remote()) for replica in index._replicas[0]]
        assert len(set(pids)) == 2
        queries = np.repeat(digits, 3, axis=0)
        assert_same(index.search(queries, 4), one.search(queries, 4))
        shard = tmp_path / "shards" / "shard-00000.faiss"
        shard.rename(tmp_path / "away")  # nothing can be started again
        os.kill(pids[0], signal.SIGKILL)
        assert_same(index.search(queries, 4), one.search(queries, 4))  # by the other one
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"shards/shard-00000\.faiss has no replica left"):
            index.search(queries, 4)
    with pytest.raises(RuntimeError, match=r"shard-00000\.faiss: missing"):
        RayIndex(tmp_path)
    (tmp_path / "away").rename(shard)
    with pytest.raises(RuntimeError, match="did not start in 1 s; has the cluster CPUs left"):
        RayIndex(tmp_path, num_replicas=3, start_timeout=1)


_LOCAL = """
import os
from pathlib import Path

import ray
from faiss_dpq.shards.ray import RayExecutor

assert RayExecutor(num_cpus=1).submit(sum, [1, 2]).result() == 3
session = ray._private.worker._global_node.get_session_dir_path()
lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
listening = {f"socket:[{line[9]}]": line[1].split(":")[0] for line in lines if line[3] == "0A"}
found = set()
for process in Path("/proc").glob("[0-9]*"):
    try:
        if session.encode() in (process / "cmdline").read_bytes() or int(process.name) == os.getpid():
            found |= {listening.get(os.readlink(handle)) for handle in (process / "fd").iterdir()}
    except OSError:
        continue
print(*sorted(found - {None}))
"""


def test_ray_that_is_started_here_listens_on_the_loopback_only():
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    run = subprocess.run([sys.executable, "-c", _LOCAL], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    addresses = set(run.stdout.split())
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_part_whose_codes_are_damaged_is_refused_and_then_made_anew(two_nodes, trained, source, here, tmp_path):
    executor = RayExecutor()
    shards.build_shards(trained, source, tmp_path, 3, rows_per_part=200, executor=executor)
    for path in (tmp_path / "manifest.json", tmp_path / "shards" / "shard-00001.faiss"):
        path.unlink()
    codes = next(iter(tmp_path.glob("parts/*/part-0000004-*.codes")))
    data = bytearray(codes.read_bytes())
    data[7] ^= 1
    codes.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"part 4 \(rows 800 to 1000 of .*damaged: its checksum"):
        shards.build_shards(trained, source, tmp_path, 3, rows_per_part=200, executor=executor)
    manifest = shards.build_shards(trained, source, tmp_path, 3, rows_per_part=200, executor=executor)
    assert checksums(manifest) == checksums(here)
