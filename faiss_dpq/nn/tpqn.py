"""TPQN: one code for a video, from frame to code in one network."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .pqn import PQN


class TPQN(PQN):
    """Frames -> features -> temporal segments -> one vector, quantized as PQN does (Yu et al., IJCV 2020).

    From the paper's abstract come frame-wise features, their aggregation over time and the quantization of the video's
    one vector by PQN's layer, trained together; so a search of videos costs what one of images does. The rest is ours:
    the video is cut into `segments` parts of equal length; the features of a part's frames are averaged; one linear
    layer, the same for all parts, makes d / segments numbers of each; and they are put one after another, so that every
    sub-vector of the product quantizer belongs to one part of the video. The classification head is given the mean
    over all parts.

    Parameters
    ----------
    backbone : nn.Module
        From frames, (n, C, H, W), to features, (n, feature_dim).
    num_classes : int
        Number of labels.
    segments : int
        Parts that a video is cut into.
    d : int
        Dimension of the video's vector, a multiple of M.
    M : int
        Sub-vectors of the product quantizer, a multiple of `segments`.
    nbits, alpha, feature_dim, mean, std, image_size
        As of `PQN`.

    Raises
    ------
    ValueError
        If M is no multiple of `segments`, or another argument is outside its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        segments: int = 2,
        d: int = 64,
        M: int = 4,
        nbits: int = 8,
        alpha: float = 20.0,
        feature_dim: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        image_size: int | None = None,
    ) -> None:
        if segments < 1 or M % segments:
            raise ValueError(f"TPQN: M is {M}, expected a multiple of segments={segments}")
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
        self.segments = segments
        self.projection = nn.Linear(self.feature_dim, d // segments)

    def features(self, images: Tensor) -> Tensor:
        """Features of every segment: videos (n, T, C, H, W), T at least `segments` -> (n, segments, feature_dim)."""
        if images.ndim != 5 or images.shape[1] < self.segments:
            raise ValueError(
                f"TPQN: images has shape {tuple(images.shape)}, "
                f"expected (n, T, C, H, W) with T >= {self.segments} frames"
            )
        frames = super().features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return functional.adaptive_avg_pool1d(frames.transpose(1, 2), self.segments).transpose(1, 2)

    def represent(self, features: Tensor) -> Tensor:
        """r: (n, segments, feature_dim) -> (n, d), every sub-vector of length 1."""
        return self._normalized(self.projection(features).flatten(1))

    def _pooled(self, features: Tensor) -> Tensor:
        return features.mean(1)
