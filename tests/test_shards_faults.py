"""Builds that are interrupted, by whatever: the error says why, nothing is lost, and a second run goes on."""

import errno
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import shards
from faiss_dpq.cli import main
from faiss_dpq.index import writing

N, D = 1797, 64


@pytest.fixture(scope="module")
def trained(digits):
    index = faiss_dpq.IndexDPQ(D, 3, 4)
    index.train(digits, effort="fast")
    return index


@pytest.fixture(scope="module")
def here(trained, digits, tmp_path_factory):
    """The checksums of shards built from an array."""
    return checksums(shards.build_shards(trained, digits, tmp_path_factory.mktemp("here"), 2, rows_per_part=400))


def checksums(manifest):
    return [shard["sha256"] for shard in manifest["shards"]]


# ---- what goes wrong meanwhile ---------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_said_and_a_second_run_goes_on(tmp_path, trained, digits, here, monkeypatch):
    given = tmp_path / "digits.npy"
    np.save(given, digits)
    original, room = writing._create_aside, [9]

    def create(folder, mode):
        path, file = original(folder, mode)
        room[0] -= 1
        return path, file if room[0] > 0 else Full(file)

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_create_aside", create)
    n_done = 0
    for more in (1, 3, 2, 5, 1, 4):
        room[0] = more if n_done else 9
        with pytest.raises(OSError, match=r"No space left on device: '.*/out/") as caught:
            shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=200)
        assert caught.value.errno == errno.ENOSPC
        records = list(tmp_path.glob("out/parts/*/part-*.json"))
        assert len(records) >= n_done > 0 or n_done == 0
        n_done = len(records)
        assert not list(tmp_path.rglob(".faiss_dpq-*"))
    monkeypatch.setattr(writing, "_create_aside", original)
    manifest = shards.build_shards(trained, given, tmp_path / "out", 2, rows_per_part=200)
    assert checksums(manifest) == here


def test_a_part_that_fails_now_and_then_is_tried_again(tmp_path, trained, digits, here, monkeypatch):
    from faiss_dpq.shards import parts

    original, failures = parts.writing.write, {}

    def write(path, produce):
        number = re.search(r"part-(\d+)-", path)
        if number and failures.setdefault(number[1], 0) < 2:
            failures[number[1]] += 1
            raise OSError(errno.EIO, "a bad moment")
        original(path, produce)

    monkeypatch.setattr(parts.writing, "write", write)
    assert checksums(shards.build_shards(trained, digits, tmp_path, 2, rows_per_part=400)) == here
    assert list(failures.values()) == [2] * 5


_BUILD = """
import sys
import faiss_dpq
from faiss_dpq import shards
trained, source, output = sys.argv[1:]
shards.build_shards(faiss_dpq.read_index(trained), source, output, 2, rows_per_part=10)
"""


def test_a_process_that_is_killed_leaves_what_a_second_run_goes_on_from(tmp_path, trained, digits, here):
    np.save(tmp_path / "digits.npy", digits)
    faiss_dpq.write_index(trained, tmp_path / "trained.faiss")
    command = [
        sys.executable,
        "-c",
        _BUILD,
        *map(str, (tmp_path / "trained.faiss", tmp_path / "digits.npy", tmp_path / "out")),
    ]
    for _ in range(3):
        process = subprocess.Popen(command)
        n_done = len(list(tmp_path.glob("out/parts/*/part-*.json")))
        while len(list(tmp_path.glob("out/parts/*/part-*.json"))) < n_done + 5 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert checksums(shards.verify(tmp_path / "out")) == here


# ---- the command line ------------------------------------------------------------------------------------------------


def test_commands_build_search_and_describe_a_folder(tmp_path, digits, capsys):
    np.save(tmp_path / "a.npy", digits[:1000])
    np.save(tmp_path / "b.npy", digits[1000:].astype(np.float64))
    np.save(tmp_path / "queries.npy", digits[::9])
    trained, out, results = (str(tmp_path / name) for name in ("trained.faiss", "out", "results.npz"))
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    assert main(["train", *files, "--sample", "900", "--index", "DPQ3x4", "--effort", "fast", "-o", trained]) == 0
    build = ["build", trained, *files, "-o", out, "--shards", "2", "--rows-per-part", "300"]
    assert main(build) == 0
    captured = capsys.readouterr()
    assert f"{out}: IndexDPQ(d=64, M=3, nbits=4" in captured.out
    assert "1,797 vectors in 2 shards" in captured.out
    assert "faiss-dpq build: " in captured.err and "b.npy: float64 is converted to float32" in captured.err
    assert main(["search", out, str(tmp_path / "queries.npy"), "-k", "3", "--set", "levels=2", "-o", results]) == 0
    index = faiss_dpq.read_index(trained)
    sample = shards.sample_sources(files, 900)
    expected = faiss_dpq.IndexDPQ(D, 3, 4)
    expected.train(sample, effort="fast")
    np.testing.assert_array_equal(index.codebooks, expected.codebooks)
    index.add(digits)
    index.levels = 2
    with np.load(results) as found:
        np.testing.assert_array_equal(found["I"], index.search(digits[::9], 3)[1])
    capsys.readouterr()
    assert main(["info", out, "--verify"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "shards/shard-00001.faiss: rows 898 to 1,797, ids 898 to 1,796",
        "a.npy: 1,000 rows of float32",
        "all checksums",
    ):
        assert line in printed
    for arguments, message in [
        (["build", trained, *files, "-o", out], "--shards: how many?"),
        (["build", trained, *files, "-o", out, "--shards", "3"], "another build"),
        (["info", trained, "--verify"], "no manifest"),
        (["search", str(tmp_path), files[0], "-o", results], "not a folder of shards"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


def test_an_interrupt_leaves_what_the_same_command_goes_on_from(tmp_path, trained, digits, here, capsys, monkeypatch):
    from faiss_dpq.shards import build

    np.save(tmp_path / "digits.npy", digits)
    faiss_dpq.write_index(trained, tmp_path / "trained.faiss")
    command = ["build", str(tmp_path / "trained.faiss"), str(tmp_path / "digits.npy"), "-o", str(tmp_path / "out")]
    command += ["--shards", "2", "--rows-per-part", "400"]

    def interrupted(folder, part):
        if part.number == 3:
            raise KeyboardInterrupt
        return shards.encode_part(folder, part)

    monkeypatch.setattr(build, "encode_part", interrupted)
    assert main(command) == 130
    assert "interrupted; the same command goes on from what is done" in capsys.readouterr().err
    assert len(list(tmp_path.glob("out/parts/*/part-*.json"))) == 3
    monkeypatch.undo()
    assert main(command) == 0
    assert checksums(shards.read_manifest(tmp_path / "out")) == here


def test_progress_counts_vectors_that_were_done_before(tmp_path, trained, digits, monkeypatch):
    from faiss_dpq.training import progress

    bars = []

    class Bar:
        def __init__(self, **options):
            self.n, self.options = options["initial"], options
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr(progress, "bar", lambda **options: Bar(**options))
    plan = shards.plan_parts(digits, 400)
    shards.encode_part(shards.open_build(trained, plan, tmp_path), plan[2])
    shards.build_shards(trained, digits, tmp_path, 2, rows_per_part=400)
    assert [(bar.options["initial"], bar.options["total"], bar.n) for bar in bars] == [(400, N, N), (0, N, N)]
