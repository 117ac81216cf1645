"""Tables and plots of runs of deep quantizers."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from digit_runs import map_of  # noqa: E402

from faiss_dpq.nn import report  # noqa: E402


def test_runs_of_one_configuration_are_one_row(run_folders):
    rows = {row.label: row for row in report.collect([run_folders / name for name in ("rpqn", "lc0", "pqn", "lc1")])}
    assert list(rows) == ["E+LC", "PQN", "RPQN"]  # Table 2 first
    values = [map_of(run_folders / name, "8") for name in ("lc0", "lc1")]
    assert rows["E+LC"].mAP["8"] == values
    assert rows["E+LC"].mean("8") == pytest.approx(np.mean(values))
    assert rows["E+LC"].spread("8") == pytest.approx(np.abs(np.diff(values))[0] / np.sqrt(2))
    assert rows["PQN"].spread("8") == 0
    assert rows["E+LC"].bits == [4, 8, 12]
    curves = [np.load(run_folders / name / "curves.npz")["recall_12"] for name in ("lc0", "lc1")]
    np.testing.assert_allclose(rows["E+LC"].curve("12")[1], np.mean(curves, axis=0))


def changed_copy(source, target, change):
    """A run with another configuration and, where lengths change, the metrics of that."""
    shutil.copytree(source, target)
    for name in ("config.json", "metrics.json"):
        content = json.loads((target / name).read_text())
        change(content)
        (target / name).write_text(json.dumps(content))
    return target


def test_other_runs_of_a_label_are_named_by_their_folder(run_folders, tmp_path):
    def longer(content):
        if "train" in content:
            content["train"]["epochs"] = 9

    other = changed_copy(run_folders / "lc0", tmp_path / "longer", longer)
    assert [row.label for row in report.collect([run_folders / "lc0", other])] == ["E+LC", "E+LC (longer)"]


def test_trainings_for_single_lengths_share_a_row(run_folders, tmp_path):
    def shorter(content):
        if "model" in content and isinstance(content["model"], dict):
            content["model"]["options"]["M"] = 1
        if "mAP" in content:
            content["mAP"] = {"4": 0.25, "features": 0.5}

    other = changed_copy(run_folders / "pqn", tmp_path / "shorter", shorter)
    with np.load(other / "curves.npz") as stored:
        arrays = dict(stored)
    np.savez(other / "curves.npz", **arrays, precision_4=arrays["precision_8"], recall_4=arrays["recall_8"])
    (row,) = report.collect([run_folders / "pqn", other])
    assert (row.label, row.bits) == ("PQN", [4, 8])
    assert row.mAP["4"] == [0.25]
    assert row.mAP["features"] == [map_of(run_folders / "pqn", "features")]  # the longest's


def test_the_table_has_means_and_deviations():
    rows = [
        report.Result("E", {"8": [0.1, 0.2], "16": [0.25, 0.25], "features": [0.3, 0.3]}),
        report.Result("PQN", {"16": [0.91234], "features": [1.0]}),
    ]
    assert report.format_table(rows).splitlines() == [
        "|  | 8 bits | 16 bits | unquantized |",
        "| --- | ---: | ---: | ---: |",
        "| E | .150 ± .071 | .250 ± .000 | .300 ± .000 |",
        "| PQN | – | .912 | 1.000 |",
    ]


def test_plots_are_drawn_and_show_something(run_folders, tmp_path):
    results = report.collect([run_folders / name for name in ("lc0", "lc1", "pqn", "rpqn")])
    paths = report.write(results, tmp_path / "plots", "Title")
    paths.append(report.write_prefixes(run_folders / "lc0", tmp_path / "plots"))
    assert {path.name for path in paths} == {
        *("table.md", "table.png", "map.png", "precision_recall.png", "precision_at.png", "prefixes.png"),
    }
    for path in paths[1:]:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 150
        assert 0.001 < (pixels[..., :3] < 0.95).any(axis=2).mean() < 0.5
    assert paths[0].read_text() == f"Title\n\n{report.format_table(results)}\n"


def test_rows_without_curves_are_left_out_of_them(run_folders, tmp_path):
    results = [*report.collect([run_folders / "pqn", run_folders / "rpqn"]), report.Result("PQ", {"8": [0.5]})]
    report.write(results, tmp_path, "Title")
    assert "| PQ | .500 | – | – |" in (tmp_path / "table.md").read_text()


def test_images_of_one_code_are_dots_of_one_disc():
    rng = np.random.default_rng(0)
    codewords = rng.normal(size=(12, 5)).astype(np.float32)
    numbers = np.repeat(np.arange(12), rng.integers(1, 60, 12))
    places = report._tsne(codewords[numbers], rng.integers(0, 3, len(numbers)))
    assert len(np.unique(places, axis=0)) == len(numbers)
    first = places[np.searchsorted(numbers, np.arange(12))]
    centres = np.stack([places[numbers == number].mean(axis=0) for number in range(12)])
    assert np.ptp(first, axis=0) == pytest.approx([1, 1], abs=0.1)
    for number in range(12):
        radius = np.linalg.norm(places[numbers == number] - centres[number], axis=1).max()
        area = np.pi * radius**2
        share = (numbers == number).sum() / len(numbers)
        assert area == pytest.approx(report._DISC_AREA * share, rel=0.5, abs=0.003)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_codes_can_be_drawn(n):
    assert np.isfinite(report._tsne(np.eye(3, dtype=np.float32)[np.arange(9) % n], np.zeros(9, int))).all()
