"""Data sets of images that are made when asked for: files that are opened, pictures that are set in motion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.utils.data import Dataset

#: An image (C, H, W) or video (T, C, H, W), uint8, and its label.
Item = tuple[torch.Tensor, torch.Tensor]

_RESIZE = 256 / 224  # shorter side to crop: the customary margin around a centre crop


class ImageFiles(Dataset[Item]):
    """Image files, opened when asked for: RGB, the shorter side resized to 8/7 of `size`, the centre cropped.

    Parameters
    ----------
    files : sequence of path
    labels : array, shape (n,), integers, or (n, c), multi-hot
    size : int
        Height and width of the images.
    """

    def __init__(self, files: Sequence[Path], labels: npt.NDArray[Any], size: int) -> None:
        self.files = list(files)
        self.labels = torch.as_tensor(labels, dtype=torch.int64 if labels.ndim == 1 else torch.float32)
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Item:
        from PIL import Image

        try:
            with Image.open(self.files[i]) as opened:
                image = opened.convert("RGB")
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError) as error:  # a cut file is an OSError without a name, a damaged PNG the latter
            raise ValueError(f"{self.files[i]} is not an image that Pillow can read: {error}") from error
        scale = round(self.size * _RESIZE) / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.array(image.crop((left, top, left + self.size, top + self.size)))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self.labels[i]


class AnimatedImages(Dataset[Item]):
    """Videos made of images: each turns, grows or shrinks, and drifts along a random straight path of its own.

    Stands in for real videos where none are at hand: T views of one thing, in order, with one label.

    Parameters
    ----------
    images : Dataset
        Of (C, H, W) uint8 tensors and labels.
    frames : int
        Frames of a video, T.
    seed : int
        Of the paths; a video depends on it and on its image's number alone.
    """

    _LEAST = torch.tensor([-0.4, 0.8, -0.2, -0.2])  # angle in radians, scale, shift as a share of half the side
    _MOST = torch.tensor([0.4, 1.2, 0.2, 0.2])

    def __init__(self, images: Dataset[Item], frames: int = 8, seed: int = 0) -> None:
        if frames < 1:
            raise ValueError(f"AnimatedImages: frames is {frames}, expected at least 1")
        self.images = images
        self.frames = frames
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Item:
        """Return the video, (T, C, H, W), uint8, and the label of its image."""
        image, label = self.images[i]
        numbers = np.random.default_rng([self.seed, i]).random((2, 4), dtype=np.float32)
        begin, end = self._LEAST + (self._MOST - self._LEAST) * torch.from_numpy(numbers)
        angle, scale, right, down = (begin + torch.linspace(0, 1, self.frames)[:, None] * (end - begin)).T
        cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
        theta = torch.stack([cosine, -sine, right, sine, cosine, down], dim=1).reshape(-1, 2, 3)
        grid = functional.affine_grid(theta, [self.frames, *image.shape], align_corners=False)
        frames = image.float().expand(self.frames, *image.shape)
        return _to_bytes(functional.grid_sample(frames, grid, padding_mode="border", align_corners=False)), label


def _to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
