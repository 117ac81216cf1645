"""`faiss-dpq bench` on a user's own vectors: files, true neighbours, methods beside, report."""

import json
import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
from faiss.contrib.vecs_io import fvecs_write, ivecs_write
from matplotlib.backends.backend_agg import FigureCanvasAgg

import faiss_dpq
from faiss_dpq.cli import main
from faiss_dpq.lab import benchmark, own_vectors, plots
from faiss_dpq.lab.methods import METHODS


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with 1,500 vectors, 60 queries, and an empty cache; commands run there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x = np.random.default_rng(0).standard_normal((1560, 16)).astype(np.float32)
    np.save("base.npy", x[:1500])
    np.save("q.npy", x[1500:])
    return x[:1500], x[1500:]


def rows(folder="out"):
    return json.loads((benchmark.Path(folder) / "rows.json").read_text())


def test_the_command_measures_beside_what_is_named(files, capsys):
    base, queries = files
    command = ["bench", "--data", "base.npy", "--queries", "q.npy", "--bytes", "2", "--output", "out"]
    assert main([*command, "--against", "OPQ", "RQ", "LSQ", "PQFastScan", "RaBitQ"]) == 0
    out, err = capsys.readouterr()
    assert [row["method"] for row in rows()] == ["IndexDPQ", "OPQ", "RQ beam 5", "LSQ", "PQFastScan"]
    assert "RaBitQ has no codes of 2 bytes for these" in err
    index = faiss_dpq.IndexDPQ(16, 2, 8)
    index.train(base)
    index.add(base)
    found = index.search(queries, 100)[1] == faiss.knn(queries, base, 1)[1]
    assert rows()[0]["recalls"] == [float(found[:, :rank].any(axis=1).mean()) for rank in (1, 10, 100)]
    assert "| base | 2 | IndexDPQ |" in out
    assert (benchmark.Path("out") / "base.png").read_bytes().startswith(b"\x89PNG")
    assert "| base | 2 | OPQ |" in (benchmark.Path("out") / "report.md").read_text()
    assert main([*command, "--against", "OPQ"]) == 0  # nothing new
    assert len(rows()) == 5


def test_true_neighbours_are_kept_by_checksum(files, monkeypatch):
    base, queries = files
    first = own_vectors.read(benchmark.Path("base.npy"), benchmark.Path("q.npy"))
    np.testing.assert_array_equal(first.nearest, faiss.knn(queries, base, 1)[1][:, 0])
    monkeypatch.setattr(faiss, "IndexFlatL2", lambda d: pytest.fail("computed again"))
    fvecs_write("copy.FVECS", base)
    again = own_vectors.read(benchmark.Path("copy.FVECS"), benchmark.Path("q.npy"))
    np.testing.assert_array_equal(again.nearest, first.nearest)
    assert (again.name, again.checksum) == ("copy", first.checksum)
    monkeypatch.undo()


def test_true_neighbours_may_be_given(files, monkeypatch):
    given = np.random.default_rng(0).integers(0, 1500, (60, 3))
    ivecs_write("gt.ivecs", given)
    monkeypatch.setattr(faiss, "IndexFlatL2", lambda d: pytest.fail("computed"))
    read = own_vectors.read(benchmark.Path("base.npy"), benchmark.Path("q.npy"), benchmark.Path("gt.ivecs"))
    np.testing.assert_array_equal(read.nearest, given[:, 0])


def test_queries_are_taken_out_where_none_are_given(files):
    base, _ = files
    read = own_vectors.read(benchmark.Path("base.npy"), max_train=300)
    assert [len(part) for part in read.vectors] == [300, 1350, 150]
    everything = {row.tobytes() for part in read.vectors[1:] for row in part}
    assert everything == {row.tobytes() for row in base}


def test_measurements_of_other_vectors_are_not_mixed(files, capsys):
    command = ["bench", "--data", "base.npy", "--bytes", "2", "--against", "PQ", "--output", "out"]
    assert main([*command, "--queries", "q.npy"]) == 0
    np.save("base.npy", files[0] + 1)
    assert main([*command, "--queries", "q.npy"]) == 1
    assert "out: holds measurements of other vectors named base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent.npy"], "absent.npy: No such file"),
        (["--data", "base.npy", "q.npy"], "one file of vectors at a time"),
        (["--data", "base.npy", "glove"], "one file of vectors at a time"),
        (["--data", "glove", "--queries", "q.npy"], "go with a file of vectors"),
        (["--data", "base.npy", "--against", "Nothing"], "--against: there is no 'Nothing', expected some of"),
        (["--data", "base.npy", "--groundtruth", "q.npy"], "groundtruth is given, but no queries"),
        (["--data", "base.npy", "--queries", "q.npy", "--groundtruth", "q.npy"], "q.npy: holds float32"),
        (["--data", "base.npy", "--output", "q.npy"], "is not a directory"),
    ],
)
def test_bad_arguments_fail_before_any_work(files, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("work was begun"))
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_one_off_work_is_in_no_time(files, monkeypatch):
    """All lists that are probed later have been searched before the first search is timed."""
    read = own_vectors.read(benchmark.Path("base.npy"), benchmark.Path("q.npy"))
    nprobes, timed = [], benchmark._timed
    search = faiss_dpq.IndexIVFDPQ.search
    monkeypatch.setattr(
        faiss_dpq.IndexIVFDPQ, "search", lambda self, *a, **k: nprobes.append(self.nprobe) or search(self, *a, **k)
    )
    monkeypatch.setattr(benchmark, "_timed", lambda *a: nprobes.append("timed") or timed(*a))
    monkeypatch.setattr("faiss_dpq.lab.methods.NLIST", 4)
    monkeypatch.setattr(benchmark, "NPROBES", (1, 4))
    list(benchmark.measure("base", read.vectors, read.nearest, "IVF DPQ", 2))
    assert nprobes == ["timed", "timed", 4, "timed", 1, "timed", 4]


# ---- plots -----------------------------------------------------------------------------------------------------------


def drawn(monkeypatch, name, measured):
    figures = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, *rest: figures.append(figure) or save(figure, *rest))
    plots.of_benchmark(name, measured, benchmark.Path("plot.png"))
    return figures[0]


def test_plots_read_right(files, monkeypatch):
    rng = np.random.default_rng(0)
    measured = [
        benchmark.Row(
            "base", method, size, nprobe, 1.0, sorted(rng.random(3)), 1.0, 1.0, float(10 ** (1 + 3 * rng.random()))
        )
        for method in METHODS
        for size in (2, 4, 8, 16)
        for nprobe in ((1, 4, 16, 64) if method.startswith("IVF") else (0,))
    ]
    figure = drawn(monkeypatch, "base", measured)
    assert [axes.get_ylabel() for axes in figure.axes] == ["recall@10"] * 3
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = []
    for axes in figure.axes:
        left, bottom, right, top = axes.get_window_extent(renderer).extents
        names = [text.get_window_extent(renderer) for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        below = [text.get_window_extent(renderer) for text in axes.get_xticklabels()]
        beside = [text.get_window_extent(renderer) for text in axes.get_yticklabels()]
        # Those of ticks beyond the panel are not drawn.
        boxes += names + [box for box in below if left <= (box.x0 + box.x1) / 2 <= right]
        boxes += [box for box in beside if bottom <= (box.y0 + box.y1) / 2 <= top]
    boxes += [text.get_window_extent(renderer) for text in [figure._suptitle, *figure.legends[0].get_texts()]]
    inside = figure.bbox
    for i, box in enumerate(boxes):
        assert not [other for other in boxes[:i] if box.overlaps(other)]
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
    assert not [text for axes in figure.axes for text in axes.texts]  # nothing is written between the lines
    height = min(text.get_window_extent(renderer).height for text in figure.legends[0].get_texts())
    assert height * 600 / inside.width >= 8  # pixels, at a width of 600


def test_one_length_needs_no_panel_of_lengths_and_speeds_have_plain_labels(files, monkeypatch):
    measured = [
        benchmark.Row("base", "PQ", 4, 0, 1.0, [0.1, 0.5, 0.9], 1.0, 1.0, 30_000.0),
        benchmark.Row("base", "OPQ", 4, 0, 1.0, [0.1, 0.6, 0.9], 1.0, 1.0, 70_000.0),
    ]
    (axes,) = drawn(monkeypatch, "base", measured).axes
    assert axes.get_xlabel() == "queries a second; 4 bytes"
    least, most = axes.get_xlim()
    shown = [text.get_text() for text in axes.get_xticklabels() if least <= text.get_position()[0] <= most]
    assert shown == ["50,000"]


def test_a_method_has_one_colour_and_no_other_has_it():
    flat = [method for method in METHODS if not method.startswith("IVF ")]
    assert len({plots.color(method) for method in flat}) == len(flat)
    assert plots.color("IVF OPQ") == plots.color("OPQ")
    assert plots.color("IVF DPQ") == plots.color("IndexDPQ")


def test_what_draws_is_asked_for_before_the_work(files):
    code = "import sys; sys.modules['matplotlib'] = None\nfrom faiss_dpq.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "bench", "--data", "base.npy", "--output", "out"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 1
    assert result.stderr.startswith("faiss-dpq bench: ")
    assert result.stderr.endswith(": pip install 'faiss-dpq[bench]'\n")
    assert not benchmark.Path("out").exists()
