"""Training learns, repeats and resumes exactly, and keeps its codewords alive."""

import math

import faiss
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset, TensorDataset  # noqa: E402

from faiss_dpq import training  # noqa: E402
from faiss_dpq.codec import ProgressiveQuantizer  # noqa: E402
from faiss_dpq.lab import evaluation  # noqa: E402
from faiss_dpq.nn import (  # noqa: E402
    DPQ,
    PQN,
    RPQN,
    TPQN,
    SmallCNN,
    TrainConfig,
    Trainer,
    embed_dataset,
    train_codebooks_sgd,
)
from faiss_dpq.nn.trainer import perplexity  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sets():
    """Digits to train on, and to search."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target).long()
    return TensorDataset(pixels[:500], labels[:500]), TensorDataset(pixels[700:1300], labels[700:1300])


def make(system=DPQ, nbits=4, width=6, **arguments):
    torch.manual_seed(0)
    backbone = SmallCNN(1, width=width, out_features=32, dropout=0.1)
    if system is DPQ:
        z = np.random.default_rng(0).standard_normal((10, 16)).astype(np.float32)
        return DPQ(backbone, 10, z, M=3, nbits=nbits, **arguments)
    return system(backbone, 10, d=16, nbits=nbits, **arguments)


def config(**settings):
    return TrainConfig(**{"epochs": 4, "progress": False, "shift": 1, "flip": False, "erase": 0.0, **settings})


def same_state(model, other):
    theirs = other.state_dict()
    return all(tensor.equal(theirs[name]) for name, tensor in model.state_dict().items())


def map_of(model, sets):
    train, database = sets
    return Trainer(model, config()).validate((TensorDataset(*train[:300]), database))


@pytest.mark.parametrize("system, least", [(DPQ, 0.7), (PQN, 0.5), (RPQN, 0.4)])
def test_training_beats_chance_by_far(sets, system, least):
    model = make(system, width=8)
    settings = config(epochs=8, batch_size=20, lr_backbone=5e-3, lr_joint=0.5, tau=0.02, shift=0)
    history = Trainer(model, settings).fit(sets[0])
    assert [record["phase"] for record in history] == ["features"] * 4 + ["joint"] * 4
    queries, database = TensorDataset(*sets[1][:200]), TensorDataset(*sets[1][200:])
    assert Trainer(model, config()).validate((queries, database)) > least  # chance is 0.1


def test_validation_is_the_map_of_the_exported_index(sets):
    model = make().eval()
    trainer = Trainer(model, config())
    queries, database = (TensorDataset(*sets[1][part]) for part in (slice(100), slice(100, 400)))
    xq, query_labels = embed_dataset(model, queries)
    xb, labels = embed_dataset(model, database)
    index = model.to_index()
    index.add(xb)
    expected = evaluation.mean_average_precision(index, xq, query_labels, labels)
    assert trainer.validate((queries, database)) == expected
    assert trainer.validate(database) != expected


def test_the_same_seed_repeats_and_another_does_not(sets):
    def trained(seed):
        model = make()
        history = Trainer(model, config(epochs=2, seed=seed)).fit(sets[0])
        return model, [{k: v for k, v in record.items() if k != "seconds"} for record in history]

    (a, history_a), (b, history_b), (c, _) = trained(0), trained(0), trained(1)
    assert same_state(a, b) and history_a == history_b
    assert not same_state(a, c)
    before = torch.random.get_rng_state()
    Trainer(a, config(epochs=2)).fit(sets[0])
    assert before.equal(torch.random.get_rng_state())  # the caller's generator is left alone


@pytest.mark.parametrize("stop, amp", [(1, False), (2, True), (3, False)])
def test_a_resumed_training_continues_bit_for_bit(sets, tmp_path, stop, amp):
    whole = make()
    history = Trainer(whole, config(amp=amp), tmp_path / "whole").fit(sets[0])
    first = make()

    class Interrupted(Exception):
        pass

    trainer = Trainer(first, config(amp=amp), tmp_path / "parts")
    fit_epoch = trainer._fit_epoch

    def interrupted(epoch, *arguments):
        if epoch == stop:
            raise Interrupted
        return fit_epoch(epoch, *arguments)

    trainer._fit_epoch = interrupted
    with pytest.raises(Interrupted):
        trainer.fit(sets[0])
    second = make()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 1  # all comes from the checkpoint
    resumed = Trainer(second, config(amp=amp), tmp_path / "parts").fit(sets[0], resume=True)
    assert same_state(whole, second)
    assert [r["loss"] for r in resumed] == [r["loss"] for r in history]


def test_runs_that_share_their_first_phase_can_start_from_its_checkpoint(sets, tmp_path):
    Trainer(make(), config(), tmp_path).fit(sets[0])
    features = tmp_path / "features.pt"
    for ablation in ("Two-Step", "No-Soft"):
        alone, continued = make(), make()
        settings = config(ablation=ablation, feature_epochs=2, lr_joint=0.5, tau=0.2)
        Trainer(alone, settings).fit(sets[0])
        history = Trainer(continued, settings).fit(sets[0], features=features)
        assert same_state(alone, continued)
        assert len(history) == 4
    with pytest.raises(ValueError, match="of a first phase with parts"):
        Trainer(make(), config(ablation="E+LC")).fit(sets[0], features=features)
    with pytest.raises(ValueError, match="of a training with seed=0, expected 1"):
        Trainer(make(), config(seed=1)).fit(sets[0], features=features)
    with pytest.raises(ValueError, match="of a first phase with first_joint_epoch=2, expected 1"):
        Trainer(make(), config(feature_epochs=1)).fit(sets[0], features=features)


def test_a_checkpoint_of_other_settings_is_refused(sets, tmp_path):
    Trainer(make(), config(epochs=1, feature_epochs=1), tmp_path).fit(sets[0])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of a training with tau=1\.0, expected 0\.5"):
        Trainer(make(), config(epochs=1, feature_epochs=1, tau=0.5), tmp_path).fit(sets[0], resume=True)
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        Trainer(make(), config(), tmp_path).fit(sets[0], resume=True)
    with pytest.raises(FileNotFoundError, match=r"none\.pt is not a file"):
        Trainer(make(), config()).fit(sets[0], features=tmp_path / "none.pt")


def test_frozen_ablations_keep_the_network_and_train_the_codebooks(sets):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, config(ablation="E", epochs=2)).fit(sets[0])
    for name, tensor in model.state_dict().items():
        assert tensor.cpu().equal(before[name]) != name.startswith("quantizer"), name


def test_codebooks_start_from_kmeans_or_at_random(sets):
    def hard_error_of_first_epoch(init):
        model = make()
        settings = config(ablation="E", epochs=1, codebook_init=init, lr_codebooks=1e-5, restart_dead=False)
        return Trainer(model, settings).fit(sets[0])[0]["hard"]

    assert hard_error_of_first_epoch("kmeans") < 0.5 * hard_error_of_first_epoch("random")


def test_dead_codewords_are_restarted_and_counted(sets):
    def trained(restart):
        model = make(nbits=6)
        # Codewords far away from all vectors: none but the first is ever used.
        with torch.no_grad():
            for block in model.quantizer.blocks:
                block.weight[1:] += 50
        settings = config(ablation="E", epochs=3, codebook_init="random", restart_dead=restart)
        return Trainer(model, settings).fit(sets[0])

    alive, dead = trained(True), trained(False)
    assert alive[0]["restarted"] == 3 * 63 and alive[-1]["restarted"] == 0
    assert min(alive[1]["perplexity"]) > 10 and max(dead[-1]["perplexity"]) < 1.5
    assert alive[-1]["hard"] < 0.7 * dead[-1]["hard"]


def test_restarted_codewords_lose_their_momentum(sets):
    model = make(nbits=6)
    trainer = Trainer(model, config(ablation="E", epochs=2, codebook_init="random"))
    with torch.no_grad():
        model.quantizer.blocks[0].weight[5] += 50
    restart, seen = trainer._restart, []

    def watched(sums, generator):
        restarted = restart(sums, generator)
        state = trainer.codebook_optimizer.state[model.quantizer.blocks[0].weight]
        dead = sums.counts[0] == 0
        seen.append((bool(dead[5]), float(state["exp_avg"][dead].abs().max()), float(state["exp_avg"].abs().max())))
        return restarted

    trainer._restart = watched
    trainer.fit(sets[0])
    assert seen[0][0] and seen[0][1] == 0 < seen[0][2]


def test_perplexity_is_the_number_of_codewords_in_use():
    counts = torch.tensor([[5, 5, 5, 5], [0, 9, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(perplexity(counts), torch.tensor([4.0, 1, 2, 1], dtype=torch.float64))


def test_early_stopping_returns_to_the_best(sets, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    states = []

    def validate(trainer, validation):
        states.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(Trainer, "validate", validate)
    model = make()
    history = Trainer(model, config(epochs=9, feature_epochs=1, patience=2)).fit(sets[0], sets[1])
    assert [record.get("validation_map") for record in history] == [None, 0.5, 0.7, 0.6, 0.65]
    assert all(tensor.equal(states[1][name]) for name, tensor in model.state_dict().items())


def test_evaluations_are_every_few_epochs_and_at_the_end(sets, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda *_: 0.5)
    history = Trainer(make(), config(epochs=6, feature_epochs=1, eval_every=3)).fit(sets[0], sets[1])
    assert [record["epoch"] for record in history if "validation_map" in record] == [1, 4, 5]


def test_optimisers_have_their_own_rates(sets):
    model = make()
    trainer = Trainer(model, config(lr_backbone=1e-2, lr_codebooks=1e-1, lr_joint=0.5, schedule="constant"))
    assert {id(p) for g in trainer.codebook_optimizer.param_groups for p in g["params"]} == {
        id(block.weight) for block in model.quantizer.blocks
    }
    trainer._set_rates(0, 0.0, quantize=False)
    assert trainer.network_optimizer.param_groups[0]["lr"] == 1e-2
    trainer._set_rates(2, 0.0, quantize=True)
    assert trainer.network_optimizer.param_groups[0]["lr"] == 0.5e-2
    assert trainer.codebook_optimizer.param_groups[0]["lr"] == 1e-1
    cosine = Trainer(model, config(lr_backbone=1.0, epochs=20))
    rates = []
    for step in range(200):
        cosine._set_rates(step // 20, step % 20 / 20, quantize=False)
        rates.append(cosine.network_optimizer.param_groups[0]["lr"])
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(1) and rates[-1] < 0.01


def test_settings_of_the_quantizer_are_overridden():
    model = make(gamma=3.0, subtract="hard")
    Trainer(model, config())
    assert (model.quantizer.gamma, model.quantizer.subtract) == (3.0, "hard")
    Trainer(model, config(gamma=9.0, subtract="soft"))
    assert [block.gamma for block in model.quantizer.blocks] == [9.0] * 3
    assert model.quantizer.subtract == "soft"
    Trainer(model, config(ablation="No-Soft"))
    assert model.quantizer.subtract == "hard"
    with pytest.raises(ValueError, match="ablation is 'E', but PQN has none"):
        Trainer(make(PQN), config(ablation="E"))


def test_videos_train(sets):
    class Shaken(Dataset):
        """Videos: a digit, moved about by a pixel."""

        def __len__(self):
            return 300

        def __getitem__(self, i):
            image, label = sets[0][i]
            return torch.stack([torch.roll(image, s, dims=-1) for s in (0, 1, 0, -1)]), label

    model = make(TPQN, segments=2)
    Trainer(model, config(epochs=6, lr_backbone=5e-3, batch_size=20, shift=0)).fit(Shaken())
    assert Trainer(model, config()).validate(Shaken()) > 0.4


def test_a_loss_that_is_not_finite_stops_the_training(sets):
    model = make()
    with torch.no_grad():
        model.classifier.weight[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="the loss of epoch 1 is nan"):
        Trainer(model, config()).fit(sets[0])


def test_tensorboard_gets_the_history(sets, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = Trainer(make(), config(epochs=2, tensorboard=True), tmp_path).fit(sets[0])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in history])
    assert [e.value for e in events.Scalars("perplexity/level 3")] == pytest.approx([history[1]["perplexity"][2]])
    with pytest.raises(ValueError, match="there is no run_dir"):
        Trainer(make(), config(tensorboard=True)).fit(sets[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ablation": "LS"}, "ablation is 'LS', expected one of"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"tau": -1.0}, "tau is -1.0, expected at least 0"),
        ({"feature_epochs": 5}, "feature_epochs is 5, expected 0 to epochs=4"),
        ({"erase": 2.0}, "erase is 2.0"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_settings_from_a_mapping():
    assert TrainConfig.from_dict(config(tau=0.3).to_dict()) == config(tau=0.3)
    with pytest.raises(ValueError, match="unknown settings learning_rate, momentum"):
        TrainConfig.from_dict({"momentum": 1, "learning_rate": 2, "tau": 1})


# ---- codebooks of plain vectors ----------------------------------------------------------------------------------


def prefix_errors(codebooks, x):
    quantizer = ProgressiveQuantizer(codebooks)
    codes = quantizer.encode(x, 1)
    return [((x - quantizer.decode(codes[:, : l + 1])) ** 2).sum(1).mean() for l in range(len(codebooks))]


def test_gradients_improve_codebooks_of_plain_vectors(digits):
    kmeans = training.Effort(iterations=0, beam_size=1, max_points_per_centroid=256)
    start, _ = training.train_codebooks(digits[:200], 3, 4, effort=kmeans)
    kept = start.copy()
    arguments = {"epochs": 12, "batch_size": 256, "gamma": 200.0, "weights": [0.01, 0.01, 1.0]}
    better = train_codebooks_sgd(digits, start, **arguments)
    assert better.shape == start.shape and better.dtype == np.float32
    np.testing.assert_array_equal(start, kept)
    assert prefix_errors(better, digits)[-1] < 0.99 * prefix_errors(start, digits)[-1]
    np.testing.assert_array_equal(train_codebooks_sgd(digits, start, **arguments), better)
    hard = train_codebooks_sgd(digits, start, soft=0, nu=0, **arguments)
    assert prefix_errors(hard, digits)[-1] < 0.99 * prefix_errors(start, digits)[-1]
    # Moved and scaled vectors have moved and scaled codebooks.
    moved_start = 10 * start + 7 * np.eye(3, 1, dtype=np.float32)[:, :, None]
    moved = train_codebooks_sgd(10 * digits + 7, moved_start, **arguments)
    ratio = np.array(prefix_errors(moved, 10 * digits + 7)) / prefix_errors(better, digits)
    np.testing.assert_allclose(ratio, 100, rtol=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": np.zeros((9, 3))}, r"x has shape \(9, 3\), expected \(n, d=4\)"),
        ({"codebooks": np.zeros((2, 6, 4))}, "K a power of two"),
        ({"x": np.full((9, 4), np.nan)}, "NaN or infinite"),
        ({"weights": [1, -1]}, "expected M=2 finite numbers >= 0"),
        ({"subtract": "both"}, "subtract is 'both'"),
    ],
)
def test_bad_arguments_of_sgd(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_codebooks_sgd(**{"x": np.zeros((9, 4)), "codebooks": np.zeros((2, 8, 4)), **arguments})


def test_codes_of_a_trained_model_go_through_faiss(sets, tmp_path):
    """From images to a file that stock FAISS searches."""
    model = make()
    Trainer(model, config(amp=True)).fit(sets[0])
    index = model.to_index()
    x, _ = embed_dataset(model, sets[1])
    index.add(x)
    faiss.write_index(index, str(tmp_path / "index"))
    stock = faiss.read_index(str(tmp_path / "index"))
    _, I = stock.search(x[:50], 5)
    np.testing.assert_array_equal(I, index.search(x[:50], 5)[1])
