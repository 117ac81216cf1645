"""Progress bars are tqdm's, on terminals only, and TQDM_DISABLE=1 turns all of them off."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import faiss_dpq
from faiss_dpq import training
from faiss_dpq.lab import demo
from faiss_dpq.lab.datasets import VectorSet
from faiss_dpq.training import progress

ROOT = Path(__file__).parents[1]


@pytest.fixture
def terminal(monkeypatch):
    """Standard error passes for a terminal."""
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


@pytest.fixture(autouse=True)
def one_contender(monkeypatch):
    """The demo compares one small index."""
    entered = [demo.Contender("IndexDPQ", "IndexDPQ 2x4", faiss_dpq.IndexDPQ(64, 2, 4))]
    monkeypatch.setattr(demo, "contenders", lambda d: entered)


def train(digits):
    training.train_codebooks(digits, 2, 3)


def compare(digits):
    demo.compare(VectorSet(digits, digits, digits[:9]))


def deep_training(digits):
    torch = pytest.importorskip("torch")
    from faiss_dpq.nn import DPQ, SmallCNN, TrainConfig, Trainer

    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    model = DPQ(SmallCNN(width=4, out_features=16), 4, M=2, nbits=2, d=8)
    config = TrainConfig(ablation="E+LC", epochs=2, feature_epochs=1, device="cpu", shift=0)
    Trainer(model, config).fit(torch.utils.data.TensorDataset(images, labels))


BARS = [train, compare, deep_training]


@pytest.mark.parametrize("work", BARS)
def test_a_terminal_shows_a_bar(work, digits, terminal, capsys):
    work(digits)
    assert "\r" in capsys.readouterr().err


@pytest.mark.parametrize("work", BARS)
def test_tqdm_disable_turns_it_off(work, digits, terminal, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    work(digits)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("work", BARS)
def test_what_is_no_terminal_shows_none(work, digits, capsys):
    work(digits)
    assert capsys.readouterr().err == ""


def test_verbose_prints_lines_in_place_of_a_bar(digits, terminal, capsys):
    index = faiss_dpq.IndexDPQ(64, 2, 3)
    index.verbose = True
    index.train(digits)
    out, err = capsys.readouterr()
    assert out.count("IndexDPQ.train: step") == 2 + index.train_stats.iterations + 1
    assert err == ""


@pytest.mark.parametrize(("value", "shown"), [("", True), ("0", True), ("1", False), ("true", False)])
def test_values_of_tqdm_disable(value, shown, terminal, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", value)
    assert progress.shown() is shown


def test_no_standard_error_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.shown()
    assert list(progress.bar([1, 2])) == [1, 2]


def test_there_is_no_other_bar():
    files = [path for path in (ROOT / "faiss_dpq").rglob("*.py") if path.name != "progress.py"]
    assert not [path for path in files if re.search(r"import tqdm|show_progress_bar=True", path.read_text())]
