"""Runs: a training and its evaluation described by one configuration, in a folder of its own.

    config.json     everything that the run depends on
    checkpoint.pt   the training's state after every epoch; features.pt, after its first phase
    history.json    a record an epoch: losses, perplexity of the codebooks, seconds
    model.pt        the trained model
    metrics.json    mAP at every code length, and of the unquantized features
    curves.npz      precision and recall at every rank, and a sample of quantized vectors for the t-SNE plot

`train` and `evaluate` write them; `faiss_dpq.nn.report` draws the plots.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Subset

from ..index import IndexDPQ, SearchParametersDPQ
from ..lab import evaluation
from . import data
from .backbones import IMAGENET_MEAN, IMAGENET_STD, AlexNet, SmallCNN
from .base import DeepQuantizer, embed_dataset
from .data import RetrievalData
from .dpq import DPQ
from .image_sets import Item
from .labels import label_embeddings
from .pqn import PQN, RPQN
from .run_config import EvaluationConfig as EvaluationConfig  # part of this module's interface, as docs/deep.md says
from .run_config import ModelConfig, RunConfig, check_names
from .tpqn import TPQN
from .trainer import Trainer, place

MODELS: dict[str, Callable[..., DeepQuantizer]] = {"DPQ": DPQ, "PQN": PQN, "RPQN": RPQN, "TPQN": TPQN}
FEATURES = "features"  # the key of the unquantized vectors beside the code lengths in metrics and curves

_VALIDATION_SHARE = 10  # one in so many training images is held out where a training stops early
_CURVE_POINTS = 400
_TSNE_IMAGES = 2000


# ---- train -------------------------------------------------------------------------------------------------------


def build_model(config: RunConfig, experiment: RetrievalData) -> DeepQuantizer:
    """The untrained model of a run, its random weights drawn from the training's seed.

    Raises
    ------
    ValueError
        If the configuration names no known model, or gives it arguments that it does not have.
    FileNotFoundError
        If a file of weights or label embeddings is missing.
    """
    model = config.model
    if model.name not in MODELS:
        raise ValueError(f"model.name is {model.name!r}, expected one of {', '.join(MODELS)}")
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        backbone, arguments = _build_backbone(model, experiment)
        if model.name == "DPQ" and model.label_embeddings != "none":
            arguments["label_embeddings"] = _label_embeddings(model, experiment.class_names)
        arguments |= model.options
        check_names("model.options", model.options, _keywords(MODELS[model.name]))
        return MODELS[model.name](backbone, len(experiment.class_names), **arguments)


def _build_backbone(model: ModelConfig, experiment: RetrievalData) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The backbone, and how images are to be prepared for it."""
    channels = experiment.query[0][0].shape[-3]
    if model.backbone == "small":
        check_names("model.backbone_options", model.backbone_options, _keywords(SmallCNN))
        return SmallCNN(**{"in_channels": channels, **model.backbone_options}), {}
    if model.backbone != "alexnet":
        raise ValueError(f"model.backbone is {model.backbone!r}, expected small or alexnet")
    if channels != 3:
        raise ValueError(f"model.backbone is alexnet, expected images of 3 channels; these have {channels}")
    check_names("model.backbone_options", model.backbone_options, ["dropout"])
    make = AlexNet if not model.weights else lambda **options: AlexNet.from_file(model.weights, **options)
    return make(**model.backbone_options), {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "image_size": 224}


def _keywords(kind: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in ("backbone", "num_classes")]


def _label_embeddings(model: ModelConfig, names: Sequence[str]) -> npt.NDArray[np.float32]:
    if model.label_embeddings == "glove":
        return label_embeddings(names, centre=model.centre)
    if not Path(model.label_embeddings).is_file():
        raise FileNotFoundError(
            f"model.label_embeddings: {model.label_embeddings} is missing, expected glove, none, a text file of word "
            "vectors or an .npy array"
        )
    if model.label_embeddings.endswith(".npy"):
        return np.load(model.label_embeddings, allow_pickle=False).astype(np.float32)
    return label_embeddings(names, model.label_embeddings, centre=model.centre)


def train(
    config: RunConfig, folder: Path | str, *, resume: bool = False, features: Path | str | None = None
) -> DeepQuantizer:
    """Train a run's model and write everything but the evaluation into its folder.

    Where `config.train.patience` is set, a tenth of the training images is held out: they query the other nine tenths
    to tell when to stop, so that neither queries nor database of the experiment are seen.

    Parameters
    ----------
    config : RunConfig
    folder : path
        Made if there is none.
    resume : bool
        Continue the training of this folder, if it has begun.
    features : path, optional
        features.pt of a run with the same first phase, which is then not repeated.

    Raises
    ------
    ValueError
        If the folder holds a run already and `resume` is not set, or a run with another configuration; and as
        `faiss_dpq.nn.data.load`, `build_model` and `Trainer`.
    FileNotFoundError
        If files of data or weights are missing.
    """
    folder = Path(folder)
    _claim(folder, config, resume)
    experiment = data.load(config.data)
    model = build_model(config, experiment)
    train_set, validation = (
        (experiment.train, None) if config.train.patience is None else _held_out(experiment.train, config.train.seed)
    )
    trainer = Trainer(model, config.train, folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config.to_dict())
    history = trainer.fit(train_set, validation, resume=resume, features=features)
    _write_json(folder / "history.json", history)
    torch.save(model.state_dict(), folder / "model.pt")
    return model


def _claim(folder: Path, config: RunConfig, resume: bool) -> None:
    written = folder / "config.json"
    if not written.exists():
        return
    if not resume:
        raise ValueError(f"{folder} holds a run already; resume it or choose another folder")
    if RunConfig.read(written).decisive() != config.decisive():
        raise ValueError(f"{written} is another configuration; a run is resumed with its own")


def _held_out(images: Dataset[Item], seed: int) -> tuple[Dataset[Item], tuple[Dataset[Item], Dataset[Item]]]:
    """Training images; and queries, held out, with the database that they are looked for in: the training images."""
    n = len(images)  # type: ignore[arg-type]
    order = np.random.default_rng(seed).permutation(n).tolist()
    kept, queries = Subset(images, order[n // _VALIDATION_SHARE :]), Subset(images, order[: n // _VALIDATION_SHARE])
    return kept, (queries, kept)


def load(folder: Path | str) -> tuple[RunConfig, RetrievalData, DeepQuantizer]:
    """Configuration, data and trained model of a run.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run, or one whose training has not ended.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no run: config.json is missing")
    if not (folder / "model.pt").exists():
        raise FileNotFoundError(f"{folder}: model.pt is missing, its training has not ended; resume it")
    config = RunConfig.read(folder / "config.json")
    experiment = data.load(config.data)
    model = build_model(config, experiment)
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    place(model, config.train)  # computes as it did in training
    return config, experiment, model.eval()


# ---- evaluate ----------------------------------------------------------------------------------------------------


def product_as_progressive(codebooks: npt.NDArray[np.float32], metric: int) -> IndexDPQ:
    """A product quantizer, residual in its sub-spaces or not, as an IndexDPQ.

    A codeword of a sub-space, with zeros in all other places, is a codeword of the whole space. Sub-spaces are
    orthogonal, so encoding them one after another gives the same codes, and distances and inner products are the same.
    The numbers of a code are put level by level: the first M are those of every sub-space's first level.

    Parameters
    ----------
    codebooks : array, shape (M, depth, K, d / M), float32
    metric : int

    Returns
    -------
    index : IndexDPQ
        Empty, of M * depth levels, that encodes greedily.
    """
    M, depth, K, width = codebooks.shape
    padded = np.zeros((depth, M, K, M, width), np.float32)
    for m in range(M):
        padded[:, m, :, m] = codebooks[m]
    index = IndexDPQ.from_codebooks(padded.reshape(depth * M, K, M * width), metric)
    index.beam_size = 1
    index.parallel_weight = 0.0
    return index


def progressive_index(model: DeepQuantizer) -> tuple[IndexDPQ, dict[int, int]]:
    """The model's codebooks as an IndexDPQ, and the lengths that its codes can be searched at.

    What is found so is what the index that `to_index()` exports finds, faster, and at every level of RPQN.

    Returns
    -------
    index : IndexDPQ
        Empty, with the metric of `model.to_index()`.
    levels : dict from int to int
        Bits of a code to levels of the index, shortest first.
    """
    exported = model.to_index()
    if isinstance(exported, IndexDPQ):
        nbits = exported.residual_quantizer.nbits
        return exported, {nbits * level: level for level in range(1, exported.rq.M + 1)}
    quantizer = model.quantizer
    index = product_as_progressive(quantizer.codebooks.cpu().numpy(), exported.metric_type)
    M = quantizer.M
    return index, {M * quantizer.nbits * level: M * level for level in range(1, quantizer.depth + 1)}


def evaluate(folder: Path | str) -> dict[str, Any]:
    """Measure a trained run at every code length, and its unquantized features; write metrics.json and curves.npz.

    Returns
    -------
    metrics : dict
        What metrics.json holds: what was measured how, and mAP by bits (as strings; "features": unquantized).

    Raises
    ------
    FileNotFoundError
        As `load`, and if files of data are missing.
    """
    folder = Path(folder)
    config, experiment, model = load(folder)
    (xq, query_labels), (xb, labels) = (
        embed_dataset(model, part, config.evaluation.batch_size, workers=config.train.workers)
        for part in (experiment.query, experiment.database)
    )
    index, levels = progressive_index(model)
    index.add(xb)
    flat = faiss.IndexFlat(index.d, index.metric_type)
    flat.add(xb)
    searches: dict[str, tuple[faiss.Index, faiss.SearchParameters | None]] = {
        str(bits): (index, SearchParametersDPQ(levels=level)) for bits, level in levels.items()
    }
    searches[FEATURES] = (flat, None)
    R = min(config.evaluation.R or index.ntotal, index.ntotal)
    found = {
        name: evaluation.evaluate(searched, xq, query_labels, labels, R, params, ties=config.evaluation.ties)  # type: ignore[arg-type]
        for name, (searched, params) in searches.items()
    }
    metrics = {
        "label": config.label,
        "model": config.model.name,
        "seed": config.train.seed,
        "data": config.data.name,
        "protocol": {
            "train": len(experiment.train),  # type: ignore[arg-type]
            "query": len(xq),
            "database": len(xb),
            "R": R,
            "ties": config.evaluation.ties,
        },
        "mAP": {name: round(measured.mean_average_precision, 6) for name, measured in found.items()},
    }
    arrays: dict[str, Any] = {**_curves(found, R), **_sample(index, levels, xb, labels)}
    np.savez_compressed(folder / "curves.npz", **arrays, class_names=np.array(experiment.class_names))
    _write_json(folder / "metrics.json", metrics)
    return metrics


def _curves(found: dict[str, evaluation.Evaluation], R: int) -> dict[str, npt.NDArray[Any]]:
    """Precision and recall at ranks that lie closer where the curves bend."""
    ranks = np.unique(np.geomspace(1, R, _CURVE_POINTS).round().astype(np.int64))
    ranks = np.union1d(ranks, np.linspace(1, R, _CURVE_POINTS).round().astype(np.int64))
    curves: dict[str, npt.NDArray[Any]] = {"ranks": ranks}
    for name, measured in found.items():
        curves[f"precision_{name}"] = measured.precision[ranks - 1]
        curves[f"recall_{name}"] = measured.recall[ranks - 1]
    return curves


def _sample(
    index: IndexDPQ, levels: dict[int, int], x: npt.NDArray[np.float32], labels: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Some images' codes decoded at every length, for the t-SNE plot; of several labels the first is kept."""
    rows = np.random.default_rng(0).permutation(len(x))[:_TSNE_IMAGES]
    codes = index.residual_quantizer.encode(x[rows], index.beam_size)
    sample = {f"quantized_{bits}": index.residual_quantizer.decode(codes[:, :level]) for bits, level in levels.items()}
    shown = labels[rows]
    return {**sample, "sample_labels": shown if shown.ndim == 1 else shown.argmax(axis=1)}


def _write_json(path: Path, content: Any) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
