"""Settings of a training, among them the ablations of Table 2."""

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple


class Ablation(NamedTuple):
    """What of the whole model a row of Table 2 keeps.

    Attributes
    ----------
    semantic, classification : bool
        Whether L_S and L_C are part of the loss.
    soft : bool
        Whether E has its soft and match terms beside the hard one.
    joint : bool
        Whether the backbone is trained along with the codebooks; if not, it is frozen before they start.
    """

    semantic: bool = True
    classification: bool = True
    soft: bool = True
    joint: bool = True


#: Table 2 of the paper, by the names it uses.
ABLATIONS = {
    "E": Ablation(semantic=False, classification=False, joint=False),
    "E+LS": Ablation(classification=False),
    "E+LC": Ablation(semantic=False),
    "Two-Step": Ablation(joint=False),
    "No-Soft": Ablation(soft=False),
    "DPQ": Ablation(),
}

_CHOICES = {
    "ablation": tuple(ABLATIONS),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("cosine", "constant"),
    "codebook_init": ("kmeans", "random"),
}


class LossWeights(NamedTuple):
    """Factors of the terms of Eq. 21 and Eq. 24.

    Attributes
    ----------
    semantic, classification : float
        Of L_S (1 in the paper) and L_C (lambda).
    distortion : float
        tau: of E, in what the backbone follows. The codebooks follow E itself (Eq. 25).
    soft, hard, match : float
        Of the parts of E: 1, mu and nu.
    triplet_scale : float, optional
        See `TrainConfig`.
    """

    semantic: float = 1.0
    classification: float = 0.1
    distortion: float = 1.0
    soft: float = 1.0
    hard: float = 1.0
    match: float = 0.1
    triplet_scale: float | None = None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training. The defaults of the losses and of the two phases are the paper's.

    Parameters
    ----------
    ablation : str
        A key of `ABLATIONS`; "DPQ" is the whole model.
    epochs : int
        Passes through the training set.
    feature_epochs : int, optional
        How many of them train the features only; half by default. Ablation "E" has no such phase.
    batch_size : int
    optimizer : "adam", "adamw" or "sgd"
        Of the backbone and its heads; the codebooks are always Adam's.
    lr_backbone, lr_codebooks : float
        Learning rates of the two.
    lr_joint : float
        The backbone's rate of the second phase, as a share of `lr_backbone`.
    weight_decay : float
        Of the backbone.
    schedule : "cosine" or "constant"
        "cosine": in each phase the rates rise for its first twentieth and then fall to zero as a cosine.
    lambda_semantic, lambda_classification, tau, mu, nu : float
        Factors of L_S, L_C and E (Eq. 24), and of E's hard and match terms (Eq. 21).
    triplet_scale : float, optional
        Of the similarities in PQN's triplet loss: 1 in the paper. By default 4 / M, so that they span as much as those
        of 4 sub-vectors, whatever M: of fewer, 1 leaves the sigmoid near its middle.
    gamma : float, optional
        Overrides the quantizer's own.
    subtract : "soft" or "hard", optional
        Overrides the quantizer's own.
    codebook_init : "kmeans" or "random"
        Residual k-means of the training set's features when the second phase begins, or the random codewords that the
        model was made with.
    restart_dead : bool
        Move codewords that no image of an epoch used to where the error is largest.
    augment : bool
        Shift, mirror and erase at random; see `faiss_dpq.nn.images.augment`.
    shift, flip, erase
        Its settings.
    seed : int
        Of order, augmentation, dropout and k-means. The model's own initial weights are drawn when it is made.
    device : str
        "auto" is CUDA where there is one, else the CPU.
    amp : bool
        Mixed precision: the backbone runs in bfloat16 (in float16 on GPUs without it).
    patience : int, optional
        Stop when the validation mAP has not risen for so many evaluations, and go back to the best.
    eval_every : int
        Epochs between evaluations on the validation set, in the second phase.
    workers : int
        Processes that load images.
    tensorboard : bool
        Write the history for TensorBoard too, into the run folder.
    progress : bool
        Show a bar on a terminal; the environment variable TQDM_DISABLE=1 turns this off for a whole process.

    Raises
    ------
    ValueError
        If a setting is outside its range.
    """

    ablation: str = "DPQ"
    epochs: int = 64
    feature_epochs: int | None = None
    batch_size: int = 64
    optimizer: str = "adamw"
    lr_backbone: float = 1e-3
    lr_codebooks: float = 1e-3
    lr_joint: float = 1.0
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    lambda_semantic: float = 1.0
    lambda_classification: float = 0.1
    tau: float = 1.0
    mu: float = 1.0
    nu: float = 0.1
    triplet_scale: float | None = None
    gamma: float | None = None
    subtract: str | None = None
    codebook_init: str = "kmeans"
    restart_dead: bool = True
    augment: bool = True
    shift: int = 2
    flip: bool = True
    erase: float = 0.5
    seed: int = 0
    device: str = "auto"
    amp: bool = False
    patience: int | None = None
    eval_every: int = 1
    workers: int = 0
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"TrainConfig: {name} is {getattr(self, name)!r}, expected one of {choices}")
        for name in ("batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: {name} is {getattr(self, name)}, expected at least 1")
        for name in (
            *("epochs", "lr_backbone", "lr_codebooks", "lr_joint", "weight_decay", "workers", "shift", "seed"),
            *("lambda_semantic", "lambda_classification", "tau", "mu", "nu"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainConfig: {name} is {getattr(self, name)}, expected at least 0")
        if self.triplet_scale is not None and not self.triplet_scale > 0:
            raise ValueError(f"TrainConfig: triplet_scale is {self.triplet_scale}, expected more than 0")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"TrainConfig: erase is {self.erase}, expected 0 to 1")
        if self.feature_epochs is not None and not 0 <= self.feature_epochs <= self.epochs:
            raise ValueError(
                f"TrainConfig: feature_epochs is {self.feature_epochs}, expected 0 to epochs={self.epochs}"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"TrainConfig: patience is {self.patience}, expected at least 1")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "TrainConfig":
        """Settings from a mapping, such as a JSON file's; those left out have their defaults.

        Raises
        ------
        ValueError
            If a name is unknown or a value is outside its range.
        """
        unknown = settings.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"TrainConfig: unknown settings {', '.join(sorted(unknown))}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """All settings, as `from_dict` takes them."""
        return asdict(self)

    @property
    def parts(self) -> Ablation:
        """What the ablation keeps."""
        return ABLATIONS[self.ablation]

    @property
    def first_joint_epoch(self) -> int:
        """Number of the epochs of the first phase."""
        if not (self.parts.semantic or self.parts.classification):
            return 0
        return self.epochs // 2 if self.feature_epochs is None else self.feature_epochs

    @property
    def weights(self) -> LossWeights:
        """Factors of the losses, those that the ablation leaves out being 0."""
        parts = self.parts
        return LossWeights(
            semantic=self.lambda_semantic * parts.semantic,
            classification=self.lambda_classification * parts.classification,
            distortion=self.tau * parts.joint,
            soft=float(parts.soft),
            hard=self.mu,
            match=self.nu * parts.soft,
            triplet_scale=self.triplet_scale,
        )
