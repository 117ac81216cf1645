"""Training: two phases, two optimisers, checkpoints that continue bit for bit."""

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..lab import evaluation
from ..training import progress
from .base import DeepQuantizer, Objective, embed_dataset
from .config import TrainConfig
from .dpq import DPQ
from .images import augment

Record = dict[str, Any]
Validation = Dataset | tuple[Dataset, Dataset]

#: Vectors of an epoch kept for restarting dead codewords.
_RESERVE = 4096

#: Settings that the second phase alone follows: two trainings that differ only in them share their first phase.
_SECOND_PHASE = {
    *("ablation", "epochs", "feature_epochs", "lr_codebooks", "lr_joint", "tau", "mu", "nu", "gamma", "subtract"),
    *("codebook_init", "restart_dead", "patience", "eval_every", "device", "workers", "tensorboard", "progress"),
}


class Trainer:
    """Trains a `DPQ`, `PQN`, `RPQN` or `TPQN` model.

    Phase 1 trains the backbone and its heads; phase 2 trains them and the codebooks, which are set by residual k-means
    of the training set's features when it begins. The backbone (theta) and the codebooks (pi) have an optimiser each
    (Eq. 25). Everything random in an epoch is drawn from (seed, epoch), so a training that is resumed from a
    checkpoint continues bit for bit as if it had never stopped, on the same machine and number of threads.

    Parameters
    ----------
    model : DeepQuantizer
        Trained in place.
    config : TrainConfig
    run_dir : path, optional
        Folder for checkpoint.pt (after every epoch), features.pt (after phase 1), and TensorBoard's events; made if
        there is none.

    Attributes
    ----------
    history : list of dict
        A record an epoch: epoch, phase, the mean of the loss and of each of its parts; in phase 2 the perplexity of
        every codebook (how many codewords are in effective use, 1 to K), and how many codewords were restarted;
        validation_map where it was evaluated; seconds.

    Raises
    ------
    ValueError
        If the settings do not fit the model.
    """

    def __init__(self, model: DeepQuantizer, config: TrainConfig, run_dir: Path | str | None = None) -> None:
        if config.ablation != "DPQ" and not isinstance(model, DPQ):
            raise ValueError(f"Trainer: ablation is {config.ablation!r}, but {type(model).__name__} has none of DPQ's")
        self.model, self.config = model, config
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.device = place(model, config)
        if config.gamma is not None:
            model.quantizer.gamma = config.gamma
        if config.subtract is not None:
            model.quantizer.subtract = config.subtract
        if not config.parts.soft:
            model.quantizer.subtract = "hard"  # without soft values nothing may depend on them
        self.network_optimizer = _network_optimizer(model.network_parameters(), config)
        self.codebook_optimizer = torch.optim.Adam(model.codebook_parameters(), lr=config.lr_codebooks)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=model.autocast == torch.float16)
        self.history: list[Record] = []
        self._best: Record | None = None

    # ---- the whole training ------------------------------------------------------------------------------------

    def fit(
        self,
        train_set: Dataset,
        validation: Validation | None = None,
        *,
        resume: bool = False,
        features: Path | str | None = None,
    ) -> list[Record]:
        """Train for `config.epochs` epochs, or until the validation mAP no longer rises.

        Parameters
        ----------
        train_set : torch Dataset of (image, label)
            uint8 images (C, H, W), videos (T, C, H, W); labels int64 scalars, or float multi-hot vectors.
        validation : Dataset, or (queries, database) of two Datasets, optional
            For early stopping. One data set serves as both.
        resume : bool
            Continue from the run folder's checkpoint.pt, if there is one.
        features : path, optional
            features.pt of a run of the same first phase: begin with the second. `ablation` may differ, as "DPQ",
            "Two-Step" and "No-Soft" do.

        Returns
        -------
        history : list of dict

        Raises
        ------
        ValueError
            If the checkpoint is of another training, or the training set has fewer images than a batch needs.
        RuntimeError
            If a loss is not finite, or there are fewer images than codewords.
        """
        if len(train_set) < 2:  # type: ignore[arg-type]
            raise ValueError(f"Trainer: train_set has {len(train_set)} images, expected at least 2")  # type: ignore[arg-type]
        checkpoint = None if self.run_dir is None else self.run_dir / "checkpoint.pt"
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        if resume and checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)
        elif features is not None:
            self._load_features(Path(features))
        with _Reporter(self.config, self.run_dir) as reporter:
            for epoch in range(len(self.history), self.config.epochs):
                if self._is_stopped():
                    break
                record = self._fit_epoch(epoch, train_set, validation, reporter)
                self.history.append(record)
                reporter.epoch(record)
                if checkpoint is not None:
                    self._save(checkpoint)
                    if epoch + 1 == self.config.first_joint_epoch:
                        self._save(checkpoint.with_name("features.pt"))
        if self._best is not None and self.config.patience is not None:
            self.model.load_state_dict(self._best["state"])
        self.model.eval()
        return self.history

    def _fit_epoch(
        self, epoch: int, train_set: Dataset, validation: Validation | None, reporter: "_Reporter"
    ) -> Record:
        started = time.perf_counter()
        quantize = epoch >= self.config.first_joint_epoch
        if epoch == self.config.first_joint_epoch:
            self._start_codebooks(train_set)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _repeatable():
            torch.manual_seed(_seed(self.config.seed, epoch, 0))
            record = self._train_epoch(epoch, train_set, quantize, reporter)
        since_start = epoch - self.config.first_joint_epoch
        last = epoch + 1 == self.config.epochs
        if validation is not None and quantize and (last or since_start % self.config.eval_every == 0):
            record["validation_map"] = self.validate(validation)
            if self._best is None or record["validation_map"] > self._best["validation_map"]:
                state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
                self._best = {"epoch": epoch, "validation_map": record["validation_map"], "state": state}
        record["seconds"] = time.perf_counter() - started
        return record

    def _is_stopped(self) -> bool:
        if self._best is None or self.config.patience is None:
            return False
        later = [r for r in self.history if r["epoch"] > self._best["epoch"] and "validation_map" in r]
        return len(later) >= self.config.patience

    def validate(self, validation: Validation) -> float:
        """mAP of queries among a database of codes, at full length."""
        queries, database = validation if isinstance(validation, tuple) else (validation, validation)
        index = self.model.to_index()
        xb, database_labels = embed_dataset(self.model, database)
        xq, query_labels = (xb, database_labels) if queries is database else embed_dataset(self.model, queries)
        index.add(xb)
        return float(evaluation.mean_average_precision(index, xq, query_labels, database_labels))

    # ---- one epoch ---------------------------------------------------------------------------------------------

    def _start_codebooks(self, train_set: Dataset) -> None:
        x = torch.from_numpy(embed_dataset(self.model, train_set)[0]).to(self.device)
        if self.config.codebook_init == "kmeans":
            self.model.quantizer.initialise(x, self.config.seed)
        else:
            self.model.quantizer.calibrate(x)

    def _train_epoch(self, epoch: int, train_set: Dataset, quantize: bool, reporter: "_Reporter") -> Record:
        generator = torch.Generator().manual_seed(_seed(self.config.seed, epoch, 1))
        frozen = quantize and not self.config.parts.joint
        self.model.train(not frozen)  # frozen also means: batch normalization's statistics stay as they are
        batches = self._loader(train_set, generator)
        sums = _Sums(len(self.model.codebook_parameters()), self.model.quantizer.K, self.device)
        phase = "codebooks" if frozen else "joint" if quantize else "features"
        for step, (images, labels) in enumerate(reporter.batches(batches, f"{epoch + 1}/{self.config.epochs} {phase}")):
            self._set_rates(epoch, step / len(batches), quantize)
            images = images.to(self.device, non_blocking=True)
            if self.config.augment:
                settings = {name: getattr(self.config, name) for name in ("shift", "flip", "erase")}
                images = augment(images, generator, **settings)
            objective = self.model.objective(images, labels, self.config.weights, quantize=quantize, frozen=frozen)
            self._step(objective, quantize, frozen)
            sums.add(objective)
            if step % 20 == 0:
                reporter.losses(sums)
        record: Record = {"epoch": epoch, "phase": phase, **sums.means()}
        if not math.isfinite(record["loss"]):
            raise RuntimeError(f"Trainer: the loss of epoch {epoch + 1} is {record['loss']}; try lower learning rates")
        if quantize:
            record["perplexity"] = [round(p, 2) for p in perplexity(sums.counts).tolist()]
            record["restarted"] = self._restart(sums, generator) if epoch + 1 < self.config.epochs else 0
        return record

    def _loader(self, train_set: Dataset, generator: torch.Generator) -> DataLoader:
        size = min(self.config.batch_size, len(train_set))  # type: ignore[arg-type]
        return DataLoader(
            train_set,
            size,
            shuffle=True,
            drop_last=True,  # batch normalization cannot train on a last batch of one image
            generator=generator,
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _step(self, objective: Objective, quantize: bool, frozen: bool) -> None:
        optimizers = [self.network_optimizer] * (not frozen) + [self.codebook_optimizer] * quantize
        if not objective.loss.requires_grad:
            return  # a batch without a triplet, say
        self.network_optimizer.zero_grad()
        self.codebook_optimizer.zero_grad()
        self.scaler.scale(objective.loss).backward()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def _set_rates(self, epoch: int, part: float, quantize: bool) -> None:
        """Learning rates when `part` of an epoch is done."""
        config = self.config
        start, end = (config.first_joint_epoch, config.epochs) if quantize else (0, config.first_joint_epoch)
        rate = one_cycle((epoch + part - start) / (end - start)) if config.schedule == "cosine" else 1.0
        for group in self.network_optimizer.param_groups:
            group["lr"] = config.lr_backbone * rate * (config.lr_joint if quantize else 1.0)
        for group in self.codebook_optimizer.param_groups:
            group["lr"] = config.lr_codebooks * rate

    def _restart(self, sums: "_Sums", generator: torch.Generator) -> int:
        if not self.config.restart_dead or not sums.reserve:
            return 0
        restarted = self.model.quantizer.restart_dead(torch.cat(sums.reserve), sums.counts, generator)
        for parameter, numbers in zip(self.model.codebook_parameters(), restarted, strict=True):
            # The moments were those of the codeword's old place.
            for moment in self.codebook_optimizer.state[parameter].values():
                if moment.shape == parameter.shape:
                    moment[numbers] = 0
        return sum(len(numbers) for numbers in restarted)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "network_optimizer": self.network_optimizer.state_dict(),
            "codebook_optimizer": self.codebook_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": self.config.to_dict(),
            "history": self.history,
            "best": self._best,
        }
        aside = path.with_name(path.name + ".part")
        torch.save(state, aside)
        aside.replace(path)  # an interrupted save leaves the last checkpoint whole

    def _load(self, path: Path) -> None:
        state = _read_checkpoint(path, self.device)
        self._check_config(path, state["config"], free={"device", "workers", "tensorboard", "progress"})
        self._restore(state)
        self.codebook_optimizer.load_state_dict(state["codebook_optimizer"])
        self._best = state["best"]

    def _load_features(self, path: Path) -> None:
        state = _read_checkpoint(path, self.device)
        self._check_config(path, state["config"], free=_SECOND_PHASE)
        theirs = TrainConfig.from_dict(state["config"])
        mine = self.config
        for name in ("first_joint_epoch", "parts"):
            here, there = getattr(mine, name), getattr(theirs, name)
            if name == "parts":
                here, there = here[:2], there[:2]
            if here != there:
                raise ValueError(f"Trainer: {path} is of a first phase with {name}={there}, expected {here}")
        self._restore(state)

    def _restore(self, state: Record) -> None:
        self.model.load_state_dict(state["model"])
        self.network_optimizer.load_state_dict(state["network_optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]

    def _check_config(self, path: Path, theirs: Record, free: set[str]) -> None:
        mine = self.config.to_dict()
        differing = [name for name in mine if name not in free and mine[name] != theirs.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(f"Trainer: {path} is of a training with {name}={theirs.get(name)}, expected {mine[name]}")


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the codewords' use: counts (C, K) -> (C,); K if all are used alike, 1 if one is."""
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    return torch.special.entr(shares).sum(1).exp()


@dataclass
class _Sums:
    """Of an epoch: sums of the losses, counts of the codewords, and some vectors."""

    codebooks: int
    K: int
    device: torch.device
    steps: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    reserve: list[Tensor] = field(default_factory=list)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.codebooks, self.K, dtype=torch.int64, device=self.device)

    def add(self, objective: Objective) -> None:
        self.steps += 1
        for name, value in {"loss": objective.loss.detach(), **objective.parts}.items():
            self.parts[name] = self.parts.get(name, 0) + value.double()
        if objective.codes is not None:
            for counts, numbers in zip(self.counts, objective.codes.T, strict=True):
                counts += torch.bincount(numbers, minlength=self.K)
            self.reserve.append(objective.x)
            # The latest vectors fit the present backbone best.
            while sum(map(len, self.reserve)) - len(self.reserve[0]) >= _RESERVE:
                self.reserve.pop(0)

    def means(self) -> dict[str, float]:
        return {name: float(value) / max(self.steps, 1) for name, value in self.parts.items()}


class _Reporter:
    """Shows progress: a bar and TensorBoard, each if it is asked for."""

    def __init__(self, config: TrainConfig, run_dir: Path | None) -> None:
        self.bar: Any = None
        self.bars = config.progress
        self.writer = _tensorboard_writer(run_dir) if config.tensorboard else None

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def batches(self, loader: DataLoader, title: str) -> Iterable[Any]:
        if not self.bars or not progress.shown():
            return loader
        self.bar = progress.bar(loader, desc=title, leave=False)
        return self.bar

    def losses(self, sums: _Sums) -> None:
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in sums.means().items()})

    def epoch(self, record: Record) -> None:
        if self.writer is None:
            return
        for name, value in record.items():
            if name not in ("epoch", "phase"):
                for level, number in enumerate(value if isinstance(value, list) else [value], 1):
                    tag = f"{name}/level {level}" if isinstance(value, list) else name
                    self.writer.add_scalar(tag, number, record["epoch"])


def _tensorboard_writer(run_dir: Path | None) -> Any:
    if run_dir is None:
        raise ValueError("Trainer: tensorboard is on, but there is no run_dir to write to")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("Trainer: tensorboard is on, but not installed: pip install tensorboard") from error
    return SummaryWriter(run_dir)


def place(model: DeepQuantizer, config: TrainConfig) -> torch.device:
    """Move a model to the device that settings name, set the type it computes in, and return the device."""
    device = torch.device(device_name(config.device))
    model.to(device)
    model.autocast = _autocast_type(device) if config.amp else None
    return device


def _repeatable() -> contextlib.AbstractContextManager[None]:
    """On a GPU, convolutions with the same results every time; all else that training does has them anyway."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32)


def device_name(device: str) -> str:
    """torch's name of a device; of a GPU if there is one, else of the CPU, where `device` is "auto"."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _autocast_type(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def _network_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr_backbone, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr_backbone, weight_decay=config.weight_decay)


def one_cycle(done: float, warmup: float = 0.05) -> float:
    """Share of the peak rate when a share `done` of a phase is behind."""
    if done < warmup:
        return 0.05 + 0.95 * done / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))


def _seed(seed: int, epoch: int, stream: int) -> int:
    """One number of 63 bits for each (seed, epoch, stream), unlike its neighbours'."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _read_checkpoint(path: Path, device: torch.device) -> Record:
    if not path.is_file():
        raise FileNotFoundError(f"Trainer: {path} is not a file; expected a checkpoint of a training")
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or "network_optimizer" not in state:
        raise ValueError(f"Trainer: {path} is not a checkpoint of a training")
    return state
