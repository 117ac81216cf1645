"""DPQ: features from supervised learning, quantized progressively, trained end to end.

Source: Gao, Zhu, Song, Zhao, Shen, "Beyond Product Quantization: Deep Progressive Quantization for Image Retrieval",
IJCAI 2019. Its equations' numbers stand beside what they define.
"""

from collections.abc import Sequence

import faiss
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..index import IndexDPQ
from . import losses
from .base import DeepQuantizer, Objective
from .config import LossWeights
from .qblock import ProgressiveQuantization, Quantized


class DPQ(DeepQuantizer):
    """Backbone -> semantic layer and classification head -> progressive quantizer (Fig. 2 of the paper).

    The vectors that are quantized are v = tanh(linear(features)), of the label embeddings' dimension.

    Parameters
    ----------
    backbone : nn.Module
        From images (n, C, H, W) to features (n, feature_dim).
    num_classes : int
        Number of labels.
    label_embeddings : array, shape (num_classes, d), optional
        z of Eq. 6, such as `faiss_dpq.nn.label_embeddings` makes. Without them L_S cannot be part of the loss.
    d : int, optional
        Dimension of v where there are no label embeddings.
    M, nbits : int
        Levels (the paper's L), and bits of each.
    gamma, similarity, assign, subtract
        Of the quantizer; see `faiss_dpq.nn.qblock.ProgressiveQuantization`.
    unit : bool
        Quantize v / ||v||. L_S and L_C do not see the length of v, while E falls when v shrinks: trained from scratch,
        a network can follow E that way instead of gathering its vectors around codewords. Not in the paper.
    prefix_weights : sequence of M floats, optional
        w_l of Eq. 10, 19 and 20; 1 each by default.
    feature_dim, mean, std, image_size
        See `DeepQuantizer`.

    Raises
    ------
    ValueError
        If an argument has a wrong shape or is outside its range.
    """

    label_embeddings: Tensor | None
    prefix_weights: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        label_embeddings: npt.ArrayLike | Tensor | None = None,
        *,
        d: int | None = None,
        M: int = 4,
        nbits: int = 8,
        gamma: float = 20.0,
        similarity: str = "cosine",
        assign: str = "l2",
        subtract: str = "hard",
        unit: bool = False,
        prefix_weights: Sequence[float] | None = None,
        feature_dim: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        image_size: int | None = None,
    ) -> None:
        super().__init__(backbone, feature_dim=feature_dim, mean=mean, std=std, image_size=image_size)
        z = None if label_embeddings is None else torch.as_tensor(label_embeddings, dtype=torch.float32)
        if z is not None and (z.ndim != 2 or len(z) != num_classes):
            raise ValueError(
                f"DPQ: label_embeddings has shape {tuple(z.shape)}, expected num_classes={num_classes} rows of d"
            )
        if z is not None:
            if d not in (None, z.shape[1]):
                raise ValueError(f"DPQ: d is {d}, but label_embeddings have {z.shape[1]} dimensions")
            d = z.shape[1]
        if d is None:
            raise ValueError("DPQ: neither label_embeddings nor d is given; one must tell the dimension of v")
        self.d = d
        self.num_classes, self.unit = num_classes, unit
        weights = torch.ones(M) if prefix_weights is None else torch.tensor(list(prefix_weights), dtype=torch.float32)
        if weights.shape != (M,) or not bool((weights >= 0).all()):
            raise ValueError(f"DPQ: prefix_weights is {prefix_weights}, expected M={M} numbers >= 0")
        self.register_buffer("label_embeddings", z)
        self.register_buffer("prefix_weights", weights)
        self.semantic = nn.Linear(self.feature_dim, self.d)
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.quantizer = ProgressiveQuantization(
            self.d, M, nbits, gamma=gamma, similarity=similarity, assign=assign, subtract=subtract
        )

    def represent(self, features: Tensor) -> Tensor:
        """v, the semantic vectors: (n, feature_dim) -> (n, d), in -1..1."""
        v = self.semantic(features).tanh()
        return functional.normalize(v, dim=1) if self.unit else v

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Quantized]:
        """Semantic vectors (n, d), class scores (n, num_classes) and quantized values of images."""
        features = self.features(images)
        v = self.represent(features)
        return v, self.classifier(features), self.quantizer(v)

    def objective(
        self, images: Tensor, labels: Tensor, weights: LossWeights, *, quantize: bool, frozen: bool = False
    ) -> Objective:
        """L = L_S + lambda L_C + tau E (Eq. 24), so that gradients are those of Eq. 25; see `DeepQuantizer`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.features(images)
            v = self.represent(features)
        parts: dict[str, Tensor] = {}
        terms = [v.new_zeros(())]
        labels = labels.to(v.device)
        if weights.semantic and not frozen:
            if self.label_embeddings is None:
                raise ValueError("DPQ: L_S needs label_embeddings; pass them, or train the ablation 'E+LC' or 'E'")
            parts["semantic"] = losses.adaptive_margin_loss(v, labels, self.label_embeddings)
            terms.append(weights.semantic * parts["semantic"])
        if weights.classification and not frozen:
            parts["classification"] = losses.classification_loss(self.classifier(features), labels)
            terms.append(weights.classification * parts["classification"])
        codes = None
        if quantize:
            # The value is v; its gradient is that of tau E, while the codebooks' is that of E (Eq. 25).
            x = v.detach() + weights.distortion * (v - v.detach())
            quantized = self.quantizer(x)
            distortion = {
                "soft": losses.soft_loss(x, quantized, self.prefix_weights),
                "hard": losses.hard_loss(x, quantized, self.prefix_weights),
                "match": losses.match_loss(quantized, self.prefix_weights),
            }
            # Eq. 21; a term of weight 0 is reported, but left out of the graph.
            terms += [getattr(weights, name) * term for name, term in distortion.items() if getattr(weights, name)]
            parts |= distortion
            codes = quantized.codes
        detached = {name: part.detach() for name, part in parts.items()}
        return Objective(torch.stack(terms).sum(), detached, v.detach(), codes)

    def to_index(self, metric: int | None = None) -> IndexDPQ:
        """A trained, empty IndexDPQ with the model's codebooks.

        Its `beam_size` is 1 and its `parallel_weight` 0, the paper's greedy encoder (Eq. 26), so that its codes are
        those of `encode` and the first levels are the best that a short code can be. A larger beam lowers the error of
        the full length.

        Parameters
        ----------
        metric : int
            faiss.METRIC_L2, the paper's (Eq. 30), or faiss.METRIC_INNER_PRODUCT.
        """
        index = IndexDPQ.from_codebooks(
            self.quantizer.codebooks.cpu().numpy(), faiss.METRIC_L2 if metric is None else metric
        )
        index.beam_size = 1
        index.parallel_weight = 0.0
        return index
