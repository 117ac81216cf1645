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
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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
from .config import TrainConfig
from .data import DataConfig, RetrievalData
from .dpq import DPQ
from .image_sets import Item
from .labels import label_embeddings
from .pqn import PQN, RPQN
from .tpqn import TPQN
from .trainer import Trainer, place

MODELS: dict[str, Callable[..., DeepQuantizer]] = {"DPQ": DPQ, "PQN": PQN, "RPQN": RPQN, "TPQN": TPQN}
FEATURES = "features"  # the key of the unquantized vectors beside the code lengths in metrics and curves

_VALIDATION_SHARE = 10  # one in so many training images is held out where a training stops early
_CURVE_POINTS = 400
_TSNE_IMAGES = 2000


@dataclass(frozen=True)
class ModelConfig:
    """Which model; the [model] table of a run file.

    Parameters
    ----------
    name : str
        "DPQ", "PQN", "RPQN" or "TPQN".
    backbone : str
        "small", `SmallCNN`, or "alexnet", `AlexNet`, whose images are resized to 224 x 224.
    weights : str
        AlexNet's published state_dict file; random weights if empty.
    label_embeddings : str
        Of DPQ: "glove" for those of the extra ``bench``, the path of a text file of word vectors, the path of an .npy
        array of shape (classes, d), or "none", for trainings without L_S; then `options` holds d.
    centre : bool
        Subtract the mean of the label embeddings, see `faiss_dpq.nn.label_embeddings`.
    backbone_options, options : dict
        Further arguments of the backbone and of the model, such as M, nbits, d, depth, alpha.
    """

    name: str = "DPQ"
    backbone: str = "small"
    weights: str = ""
    label_embeddings: str = "glove"
    centre: bool = True
    backbone_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationConfig:
    """How retrieval is measured; the [evaluation] table of a run file.

    Parameters
    ----------
    R : int
        mAP@R; 0 is the whole database.
    ties : "order" or "threshold"
        See `faiss_dpq.evaluation`.
    batch_size : int
        Images that go through the model at a time.
    """

    R: int = 0
    ties: str = "order"
    batch_size: int = 256


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on: the tables of a run file."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> "RunConfig":
        """From nested dictionaries; what is left out has its default.

        Raises
        ------
        ValueError
            If a name is unknown, or a value has a wrong type or is outside its range.
        """
        kinds: dict[str, Any] = {
            "data": DataConfig,
            "model": ModelConfig,
            "train": TrainConfig,
            "evaluation": EvaluationConfig,
        }
        _check_names("the configuration", tables, list(kinds))
        return cls(**{name: _table(kind, name, tables.get(name, {})) for name, kind in kinds.items()})

    @classmethod
    def read(cls, path: Path | str, settings: Sequence[str] = ()) -> "RunConfig":
        """From a .toml or .json file, with settings such as "train.epochs=20" in place of the file's.

        The value of a setting is JSON, or else a string.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it cannot be read, a setting has no "=", and as `from_dict`.
        """
        tables = _read_tables(Path(path))
        for setting in settings:
            name, separator, value = setting.partition("=")
            *outer, last = name.split(".")
            if not separator or not outer:
                raise ValueError(f"setting is {setting!r}, expected TABLE.NAME=VALUE, such as train.epochs=20")
            table = tables
            for key in outer:
                table = table.setdefault(key, {})
                if not isinstance(table, dict):
                    raise ValueError(f"setting is {setting!r}, but {key} is {table!r}, no table")
            table[last] = _json_or_text(value)
        return cls.from_dict(tables)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as `from_dict` takes them."""
        return asdict(self)

    def decisive(self) -> dict[str, Any]:
        """What results depend on: all but where and how visibly it is computed."""
        tables = self.to_dict()
        for name in ("device", "workers", "progress", "tensorboard"):
            del tables["train"][name]
        return tables

    @property
    def label(self) -> str:
        """What the run is called beside others: its ablation if it is a DPQ, else its model."""
        return self.train.ablation if self.model.name == "DPQ" else self.model.name


def _read_tables(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a run file, .toml or .json")
    try:
        if path.suffix == ".json":
            tables = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            tables = _toml().loads(path.read_text(encoding="utf-8"))
        else:
            raise ValueError(f"expected a file named .toml or .json, not {path.suffix or 'without a suffix'}")
    except ValueError as error:  # both parsers' errors are ValueErrors
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(tables, dict):
        raise ValueError(f"{path} holds {type(tables).__name__}, expected tables: data, model, train, evaluation")
    return tables


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _table(kind: Any, name: str, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}, expected a table")
    _check_names(name, values, [entry.name for entry in fields(kind)])
    for entry in fields(kind):
        # TrainConfig has optional settings, and checks itself.
        if kind is not TrainConfig and entry.name in values and type(values[entry.name]) is not entry_type(entry):
            raise ValueError(
                f"{name}.{entry.name} is {values[entry.name]!r}, expected a value of type {entry_type(entry).__name__}"
            )
    try:
        return kind(**values)
    except TypeError as error:  # a value that cannot be compared with its bounds
        raise ValueError(f"{name}: a value has a wrong type: {error}") from error


def entry_type(entry: Any) -> type:
    """The class of a field's values, all of which have defaults."""
    return dict if entry.default_factory is dict else type(entry.default)


def _check_names(where: str, values: dict[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}, expected only {', '.join(known)}")


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
        _check_names("model.options", model.options, _keywords(MODELS[model.name]))
        return MODELS[model.name](backbone, len(experiment.class_names), **arguments)


def _build_backbone(model: ModelConfig, experiment: RetrievalData) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The backbone, and how images are to be prepared for it."""
    channels = experiment.query[0][0].shape[-3]
    if model.backbone == "small":
        _check_names("model.backbone_options", model.backbone_options, _keywords(SmallCNN))
        return SmallCNN(**{"in_channels": channels, **model.backbone_options}), {}
    if model.backbone != "alexnet":
        raise ValueError(f"model.backbone is {model.backbone!r}, expected small or alexnet")
    if channels != 3:
        raise ValueError(f"model.backbone is alexnet, expected images of 3 channels; these have {channels}")
    _check_names("model.backbone_options", model.backbone_options, ["dropout"])
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
    # A bar in a log file would be thousands of lines.
    progress = config.train.progress and sys.stderr.isatty()
    trainer = Trainer(model, replace(config.train, progress=progress), folder)
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
