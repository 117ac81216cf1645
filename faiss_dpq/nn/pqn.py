"""PQN and RPQN: product quantization as a layer of a network, trained by asymmetric triplets.

Source: Yu, Meng, Fang, Jin, Yuan, "Product Quantization Network for Fast Visual Search", IJCV 2020. The abstract and a
summary of the formulas are what this follows; what it leaves open is chosen here, and said so.
"""

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import losses
from .base import DeepQuantizer, Objective
from .config import LossWeights
from .qblock import ProgressiveQuantization, Quantized


class ProductQuantization(nn.Module):
    """Soft product quantization of vectors whose M sub-vectors have length 1; residual inside sub-spaces if depth > 1.

    In each sub-space, s_m = sum_k softmax_k(alpha <x_m, c_m(k)>) c_m(k) with codewords of length 1. For those,
    <x, c> = 1 - ||x - c||^2 / 2, so this is a Q-Block of L2 distances with gamma = alpha / 2. Deeper levels quantize
    what the ones before left, by codewords of any length; their alpha is in units of the residuals' variance (our
    choice).

    Parameters
    ----------
    d : int
        Dimension, a multiple of M.
    M : int
        Number of sub-vectors.
    nbits : int
        Bits a codebook: K = 2**nbits.
    depth : int
        Codebooks of each sub-space: 1 is PQN, more are RPQN.
    alpha : float
        Sharpness of the soft assignment.
    subtract : "soft" or "hard"
        What the next level of a sub-space is given less of.

    Raises
    ------
    ValueError
        If d is not a multiple of M, or an argument is outside its range.
    """

    def __init__(
        self, d: int, M: int, nbits: int = 8, *, depth: int = 1, alpha: float = 20.0, subtract: str = "hard"
    ) -> None:
        super().__init__()
        if M < 1 or d < 1 or d % M:
            raise ValueError(f"ProductQuantization: d is {d}, expected a multiple of M={M}")
        self.d, self.M, self.nbits, self.depth, self.K = d, M, nbits, depth, 1 << nbits
        self.subspaces = nn.ModuleList(
            ProgressiveQuantization(
                d // M, depth, nbits, gamma=alpha / 2, similarity="l2", subtract=subtract, unit=True
            )
            for _ in range(M)
        )

    @property
    def gamma(self) -> float:
        """Sharpness of all soft assignments, alpha / 2."""
        return self._parts()[0].gamma

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        for part in self._parts():
            part.gamma = gamma

    @property
    def subtract(self) -> str:
        """What of a level is subtracted before the next one: "soft" or "hard"."""
        return self._parts()[0].subtract

    @subtract.setter
    def subtract(self, subtract: str) -> None:
        for part in self._parts():
            part.subtract = subtract

    @property
    def codebooks(self) -> Tensor:
        """All codewords: shape (M, depth, K, d / M), detached."""
        return torch.stack([part.codebooks for part in self._parts()])

    def _parts(self) -> list[ProgressiveQuantization]:
        return list(self.subspaces)  # type: ignore[arg-type]

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.d // self.M, dim=1)

    def forward(self, x: Tensor) -> Quantized:
        """Values of shape (1, n, d), sub-spaces concatenated and their levels summed; codes (n, M * depth)."""
        return self.joined(self.parts(x))

    def parts(self, x: Tensor) -> list[Quantized]:
        """What each sub-space makes of its share of x: values of shape (depth, n, d / M)."""
        return [part(sub) for part, sub in zip(self._parts(), self._split(x), strict=True)]

    @staticmethod
    def joined(parts: list[Quantized]) -> Quantized:
        """All sub-spaces' values as one, as `forward` returns them."""
        soft = torch.cat([part.soft.sum(0) for part in parts], 1)
        hard = torch.cat([part.hard.sum(0) for part in parts], 1)
        return Quantized(soft[None], hard[None], torch.cat([part.codes for part in parts], 1))

    def prefix_error(self, x: Tensor, parts: list[Quantized]) -> Tensor:
        """Squared error of the assigned codewords, summed over the sub-spaces and their prefixes of every length."""
        errors = [losses.hard_loss(sub, part) for sub, part in zip(self._split(x), parts, strict=True)]
        return torch.stack(errors).sum()

    def initialise(self, x: Tensor, seed: int) -> None:
        """Set the codebooks by (residual) k-means in every sub-space."""
        for m, (part, sub) in enumerate(zip(self._parts(), self._split(x), strict=True)):
            part.initialise(sub, seed + m)

    def calibrate(self, x: Tensor) -> None:
        """Fit the scale of deeper levels' distances to vectors, shape (n, d)."""
        for part, sub in zip(self._parts(), self._split(x), strict=True):
            part.calibrate(sub)

    def restart_dead(self, x: Tensor, counts: Tensor, generator: torch.Generator) -> list[Tensor]:
        """As `ProgressiveQuantization.restart_dead`, for counts of shape (M * depth, K)."""
        parts = zip(self._parts(), self._split(x), counts.split(self.depth), strict=True)
        return [dead for part, sub, count in parts for dead in part.restart_dead(sub, count, generator)]

    def encode(self, x: Tensor) -> Tensor:
        """The nearest codewords: (n, d) -> (n, M * depth), int64."""
        return torch.cat([part.encode(sub) for part, sub in zip(self._parts(), self._split(x), strict=True)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions: (n, M * depth) -> (n, d)."""
        numbers = codes.split(self.depth, dim=1)
        return torch.cat([part.decode(number) for part, number in zip(self._parts(), numbers, strict=True)], 1)


class PQN(DeepQuantizer):
    """Backbone -> linear layer, sub-vectors normalized -> soft product quantization -> asymmetric triplet loss.

    In the first phase of a training the triplets are of the raw vectors alone. A classification head's loss can be
    added (`TrainConfig.lambda_classification`).

    Parameters
    ----------
    backbone : nn.Module
        From images (n, C, H, W) to features (n, feature_dim).
    num_classes : int
        Number of labels.
    d : int
        Dimension of the vectors, a multiple of M.
    M, nbits : int
        Sub-vectors, and bits of each.
    alpha : float
        Sharpness of the soft assignment.
    feature_dim, mean, std, image_size
        See `DeepQuantizer`.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        d: int = 64,
        M: int = 4,
        nbits: int = 8,
        alpha: float = 20.0,
        feature_dim: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        image_size: int | None = None,
    ) -> None:
        super().__init__(backbone, feature_dim=feature_dim, mean=mean, std=std, image_size=image_size)
        self.d, self.num_classes = d, num_classes
        self.quantizer = self._make_quantizer(d, M, nbits, alpha)
        self.projection = nn.Linear(self.feature_dim, d)
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def _make_quantizer(self, d: int, M: int, nbits: int, alpha: float) -> ProductQuantization:
        return ProductQuantization(d, M, nbits, alpha=alpha)

    def represent(self, features: Tensor) -> Tensor:
        """r: (n, feature_dim) -> (n, d), every sub-vector of length 1."""
        return self._normalized(self.projection(features))

    def _normalized(self, x: Tensor) -> Tensor:
        return functional.normalize(x.unflatten(1, (self.quantizer.M, -1)), dim=2).flatten(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Quantized]:
        """Raw vectors r (n, d), class scores (n, num_classes) and quantized values of images."""
        features = self.features(images)
        r = self.represent(features)
        return r, self.classifier(self._pooled(features)), self.quantizer(r)

    def _pooled(self, features: Tensor) -> Tensor:
        """What the classification head is given."""
        return features

    def objective(
        self, images: Tensor, labels: Tensor, weights: LossWeights, *, quantize: bool, frozen: bool = False
    ) -> Objective:
        """Asymmetric triplet loss + lambda L_C; see `DeepQuantizer`. PQN's codebooks follow the triplets.

        RPQN's follow mu times their squared error as well (our choice): of triplets alone, deeper levels learn sums of
        soft values, of which the nearest codewords are no longer a part.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.features(images)
            r = self.represent(features)
        labels = labels.to(r.device)
        quantized_parts = self.quantizer.parts(r) if quantize else None
        quantized = None if quantized_parts is None else self.quantizer.joined(quantized_parts)
        database = r if quantized is None else quantized.soft[0]
        scale = 4 / self.quantizer.M if weights.triplet_scale is None else weights.triplet_scale
        parts = {"triplet": losses.asymmetric_triplet_loss(r, database, labels, scale)}
        loss = parts["triplet"]
        if quantized_parts is not None and self.quantizer.depth > 1:
            parts["hard"] = self.quantizer.prefix_error(r.detach(), quantized_parts)
            loss = loss + weights.hard * parts["hard"]
        if weights.classification and not frozen:
            parts["classification"] = losses.classification_loss(self.classifier(self._pooled(features)), labels)
            loss = loss + weights.classification * parts["classification"]
        detached = {name: part.detach() for name, part in parts.items()}
        return Objective(loss, detached, r.detach(), None if quantized is None else quantized.codes)

    def to_index(self, metric: int | None = None) -> faiss.IndexPQ:
        """A trained, empty faiss.IndexPQ; of inner products, PQN's similarity, unless `metric` says METRIC_L2."""
        quantizer = self.quantizer
        index = faiss.IndexPQ(self.d, quantizer.M, quantizer.nbits, _metric(metric))
        faiss.copy_array_to_vector(_flat(quantizer.codebooks), index.pq.centroids)
        index.is_trained = True
        return index


class RPQN(PQN):
    """PQN with residual quantization inside every sub-space: `depth` codebooks each, for the same lookup cost a byte.

    Parameters
    ----------
    backbone, num_classes, d, M
        As of `PQN`.
    depth : int
        Codebooks of each sub-space; a code has M * depth numbers.
    nbits, alpha
        As of `PQN`.
    subtract : "soft" or "hard"
        What of a level is subtracted before the next one.
    feature_dim, mean, std, image_size
        As of `PQN`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        d: int = 64,
        M: int = 2,
        depth: int = 2,
        nbits: int = 8,
        alpha: float = 20.0,
        subtract: str = "hard",
        feature_dim: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        image_size: int | None = None,
    ) -> None:
        self._depth, self._subtract = depth, subtract
        super().__init__(
            backbone,
            num_classes,
            d=d,
            M=M,
            nbits=nbits,
            alpha=alpha,
            feature_dim=feature_dim,
            mean=mean,
            std=std,
            image_size=image_size,
        )

    def _make_quantizer(self, d: int, M: int, nbits: int, alpha: float) -> ProductQuantization:
        return ProductQuantization(d, M, nbits, depth=self._depth, alpha=alpha, subtract=self._subtract)

    def to_index(self, metric: int | None = None) -> faiss.IndexProductResidualQuantizer:
        """A trained, empty faiss.IndexProductResidualQuantizer that encodes greedily, as `encode` does.

        Of inner products, PQN's similarity, without stored norms; or of METRIC_L2.
        """
        quantizer = self.quantizer
        metric = _metric(metric)
        search_type = (
            faiss.AdditiveQuantizer.ST_LUT_nonorm
            if metric == faiss.METRIC_INNER_PRODUCT
            else faiss.AdditiveQuantizer.ST_decompress
        )
        index = faiss.IndexProductResidualQuantizer(
            self.d, quantizer.M, quantizer.depth, quantizer.nbits, metric, search_type
        )
        for m, codebooks in enumerate(quantizer.codebooks):
            part = faiss.downcast_AdditiveQuantizer(index.prq.subquantizer(m))
            faiss.copy_array_to_vector(_flat(codebooks), part.codebooks)
            part.max_beam_size = 1
            part.is_trained = True
        faiss.copy_array_to_vector(_flat(quantizer.codebooks), index.prq.codebooks)
        index.prq.is_trained = True
        index.is_trained = True
        return index


def _metric(metric: int | None) -> int:
    if metric not in (None, faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        raise ValueError(f"to_index: metric is {metric}, expected METRIC_INNER_PRODUCT or METRIC_L2")
    return faiss.METRIC_INNER_PRODUCT if metric is None else metric


def _flat(codebooks: Tensor) -> np.ndarray:
    return np.ascontiguousarray(codebooks.cpu().numpy(), np.float32).ravel()
