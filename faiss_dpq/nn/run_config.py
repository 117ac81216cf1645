"""Run files: everything that a run depends on, as nested tables in TOML or JSON."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .data import DataConfig


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
        check_names("the configuration", tables, list(kinds))
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
    check_names(name, values, [entry.name for entry in fields(kind)])
    for entry in fields(kind):
        # TrainConfig has optional settings, and checks itself.
        if kind is not TrainConfig and entry.name in values and type(values[entry.name]) is not _entry_type(entry):
            raise ValueError(
                f"{name}.{entry.name} is {values[entry.name]!r}, expected a value of type {_entry_type(entry).__name__}"
            )
    try:
        return kind(**values)
    except TypeError as error:  # a value that cannot be compared with its bounds
        raise ValueError(f"{name}: a value has a wrong type: {error}") from error


def _entry_type(entry: Any) -> type:
    """The class of a field's values, all of which have defaults."""
    return dict if entry.default_factory is dict else type(entry.default)


def check_names(where: str, values: dict[str, Any], known: Sequence[str]) -> None:
    """Raise a ValueError that names what of `values` is not known."""
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}, expected only {', '.join(known)}")
