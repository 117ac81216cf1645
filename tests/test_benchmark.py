"""`faiss-dpq bench`: its measurements on small data, its folder, its report."""

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.cli import main
from faiss_dpq.lab import benchmark, methods
from faiss_dpq.lab.datasets import VectorSet


@pytest.fixture
def small(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1700, 16)).astype(np.float32)
    vectors = VectorSet(train=x[:600], base=x[600:1600], queries=x[1600:])
    monkeypatch.setattr(benchmark, "DATA", {"small": lambda: vectors})
    monkeypatch.setattr(methods, "NLIST", 4)
    monkeypatch.setattr(benchmark, "NPROBES", (1, 4))
    return vectors


def test_a_row_holds_what_the_index_does(small):
    nearest = benchmark.truth(small)
    (row,) = benchmark.measure("small", small, nearest, "IndexDPQ", 2)
    index = faiss_dpq.IndexDPQ(16, 2, 8)
    index.train(small.train)
    index.add(small.base)
    decoded = index.reconstruct_n(0, 1000)
    assert row.mse == pytest.approx(((decoded - small.base) ** 2).sum(1).mean())
    ids = index.search(small.queries, 100)[1]
    assert row.recalls == [float((ids[:, :r] == nearest[:, None]).any(1).mean()) for r in (1, 10, 100)]
    assert (row.size, row.nprobe) == (2, 0)


@pytest.mark.parametrize(("method", "size"), [("RQ beam 5", 2), ("LSQ", 2), ("PRQ", 4)])
def test_stock_additive_indexes_are_ranked_by_their_decoded_vectors(small, method, size):
    (row,) = benchmark.measure("small", small, benchmark.truth(small), method, size)
    index = benchmark.METHODS[method](16, size)
    index.train(small.train)
    index.add(small.base)
    assert index.code_size == row.size
    assert benchmark.recalls(index.search(small.queries, 100)[1], benchmark.truth(small)) == row.recalls


def test_codes_for_the_full_length_only_have_less_error(small):
    nearest = benchmark.truth(small)
    (whole,), (progressive,) = (
        benchmark.measure("small", small, nearest, method, 4) for method in ("IndexDPQ, full length only", "IndexDPQ")
    )
    assert whole.mse < progressive.mse


@pytest.mark.parametrize("method", ["IVF OPQ", "IVF RQ beam 5"])
def test_peers_with_inverted_lists_are_searched_in_more_and_more_of_them(small, method):
    few, many = benchmark.measure("small", small, benchmark.truth(small), method, 2)
    assert (few.nprobe, many.nprobe) == (1, 4)
    assert few.mse == many.mse
    assert few.recalls[2] < many.recalls[2]


def test_every_method_stores_the_asked_bytes():
    for name, make in benchmark.METHODS.items():
        index = make(32, 4 if name != "RaBitQ" else 12)
        if name == "RaBitQ":
            assert index.sa_code_size() == 12
        elif isinstance(index, faiss.IndexIVFPQFastScan):
            assert index.M2 * 4 // 8 == 4  # its codes are stored in blocks
        else:
            ivf = faiss.try_extract_index_ivf(index)
            assert (ivf.code_size if ivf else index.sa_code_size()) == 4, name
    assert benchmark.METHODS["PQ"](50, 4) is None
    assert [benchmark.METHODS["PRQ"](48, size).prq.nsplits for size in (4, 12, 16)] == [2, 3, 4]
    assert benchmark.METHODS["PRQ"](49, 8) is None
    assert benchmark.METHODS["RaBitQ"](50, 8) is None
    assert benchmark.METHODS["PQFastScan"](50, 4) is None


def test_command_measures_once_and_reports(small, tmp_path, capsys, threads):
    arguments = ["bench", "--data", "small", "--bytes", "2", "--output", str(tmp_path / "report")]
    chosen = ["--methods", "IndexDPQ", "PQ", "IVF PQ", "--prefixes", "2", "--threads", "1"]
    assert main([*arguments, *chosen]) == 0
    rows = benchmark.read_rows(tmp_path / "report")
    assert [(row.method, row.size, row.nprobe) for row in rows] == [
        *[("IndexDPQ", 2, 0), ("PQ", 2, 0), ("IVF PQ", 2, 1), ("IVF PQ", 2, 4)],
        *[("prefix of 2", 1, 0), ("prefix of 2", 2, 0)],
        *[(f"prefix of 2, prefix_weight {weight}", size, 0) for weight in (0.0, 0.3) for size in (1, 2)],
    ]
    assert rows[5].mse == pytest.approx(rows[0].mse)
    assert rows[6].mse > rows[4].mse > rows[8].mse  # 1 of 2, by prefix_weight
    assert rows[3].recalls[2] >= rows[2].recalls[2]
    assert main([*arguments, *chosen]) == 0
    assert benchmark.read_rows(tmp_path / "report") == rows
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| small | 2 | IVF PQ, nprobe 4 |" in report
    assert "| 1 of 2 | 0.05 |" in report
    assert "| 2 of 2 | 0.3 |" in report
    assert (tmp_path / "report" / "small.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing"], "--data: there is no 'nothing'"),
        (["--methods", "Nothing"], "--methods: there is no 'Nothing'"),
        (["--output", "/dev/null"], "is not a directory"),
    ],
)
def test_bad_arguments_fail_before_any_work(small, arguments, message, capsys):
    assert main(["bench", *arguments, *([] if "--data" in arguments else ["--data", "small"])]) == 1
    assert message in capsys.readouterr().err


def test_list_names_methods_and_data(small, capsys):
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "IVF DPQ" in printed
    assert "small" in printed
