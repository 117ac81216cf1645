"""`faiss-dpq` given what it cannot use: one line that says what, a status that is not 0, and no file left behind."""

import os

import faiss
import numpy as np
import pytest
from faiss.contrib.vecs_io import fvecs_write

import faiss_dpq
from faiss_dpq import vectors
from faiss_dpq.cli import main
from faiss_dpq.lab import own_vectors

N, D = 600, 8


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(x):
    index = faiss_dpq.IndexDPQ(D, 2, 4)
    index.train(x, effort="fast")
    return index


@pytest.fixture
def files(tmp_path, x, trained, monkeypatch):
    """A folder with vectors and indexes; commands run there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_vectors, "cache_folder", lambda: tmp_path / "cache")  # not matplotlib's, which lists fonts
    np.save("x.npy", x)
    np.save("none.npy", x[:0])
    faiss_dpq.write_index(trained, "trained.faiss")
    faiss_dpq.write_index(faiss_dpq.IndexIDMap2(faiss_dpq.clone_index(trained)), "mapped.faiss")
    filled = faiss_dpq.clone_index(trained)
    filled.add(x)
    faiss_dpq.write_index(filled, "filled.faiss")
    return tmp_path


@pytest.fixture
def no_work(files, monkeypatch):
    """Training, encoding and searching fail the test."""
    for name in ("train", "add", "search"):
        monkeypatch.setattr(faiss_dpq.IndexDPQ, name, lambda *_, **__: pytest.fail("work was begun"))


@pytest.fixture
def refused(files, no_work, capsys):
    """What a command line writes, one line, as it fails and leaves every file as it was."""

    def contents():
        return {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}

    def run(line, status=1):
        before, folders = contents(), set(files.rglob("*"))
        assert main(line.split()) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert contents() == before
        assert set(files.rglob("*")) == folders
        return err

    return run


def wrong_usage(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_vectors_of_other_lengths_within_a_file(files, refused, x):
    rows = np.empty((N, D + 1), np.int32)
    rows[:, 0], rows[:, 1:] = D, x.view(np.int32)
    rows[100, 0] = 7
    rows.tofile("mixed.fvecs")
    message = "mixed.fvecs: row 100 has 7 dimensions, expected the d=8 of row 0"
    for line in (
        "train mixed.fvecs --index DPQ2x4",
        "build trained.faiss mixed.fvecs",
        "search filled.faiss mixed.fvecs",
    ):
        assert message in refused(f"{line} -o o")
    (source,) = vectors.open_sources("mixed.fvecs")
    np.testing.assert_array_equal(source.rows(np.array([99, 101])), x[[99, 101]])
    with pytest.raises(ValueError, match="row 100 has 7 dimensions"):
        source.rows(np.array([99, 100]))


def test_a_file_that_was_cut(files, refused, x):
    fvecs_write("x.fvecs", x)
    for name in ("x.npy", "x.fvecs"):
        content = (files / name).read_bytes()
        (files / f"cut-{name}").write_bytes(content[: len(content) // 2 + 7])
        assert f"cut-{name}: not a file of vectors" in refused(f"train cut-{name} --index DPQ2x4 -o o")


def test_arrays_that_are_not_of_vectors(refused, x):
    np.save("flat.npy", x[0])
    np.save("narrow.npy", x[:, :0])
    np.save("words.npy", np.array([["a", "b"]]))
    np.savez("labels.npz", a=np.arange(5), b=np.arange(5))
    np.savez("one.npz", labels=np.arange(5))
    for name, message in [
        ("flat.npy", "holds float32 of shape (8,), expected numbers of shape (n, d)"),
        ("narrow.npy", "holds float32 of shape (600, 0), expected numbers of shape (n, d)"),
        ("words.npy", "holds <U1 of shape (1, 2), expected numbers"),
        ("labels.npz", "no array has two dimensions"),
        ("one.npz", "holds int64 of shape (5,), expected numbers"),
    ]:
        assert f"{name}: {message}" in refused(f"train {name} -o o")


def test_several_arrays_or_columns_and_none_named(refused, x):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    np.savez("two.npz", a=x, b=x)
    pq.write_table(pa.table({"v": list(x), "w": list(x)}), "two.parquet")
    pq.write_table(pa.table({"id": [1, 2]}), "none.parquet")
    assert "two.npz: 2 arrays have two dimensions, ['a', 'b']; column (--column) says" in refused("train two.npz -o o")
    assert "2 columns hold lists of numbers, ['v', 'w']; column (--column) says" in refused("train two.parquet -o o")
    assert "no column holds lists of numbers; its columns are ['id']" in refused("train none.parquet -o o")


def test_no_vectors_and_no_queries(refused):
    for line in (
        "build trained.faiss none.npy -o o",
        "build trained.faiss none.npy --shards 2 -o o",
        "search filled.faiss none.npy -o o",
        "suggest x.npy --queries none.npy",
        "bench --data none.npy",
        "bench --data x.npy --queries none.npy",
    ):
        assert "none.npy: holds no vectors" in refused(line)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_in_place_of_a_file(refused):
    os.mkfifo("pipe.npy")
    assert "pipe.npy: a pipe or a device, expected a file" in refused("train pipe.npy -o o")


def test_an_index_that_is_not_trained(refused):
    faiss_dpq.write_index(faiss_dpq.IndexDPQ(D, 2, 4), "untrained.faiss")
    for line in (
        "build untrained.faiss x.npy",
        "build untrained.faiss x.npy --shards 2",
        "search untrained.faiss x.npy",
    ):
        assert "untrained.faiss: the index is not trained; `faiss-dpq train` makes" in refused(f"{line} -o o")


def test_more_results_than_vectors(refused):
    assert "-k is 601, the index holds 600 vectors" in refused("search filled.faiss x.npy -k 601 -o o")
    assert "-k is 10, the index holds 0 vectors" in refused("search trained.faiss x.npy -o o")
    with pytest.raises(ValueError, match="suggest: k is 1001, expected 1 to 1000, the number of vectors"):
        faiss_dpq.suggest(np.ones((1000, 4), np.float32), k=1001)


def test_an_output_that_is_one_of_the_inputs(files, refused):
    os.link("x.npy", "again")
    for line in (
        "train x.npy -o x.npy",
        "train x.npy -o again",
        "build trained.faiss x.npy -o x.npy",
        "search filled.faiss x.npy -o x.npy",
        "search filled.faiss x.npy -o filled.faiss",
    ):
        assert f"--output: {line.split()[-1]} is one of the files that are read" in refused(line)


def test_rows_that_are_not_finite_leave_no_folder_of_shards(refused, x):
    bad = x.copy()
    bad[[3, 500], 2] = np.nan
    np.save("bad.npy", bad)
    assert "bad.npy: rows 3, 500 hold NaN" in refused("build trained.faiss x.npy bad.npy --shards 2 -o o")


def test_a_build_that_goes_on_is_not_checked_again(files, monkeypatch):
    line = ["build", "trained.faiss", "x.npy", "--shards", "2", "-o", "o"]
    assert main(line) == 0
    monkeypatch.setattr(vectors.Source, "check", lambda *_: pytest.fail("read again"))
    assert main(line) == 0


def test_ids_that_are_none(refused, x):
    for name in ("empty.npy", "text.npy"):
        with open(name, "w") as file:
            file.write("1\n2\n" * (name == "text.npy"))
    np.savez("several.npz", ids=np.arange(N))
    np.save("large.npy", np.full(N, 2**63, np.uint64))
    np.save("few.npy", np.arange(5))
    for name in ("empty.npy", "text.npy", "several.npz"):
        message = f"--ids: those in {name} are not an array: expected an .npy file of integers"
        assert message in refused(f"build mapped.faiss x.npy --ids {name} -o o")
    line = "build mapped.faiss x.npy --ids {} -o o"
    assert "hold 9223372036854775808, expected numbers up to 9223372036854775807" in refused(line.format("large.npy"))
    assert "int64 of shape (5,), expected integers of shape (600,)" in refused(line.format("few.npy"))


def test_numbers_that_are_none_or_out_of_range(files, capsys):
    for option, message in [
        ("--threads 0", "argument --threads: 0 is too small, the least is 1"),
        ("--seed abc", "argument --seed: 'abc' is no whole number"),
        ("--seed -1", "argument --seed: -1 is too small, the least is 0"),
        ("--seed 99999999999", "argument --seed: 99999999999 is too large, the most is 2147483647"),
    ]:
        for command in ("train x.npy -o o", "suggest x.npy", "bench --data x.npy", "demo"):
            assert message in wrong_usage(f"{command} {option}", capsys)


def test_values_of_parameters(refused):
    line = "search filled.faiss x.npy -o o --set "
    assert refused(line + "levels=9").endswith("levels is 9, the index has M=2 levels\n")
    assert "could not set parameter nprobe; codes have levels, " in refused(line + "nprobe=4")


def test_true_neighbours_that_are_none(refused):
    np.save("gt.npy", np.empty((N, 0), int))
    line = "bench --data x.npy --queries x.npy --groundtruth gt.npy --output o"
    assert "gt.npy: holds int64 of shape (600, 0), expected numbers" in refused(line)


def test_too_few_vectors_to_train_on(refused, x):
    np.save("few.npy", x[:255])
    message = "few.npy: 255 vectors to train on, expected 256 or more"
    assert message in refused("bench --data few.npy --queries x.npy --output o")


def test_results_that_cannot_be_written_leave_nothing(files, monkeypatch, capsys):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, "savez", full)
    before = sorted(os.listdir())
    assert main(["search", "filled.faiss", "x.npy", "-o", "o"]) == 1
    assert capsys.readouterr().err == f"faiss-dpq search: o: {os.strerror(28)}\n"
    assert sorted(os.listdir()) == before


def test_what_is_unusual_but_right(files, x):
    """Upper case, half precision, a column of lists, an array among others: each gives the codes of the vectors."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    whole = np.round(x)
    np.save("half.npy", whole.astype(np.float16))
    fvecs_write("X.FVECS", whole)
    pq.write_table(pa.table({"id": np.arange(N), "v": list(whole)}), "lists.parquet")
    np.savez("among.npz", vectors=whole, labels=np.arange(N))
    np.savez("two.npz", a=x, b=whole)
    np.save("columns.npy", np.asfortranarray(whole))
    expected = faiss_dpq.read_index("trained.faiss")
    expected.add(whole)
    for name in ("half.npy", "X.FVECS", "lists.parquet", "among.npz", "two.npz --column b", "columns.npy"):
        assert main(["build", "trained.faiss", *name.split(), "-o", "o", "-q"]) == 0
        built = faiss_dpq.read_index("o")
        codes, right = (faiss.vector_to_array(index.codes) for index in (built, expected))
        np.testing.assert_array_equal(codes, right, name)
