"""Runs of deep quantizers on scikit-learn's digits: run files, training, evaluation, commands."""

import itertools
import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from digit_runs import map_of, tables, trained  # noqa: E402

from bench import deep  # noqa: E402
from faiss_dpq.cli import main  # noqa: E402
from faiss_dpq.lab import evaluation  # noqa: E402
from faiss_dpq.nn import ABLATIONS, SmallCNN, data, embed_dataset, runs  # noqa: E402
from faiss_dpq.nn.runs import RunConfig  # noqa: E402

RUN_FILES = sorted((Path(__file__).parents[1] / "docs" / "runs").glob("*.toml"))

# ---- configuration --------------------------------------------------------------------------------------------------


def test_toml_and_json_say_the_same_and_settings_replace_them(tmp_path):
    (tmp_path / "run.toml").write_text('[train]\nepochs = 3\n[model]\nname = "PQN"\noptions = {M = 2}\n')
    (tmp_path / "run.json").write_text('{"train": {"epochs": 3}, "model": {"name": "PQN", "options": {"M": 2}}}')
    toml, json_ = (RunConfig.read(tmp_path / f"run.{suffix}") for suffix in ("toml", "json"))
    assert toml == json_
    assert (toml.train.epochs, toml.model.name, toml.model.options, toml.data.n_train) == (3, "PQN", {"M": 2}, 500)
    settings = ["train.epochs=5", "model.options.M=3", "data.path=/some/where", "train.amp=true"]
    changed = RunConfig.read(tmp_path / "run.toml", settings)
    assert (changed.train.epochs, changed.model.options, changed.data.path) == (5, {"M": 3}, "/some/where")
    assert changed.train.amp is True
    assert RunConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


@pytest.mark.parametrize(
    ("name", "content", "settings", "error", "message"),
    [
        ("gone.toml", None, [], FileNotFoundError, r"gone\.toml is missing: expected a run file"),
        ("run.yaml", "", [], ValueError, r"named \.toml or \.json, not \.yaml"),
        ("run.toml", "train = ", [], ValueError, r"run\.toml: "),
        ("run.json", "{", [], ValueError, r"run\.json: "),
        ("run.json", "[]", [], ValueError, "holds list, expected tables"),
        ("run.toml", "[trian]", [], ValueError, "has trian, expected only data, model, train, evaluation"),
        ("run.toml", "[train]\nepoch = 1", [], ValueError, "train has epoch, expected only ablation, epochs"),
        ("run.toml", "data = 3", [], ValueError, "data is 3, expected a table"),
        ("run.toml", "[data]\nn_train = '500'", [], ValueError, "data.n_train is '500', expected a value of type int"),
        ("run.toml", "[train]\nepochs = 'many'", [], ValueError, "train: a value has a wrong type"),
        ("run.toml", "[train]\nepochs = -1", [], ValueError, "epochs is -1"),
        ("run.toml", "", ["train.epochs"], ValueError, "setting is 'train.epochs', expected TABLE.NAME=VALUE"),
        ("run.toml", "", ["epochs=1"], ValueError, "setting is 'epochs=1'"),
        ("run.toml", "[train]\nepochs = 1", ["train.epochs.x=1"], ValueError, "but epochs is 1, no table"),
    ],
)
def test_what_is_wrong_in_a_run_file_is_named(tmp_path, name, content, settings, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        RunConfig.read(tmp_path / name, settings)


@pytest.mark.parametrize("path", RUN_FILES, ids=[path.stem for path in RUN_FILES])
def test_run_files_of_the_documentation_are_valid(path):
    config = RunConfig.read(path)
    assert config.model.name in runs.MODELS
    codes = config.model.options
    assert (codes["M"], codes["nbits"]) == (4, 8)  # the paper's 8, 16, 24 and 32 bits


def test_all_run_files_are_found():
    assert {path.stem for path in RUN_FILES} == {"fashion-mnist", "cifar10", "nus-wide-21", "imagenet-100"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "VQ"}, "model.name is 'VQ', expected one of DPQ, PQN, RPQN, TPQN"),
        ({"backbone": "vgg"}, "model.backbone is 'vgg', expected small or alexnet"),
        ({"backbone": "alexnet"}, "expected images of 3 channels; these have 1"),
        ({"options": {"m": 4}}, "model.options has m, expected only"),
        ({"backbone_options": {"depth": 4}}, "model.backbone_options has depth, expected only"),
        ({"label_embeddings": "gone.npy"}, r"label_embeddings: gone\.npy is missing"),
    ],
)
def test_what_is_wrong_with_a_model_is_named(digit_files, tmp_path, model, message):
    config = tables(digit_files)
    config["model"] |= model
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.train(RunConfig.from_dict(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_label_embeddings_come_from_an_array_or_from_words(digit_files, tmp_path):
    z = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    words = [*("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")]
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, z, strict=True)]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    experiment = data.load(RunConfig.from_dict(tables(digit_files)).data)
    built = {}
    for source in ("z.npy", "words.txt"):
        config = tables(digit_files, ablation="DPQ")
        config["model"] |= {"label_embeddings": str(tmp_path / source), "options": {"M": 2, "nbits": 4}}
        config["model"]["centre"] = False
        built[source] = runs.build_model(RunConfig.from_dict(config), experiment).label_embeddings
    np.testing.assert_array_equal(built["z.npy"], z)
    # Names of one word are the word's vector, normalized.
    expected = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(built["words.txt"][1:], expected[1:], rtol=1e-5)  # T-shirt/top has two words


# ---- train ----------------------------------------------------------------------------------------------------------


def test_a_training_is_stored_and_loads_as_it_was(run_folders):
    folder = run_folders / "lc0"
    config, experiment, model = runs.load(folder)
    assert config.label == "E+LC"
    assert len(experiment.train) == 250
    history = json.loads((folder / "history.json").read_text())
    assert [record["phase"] for record in history] == ["features", "features", "joint"]
    stored = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_the_seed_decides_the_model(digit_files, run_folders, tmp_path):
    again = torch.load(trained(tables(digit_files), tmp_path / "again") / "model.pt", weights_only=True)
    first, other = (torch.load(run_folders / name / "model.pt", weights_only=True) for name in ("lc0", "lc1"))
    assert all(torch.equal(value, first[name]) for name, value in again.items())
    assert not torch.equal(first["semantic.weight"], other["semantic.weight"])


def test_a_run_is_not_overwritten_but_resumed(run_folders, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folders / "lc0", folder)
    config = RunConfig.read(folder / "config.json")
    with pytest.raises(ValueError, match="holds a run already; resume it or choose another folder"):
        runs.train(config, folder)
    with pytest.raises(ValueError, match=r"config\.json is another configuration"):
        runs.train(RunConfig.from_dict({}), folder, resume=True)
    before = torch.load(folder / "model.pt", weights_only=True)
    (folder / "model.pt").unlink()  # as if stopped just before its end
    with pytest.raises(FileNotFoundError, match="its training has not ended"):
        runs.load(folder)
    runs.train(config, folder, resume=True)
    after = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs.load(tmp_path)


def test_a_first_phase_is_taken_from_another_run(digit_files, run_folders, tmp_path):
    config = RunConfig.from_dict(tables(digit_files, tau=0.5))
    runs.train(config, tmp_path / "run", features=run_folders / "lc0" / "features.pt")
    mine, theirs = (
        json.loads((folder / "history.json").read_text()) for folder in (tmp_path / "run", run_folders / "lc0")
    )
    assert mine[:2] == theirs[:2]  # down to the seconds that they took
    assert mine[2] != theirs[2]


def test_early_stopping_validates_on_images_held_out_of_training(digit_files, tmp_path, monkeypatch):
    seen = {}
    fit = runs.Trainer.fit

    def spy(self, train_set, validation, **arguments):
        seen.update(train=train_set.indices, query=validation[0].indices, database=validation[1].indices)
        return fit(self, train_set, validation, **arguments)

    monkeypatch.setattr(runs.Trainer, "fit", spy)
    folder = trained(tables(digit_files, patience=1), tmp_path / "run")
    assert sorted(seen["train"] + seen["query"]) == list(range(250))
    assert len(seen["query"]) == 25
    assert seen["database"] == seen["train"]
    assert "validation_map" in json.loads((folder / "history.json").read_text())[-1]


# ---- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lc0", "pqn", "rpqn"])
def test_metrics_are_those_of_the_exported_index(run_folders, name):
    folder = run_folders / name
    metrics = json.loads((folder / "metrics.json").read_text())
    _, experiment, model = runs.load(folder)
    (xq, query_labels), (xb, labels) = (embed_dataset(model, part) for part in (experiment.query, experiment.database))
    index = model.to_index()
    index.add(xb)
    bits = "12" if name == "lc0" else "8" if name == "pqn" else "16"
    # Products are summed in another order: a few results of almost equal distance change places.
    expected = evaluation.mean_average_precision(index, xq, query_labels, labels, ties="threshold")
    assert metrics["mAP"][bits] == pytest.approx(expected, abs=2e-3)
    assert (
        list(metrics["mAP"])
        == {
            "lc0": ["4", "8", "12", "features"],
            "pqn": ["8", "features"],
            "rpqn": ["8", "16", "features"],
        }[name]
    )
    flat = faiss.IndexFlat(model.d, index.metric_type)
    flat.add(xb)
    of_features = evaluation.evaluate(flat, xq, query_labels, labels, ties="threshold")
    assert metrics["mAP"]["features"] == pytest.approx(of_features.mean_average_precision, abs=1e-6)
    assert metrics["mAP"]["features"] > 0.15  # a random ranking has 0.1
    assert metrics["protocol"] == {"train": 250, "query": 100, "database": 1447, "R": 1447, "ties": "threshold"}
    curves = np.load(folder / "curves.npz")
    assert (curves["ranks"][0], curves["ranks"][-1]) == (1, 1447)
    np.testing.assert_allclose(curves["precision_features"], of_features.precision[curves["ranks"] - 1])
    np.testing.assert_allclose(curves["recall_features"], of_features.recall[curves["ranks"] - 1])


def test_videos_are_trained_and_found(digit_files, tmp_path):
    config = tables(digit_files, "PQN", epochs=30, feature_epochs=24, batch_size=10, flip=False, erase=0.0)
    config["data"] |= {"frames": 2, "n_train": 10}
    config["model"] |= {"name": "TPQN", "options": {"d": 12, "M": 2, "nbits": 4, "segments": 2}}
    metrics = runs.evaluate(trained(config, tmp_path / "run"))
    assert (metrics["label"], list(metrics["mAP"])) == ("TPQN", ["8", "features"])
    assert metrics["mAP"]["8"] > 0.3  # a random ranking has 0.1


def test_images_with_several_labels_are_trained_and_found(tmp_path):
    """Colours are the labels: red, green, blue, and mixtures."""
    rng = np.random.default_rng(0)
    labels = np.array([row for row in itertools.product((0, 1), repeat=3) if any(row)])[rng.integers(0, 7, 60)]
    lines = []
    for i, row in enumerate(labels):
        pixels = rng.integers(0, 60, (16, 16, 3)) + 180 * row
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png {' '.join(map(str, row))}\n")
    for name, part in (("train", lines[:40]), ("test", lines[40:]), ("database", lines[:40])):
        (tmp_path / f"{name}.txt").write_text("".join(part))
    config = tables(tmp_path, batch_size=20, epochs=6, feature_epochs=4)
    config["data"] = {"name": "lists", "path": str(tmp_path), "size": 16}
    config["model"]["options"] |= {"nbits": 3}
    metrics = runs.evaluate(trained(config, tmp_path / "run"))
    by_chance = np.mean(labels[40:] @ labels[:40].T > 0)
    assert 0.5 < by_chance < 0.9
    assert metrics["mAP"]["features"] > by_chance + 0.05
    assert metrics["protocol"]["database"] == 40


@pytest.mark.parametrize(("name", "depth"), [("PQN", 1), ("RPQN", 1), ("RPQN", 3)])
def test_a_product_quantizer_is_a_progressive_one(name, depth):
    torch.manual_seed(depth)
    options = {"d": 12, "M": 3, "nbits": 4} | ({"depth": depth} if name == "RPQN" else {})
    model = runs.MODELS[name](SmallCNN(1, 4, 16), 10, **options)
    x = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    index, levels = runs.progressive_index(model)
    assert levels == {12 * level: 3 * level for level in range(1, depth + 1)}
    exported = model.to_index()
    codes = model.quantizer.encode(torch.from_numpy(x)).reshape(200, 3, depth)
    np.testing.assert_array_equal(
        index.residual_quantizer.encode(x, index.beam_size), codes.transpose(1, 2).reshape(200, -1).numpy()
    )
    index.add(x)
    exported.add(x)
    np.testing.assert_allclose(index.search(x[:20], 9)[0], exported.search(x[:20], 9)[0], rtol=1e-4, atol=1e-5)
    assert index.metric_type == exported.metric_type


def test_a_prefix_of_rpqn_is_the_rpqn_of_fewer_levels():
    torch.manual_seed(0)
    model = runs.MODELS["RPQN"](SmallCNN(1, 4, 16), 10, d=12, M=3, nbits=4, depth=2)
    shorter = runs.product_as_progressive(model.quantizer.codebooks[:, :1].numpy(), faiss.METRIC_INNER_PRODUCT)
    x = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    index, levels = runs.progressive_index(model)
    for one in (index, shorter):
        one.add(x)
    index.levels = levels[12]
    for found, expected in zip(index.search(x[:20], 9), shorter.search(x[:20], 9), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- commands -------------------------------------------------------------------------------------------------------


def test_commands_train_and_evaluate(digit_files, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(tables(digit_files)))
    arguments = ["train-deep", "--config", str(tmp_path / "run.json"), "--output"]
    for seed in range(2):
        settings = ["--set", f"train.seed={seed}", "train.epochs=2", "train.feature_epochs=1"]
        assert main([*arguments, str(tmp_path / f"run{seed}"), *settings]) == 0
    assert main([*arguments, str(tmp_path / "run0")]) == 1
    assert "holds a run already" in capsys.readouterr().err

    assert main(["eval", str(tmp_path / "run0")]) == 0
    printed = capsys.readouterr().out
    assert "| 4 bits | 8 bits | 12 bits | unquantized |" in printed
    assert (tmp_path / "run0" / "prefixes.png").exists()

    (tmp_path / "run0" / "metrics.json").write_text(
        (tmp_path / "run0" / "metrics.json").read_text().replace('"8": 0', '"8": 7')
    )
    both = ["eval", str(tmp_path / "run0"), str(tmp_path / "run1"), "--title", "Both"]
    assert main(both) == 1
    assert "--output" in capsys.readouterr().err
    assert main([*both, "--output", str(tmp_path / "both")]) == 0
    assert map_of(tmp_path / "run0", "8") > 1  # what was measured is not measured again
    assert (tmp_path / "both" / "table.md").read_text().startswith("Both\n")
    assert main([*both, "--output", str(tmp_path / "both"), "--again"]) == 0
    assert map_of(tmp_path / "run0", "8") < 1
    assert " ± " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-deep", "--config", "gone.toml", "--output", "run"], "gone.toml is missing"),
        (["eval", "gone"], "gone holds no run"),
    ],
)
def test_commands_fail_in_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"faiss-dpq {arguments[0]}: ")
    assert message in error
    assert error.count("\n") == 1


# ---- benchmark ------------------------------------------------------------------------------------------------------


def test_the_benchmark_has_every_row_of_table_2_with_all_else_equal():
    configs = {name: deep.config_of(name, 2, ["train.epochs=30"]) for name in deep.TRAININGS}
    assert {config.label for config in configs.values()} == {*ABLATIONS, "PQN", "RPQN"}
    for name, config in configs.items():
        assert (config.data.seed, config.train.seed, config.train.epochs) == (2, 2, 30)
        if config.model.name == "DPQ":
            assert config.model == configs["DPQ"].model
            same = {"ablation": "DPQ"}
            if name.endswith("-random"):
                same |= {"codebook_init": "kmeans", "restart_dead": True}
            assert {**config.train.to_dict(), **same} == configs["DPQ"].train.to_dict()
        else:
            bits = 8 * config.model.options["M"] * config.model.options.get("depth", 1)
            assert bits in deep.LENGTHS, name


def test_product_quantizers_without_supervision_are_those_of_faiss(digits):
    for M in (3, 4):  # 64 dimensions are padded to 66
        x = deep.padded(digits, M)
        index = deep.product_quantizer(x, M)
        peer = faiss.IndexPQ(x.shape[1], M, 8)
        for one in (index, peer):
            if not one.is_trained:
                one.train(x)
            one.add(x)
        np.testing.assert_allclose(index.search(x[:50], 5)[0], peer.search(x[:50], 5)[0], rtol=1e-3, atol=1e-2)
