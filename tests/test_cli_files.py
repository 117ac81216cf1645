"""`faiss-dpq train, build, search`: options, what is checked before the work, and how a command ends."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.cli import main
from faiss_dpq.training import progress

N, D = 1797, 64


@pytest.fixture(scope="module")
def trained(digits):
    index = faiss_dpq.IndexDPQ(D, 3, 4)
    index.train(digits, effort="fast")
    return index


@pytest.fixture
def files(tmp_path, digits, trained, monkeypatch):
    """A folder with vectors and a trained index; commands run there."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", digits)
    faiss_dpq.write_index(trained, "trained.faiss")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Training and encoding fail the test."""
    for name in ("train", "add"):
        monkeypatch.setattr(faiss_dpq.IndexDPQ, name, lambda *_, **__: pytest.fail("work was begun"))


@pytest.fixture
def terminal(monkeypatch):
    """Standard error passes for a terminal."""
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def fails(capsys, *arguments, status=1):
    assert main(list(arguments)) == status
    return capsys.readouterr().err


# ---- options ---------------------------------------------------------------------------------------------------------


def test_training_takes_a_part_of_the_vectors_by_seed(files, digits):
    for name, options in [("a", []), ("b", ["--seed", "0"]), ("c", ["--seed", "7"]), ("d", ["--sample", "400"])]:
        command = ["train", "x.npy", "--index", "DPQ2x4", "--effort", "fast", "-o", name]
        assert main([*command, *(options if name == "d" else ["--max-train", "400", *options])]) == 0
    a, b, c, d = (faiss_dpq.read_index(name) for name in "abcd")
    np.testing.assert_array_equal(a.codebooks, d.codebooks)
    assert (b.rq.cp.seed, c.rq.cp.seed) == (0, 7)
    assert not np.array_equal(b.codebooks, c.codebooks)
    from faiss_dpq.vectors import sample_sources

    expected = faiss_dpq.IndexDPQ(D, 2, 4)
    expected.rq.cp.seed = 7
    expected.train(sample_sources(digits, 400, 7), effort="fast")
    np.testing.assert_array_equal(c.codebooks, expected.codebooks)


def test_efforts_go_through_wrappers(files):
    command = ["train", "x.npy", "--index", "IDMap2,PCA8,DPQ2x4", "-o", "wrapped.faiss"]
    assert main([*command, "--effort", "fast"]) == 0
    fast = (files / "wrapped.faiss").read_bytes()
    assert main(command) == 0
    assert (files / "wrapped.faiss").read_bytes() != fast


def test_ids_go_with_the_vectors(files, digits):
    ids = np.arange(N)[::-1] * 10
    np.save("ids.npy", ids)
    for index in ("IDMap2,DPQ3x4", "IVF8,DPQ3x4", "PCA16,IDMap,DPQ3x4"):
        assert main(["train", "x.npy", "--index", index, "--effort", "fast", "-o", "t"]) == 0
        assert main(["build", "t", "x.npy", "--ids", "ids.npy", "-o", "f"]) == 0
        found = faiss_dpq.read_index("f").search(digits[:50], 5)[1]
        numbered = faiss_dpq.read_index("t")
        numbered.add_with_ids(digits, ids)
        np.testing.assert_array_equal(found, numbered.search(digits[:50], 5)[1])


def test_an_id_map_without_ids_counts_on(files, digits):
    assert main(["train", "x.npy", "--index", "IDMap2,DPQ3x4", "--effort", "fast", "-o", "t"]) == 0
    for _ in range(2):
        assert main(["build", "t", "x.npy", "-o", "t"]) == 0
    index = faiss_dpq.read_index("t")
    np.testing.assert_array_equal(faiss.vector_to_array(index.id_map), np.arange(2 * N))


def test_bad_ids_are_refused_before_the_work(files, no_work, capsys):
    np.save("ids.npy", np.arange(5))
    assert "IndexDPQ keeps no ids; train it with --index 'IDMap2" in fails(
        capsys, "build", "trained.faiss", "x.npy", "--ids", "ids.npy", "-o", "f"
    )
    faiss_dpq.write_index(faiss_dpq.IndexIDMap2(faiss_dpq.read_index("trained.faiss")), "mapped.faiss")
    assert "--ids: those in ids.npy are int64 of shape (5,), expected integers of shape (1797,)" in fails(
        capsys, "build", "mapped.faiss", "x.npy", "--ids", "ids.npy", "-o", "f"
    )


def test_parameters_of_the_encoder_are_set_while_building(files, digits):
    command = ["build", "trained.faiss", "x.npy", "-o", "f", "--set", "prefix_weight = 0.5, beam_size=2"]
    assert main(command) == 0
    index, expected = faiss_dpq.read_index("f"), faiss_dpq.read_index("trained.faiss")
    assert (index.prefix_weight, index.beam_size) == (0.5, 2)
    expected.prefix_weight, expected.beam_size = 0.5, 2
    expected.add(digits)
    np.testing.assert_array_equal(index.sa_encode(digits), expected.sa_encode(digits))
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes), faiss.vector_to_array(expected.codes))


def test_several_files_and_half_precision_are_added_in_order(files, digits):
    np.save("first.NPY", digits[:1000].astype(np.float16))
    os.rename("first.NPY.npy", "first.NPY")
    np.savez("second.npz", digits[1000:])
    assert main(["build", "trained.faiss", "first.NPY", "second.npz", "-o", "f"]) == 0
    expected = faiss_dpq.read_index("trained.faiss")
    expected.add(digits)  # whole numbers up to 16
    index = faiss_dpq.read_index("f")
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes), faiss.vector_to_array(expected.codes))


def test_threads_are_set_for_the_command_alone(files, threads, monkeypatch):
    threads(2)
    seen = []
    search = faiss_dpq.IndexDPQ.search
    monkeypatch.setattr(
        faiss_dpq.IndexDPQ, "search", lambda *a, **k: seen.append(faiss.omp_get_max_threads()) or search(*a, **k)
    )
    assert main(["build", "trained.faiss", "x.npy", "-o", "f"]) == 0
    assert main(["search", "f", "x.npy", "--threads", "1", "-o", "r.npz"]) == 0
    assert set(seen) == {1}
    assert faiss.omp_get_max_threads() == 2


# ---- checked before the work -----------------------------------------------------------------------------------------


def test_outputs_are_checked_before_the_work(files, no_work, capsys):
    for output, message in [("no/such/f", "no/such"), (".", "is a directory")]:
        for command in (["train", "x.npy"], ["build", "trained.faiss", "x.npy"], ["search", "trained.faiss", "x.npy"]):
            error = fails(capsys, *command, "-o", output)
            assert error.startswith(f"faiss-dpq {command[0]}: --")
            assert message in error


def test_an_output_that_may_not_be_written_is_said_before_the_work(files, no_work, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "--output: f cannot be written: permission denied" in fails(capsys, "train", "x.npy", "-o", "f")


def test_inputs_are_checked_before_the_work(files, digits, no_work, capsys):
    bad = digits.copy()
    bad[[3, 1500], 5] = np.nan
    np.save("bad.npy", bad)
    np.save("narrow.npy", digits[:, :9])
    (files / "empty.npy").touch()
    filled = faiss.read_index("trained.faiss")
    filled.add(digits)
    faiss.write_index(filled, "filled.faiss")
    for arguments, message in [
        (["build", "trained.faiss", "bad.npy"], "bad.npy: rows 3, 1500 hold NaN"),
        (["build", "trained.faiss", "x.npy", "bad.npy"], "bad.npy: rows 3, 1500 hold NaN"),
        (["search", "filled.faiss", "bad.npy"], "bad.npy: rows 3, 1500 hold NaN"),
        (["train", "bad.npy"], "bad.npy: rows 3, 1500 hold NaN"),
        (["build", "trained.faiss", "narrow.npy"], "narrow.npy: vectors of 9 dimensions, the index has d=64"),
        (["search", "trained.faiss", "narrow.npy"], "narrow.npy: vectors of 9 dimensions, the index has d=64"),
        (["train", "empty.npy"], "empty.npy: the file is empty, it has 0 bytes"),
        (["train", "absent.npy"], "absent.npy: No such file or directory"),
        (["build", "absent.faiss", "x.npy"], "absent.faiss: there is no such file"),
        (["train", "x.npy", "--index", "DPQ4x99"], "nbits is 99, expected 1 to 12"),
        (["train", "x.npy", "--index", "nonsense"], "nonsense"),
        (["build", "x.npy", "x.npy"], "x.npy: Index type "),
        (
            ["build", "trained.faiss", "x.npy", "--set", "nonsense=1"],
            "--set nonsense=1: could not set parameter nonsense; ",
        ),
        (
            ["build", "trained.faiss", "x.npy", "--set", "levels=x"],
            "--set levels=x: could not interpret parameters levels=x",
        ),
        (["build", "trained.faiss", "x.npy", "--set", "prefix_weight=-1"], "--set prefix_weight=-1: "),
        (["build", "trained.faiss", "x.npy", "--ray", "local"], "--shards: how many? --ray builds a folder of shards"),
    ]:
        error = fails(capsys, *arguments, "-o", "f")
        assert message in error
        assert "Error in" not in error  # the place in C++
        assert error.count("\n") == 1
    assert not (files / "f").exists()


# ---- progress, quiet, the end ----------------------------------------------------------------------------------------


def test_progress_is_shown_on_terminals_unless_quiet(files, terminal, capsys):
    build, search = ["build", "trained.faiss", "x.npy", "-o", "f"], ["search", "f", "x.npy", "-o", "r.npz"]
    for command, word in [(build, "encoding"), (search, "searching")]:
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert word in err
        assert out
        assert main([*command, "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")


def test_no_progress_where_standard_error_is_no_terminal(files, capsys):
    assert main(["build", "trained.faiss", "x.npy", "-o", "f"]) == 0
    assert capsys.readouterr().err == ""


def test_an_interrupt_ends_with_130_and_one_line(files, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss_dpq.IndexDPQ, "add", interrupted)
    assert fails(capsys, "build", "trained.faiss", "x.npy", "-o", "f", status=130) == "faiss-dpq build: interrupted\n"
    assert not (files / "f").exists()


def test_control_c_in_a_long_training(files):
    x = np.random.default_rng(0).standard_normal((20000, 64)).astype(np.float32)
    np.save("large.npy", x)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A process that was started in the background ignores the signal, and so do those that it starts.
    code = (
        "import signal, sys, faiss_dpq.cli as c; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True); sys.exit(c.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", "large.npy", "--index", "DPQ8x8", "-o", "f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout.readline() == "ready\n"
        try:
            run.wait(1)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
        _, err = run.communicate()
    assert (run.returncode, err) == (130, "faiss-dpq train: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes")
def test_a_closed_pipe_is_no_error(files):
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "faiss_dpq", "info", "trained.faiss"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_version_and_python_m(capfd):
    result = subprocess.run(
        [sys.executable, "-m", "faiss_dpq", "--version"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout == f"faiss-dpq {faiss_dpq.__version__}, FAISS {faiss.__version__}\n"


def test_debug_shows_where_an_error_came_from(files):
    with pytest.raises(RuntimeError):
        main(["train", "x.npy", "--index", "DPQ4x99", "-o", "f", "--debug"])
