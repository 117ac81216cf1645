"""What all deep quantizers share: from images to vectors, and from vectors to codes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .config import LossWeights
from .images import Preprocess


class Quantizer(Protocol):
    """What the trainer asks of a quantizer; n vectors, a codes' numbers from C codebooks of K codewords."""

    K: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """The C codebooks, in the order of the codes' numbers."""

    def initialise(self, x: Tensor, seed: int) -> None:
        """Set the codebooks by k-means of vectors, shape (n, d)."""

    def calibrate(self, x: Tensor) -> None:
        """Fit the scale of soft assignments to vectors, shape (n, d)."""

    def restart_dead(self, x: Tensor, counts: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Move the codewords whose count, shape (C, K), is 0; return their numbers, codebook by codebook."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes of vectors: (n, d) -> (n, C), int64."""


class Objective(NamedTuple):
    """Loss of a batch.

    Attributes
    ----------
    loss : tensor, scalar
        What is differentiated.
    parts : dict of str to tensor
        Its terms before they are weighted, detached.
    x : tensor, shape (n, d)
        The vectors that are quantized, detached.
    codes : tensor, shape (n, C), int64, or None
        Their codes; None if nothing was quantized.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    x: Tensor
    codes: Tensor | None


class DeepQuantizer(nn.Module, ABC):
    """A backbone, layers that make vectors of its features, and a quantizer of them.

    Parameters
    ----------
    backbone : nn.Module
        From images, (n, C, H, W) float32, to features, (n, feature_dim).
    feature_dim : int, optional
        By default the backbone's attribute `out_features`.
    mean, std, image_size
        How images are prepared for it; see `faiss_dpq.nn.images.Preprocess`.

    Raises
    ------
    ValueError
        If neither `feature_dim` nor the backbone tells the dimension of the features.
    """

    quantizer: Any  # a Quantizer that is an nn.Module; Python has no type for both
    d: int  #: dimension of the vectors that are quantized

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_dim: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        feature_dim = feature_dim or getattr(backbone, "out_features", None)
        if not isinstance(feature_dim, int):
            raise ValueError(
                f"{type(self).__name__}: {type(backbone).__name__} has no attribute out_features; pass feature_dim, "
                "the dimension of its features"
            )
        self.feature_dim = feature_dim
        self.preprocess = Preprocess(mean, std, image_size)
        # In this memory format convolutions are up to 3 times as fast, in bfloat16 on CPUs above all.
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        #: Type that the backbone computes in under mixed precision; the trainer sets it. None is float32.
        self.autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features: images, uint8 or float in 0..1, (n, C, H, W) -> (n, feature_dim), float32."""
        images = self.preprocess(images.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.backbone(images).float()

    @abstractmethod
    def represent(self, features: Tensor) -> Tensor:
        """The vectors that are quantized: (n, feature_dim) -> (n, d)."""

    @abstractmethod
    def objective(
        self, images: Tensor, labels: Tensor, weights: LossWeights, *, quantize: bool, frozen: bool = False
    ) -> Objective:
        """Loss of a batch.

        Parameters
        ----------
        images, labels : tensors
            As data sets give them; labels of shape (n,) or multi-hot (n, c).
        weights : LossWeights
        quantize : bool
            Second phase: features and codebooks; else the features only.
        frozen : bool
            Train the codebooks only.
        """

    @abstractmethod
    def to_index(self, metric: int | None = None) -> faiss.Index:
        """A trained, empty FAISS index of the model's codebooks, whose codes are `encode`'s."""

    def embed(self, images: Tensor) -> Tensor:
        """The vectors of images that an index quantizes and queries are compared by: (n, d), float32."""
        return self.represent(self.features(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Hard codes of images: (n, C), int64; one number a codebook."""
        return self.quantizer.encode(self.embed(images))

    def codebook_parameters(self) -> list[nn.Parameter]:
        """pi of Eq. 25: the codebooks, in the order of the codes' numbers."""
        return list(self.quantizer.parameters())

    def network_parameters(self) -> list[nn.Parameter]:
        """theta of Eq. 25: all other parameters."""
        codebooks = {id(parameter) for parameter in self.codebook_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in codebooks]


@torch.no_grad()
def embed_dataset(
    model: DeepQuantizer,
    dataset: Dataset,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Vectors and labels of all images of a data set, with the model in evaluation mode.

    Parameters
    ----------
    model : DeepQuantizer
    dataset : torch Dataset of (image, label)
    batch_size : int
    device : str or torch.device, optional
        Where to compute: the model is moved there. By default where it is.
    workers : int
        Processes that load images.

    Returns
    -------
    x : array, shape (n, d), float32
    labels : array, shape (n,), int64, or (n, c), bool if multi-hot
    """
    if device is not None:
        model.to(device)
    # A generator of its own: a loader without one draws from the global one.
    loader = DataLoader(dataset, batch_size, num_workers=workers, generator=torch.Generator())
    training = model.training
    model.eval()
    try:
        batches = [(model.embed(images).cpu(), labels) for images, labels in loader]
    finally:
        model.train(training)
    x = torch.cat([x for x, _ in batches]).numpy()
    labels = torch.cat([labels for _, labels in batches]).numpy()
    return x, labels if labels.ndim == 1 else labels > 0
