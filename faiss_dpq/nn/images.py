"""Batches of images: scaling to what a backbone expects, and random changes for training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Preprocess(nn.Module):
    """Images as a backbone takes them: float32, resized, normalized channel by channel.

    Parameters
    ----------
    mean, std : sequence of float
        Of each channel (or one for all), of values in 0..1. uint8 images are divided by 255; float ones are taken to
        be in 0..1 already.
    size : int, optional
        Resize to this height and width (bilinear, antialiased) where an image has another.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,), size: int | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W), uint8 or float -> (n, C, size, size), float32."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std


def augment(
    images: Tensor, generator: torch.Generator, *, shift: int = 2, flip: bool = True, erase: float = 0.5
) -> Tensor:
    """Change images at random: shifted, mirrored, and a rectangle erased; frames of one video alike.

    Parameters
    ----------
    images : tensor, shape (n, C, H, W) or (n, T, C, H, W)
    generator : torch.Generator
        On the CPU, so that the changes are the same whatever device the images are on.
    shift : int
        By up to so many pixels each way; what comes in is black.
    flip : bool
        Mirror left and right, half of the images.
    erase : float
        Share of the images of which a random rectangle, up to half as high and wide as the image, turns grey.

    Returns
    -------
    images : tensor, of the same shape, dtype and device
    """
    shape = images.shape
    images = images.reshape(len(images), -1, *shape[-2:])
    n, _, height, width = images.shape

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator).to(images.device)

    if shift:
        padded = functional.pad(images, (shift, shift, shift, shift))
        dy, dx = ((2 * shift + 1) * uniform(2, n)).long()
        rows = dy[:, None] + torch.arange(height, device=images.device)
        columns = dx[:, None] + torch.arange(width, device=images.device)
        every = torch.arange(n, device=images.device)[:, None, None]
        # Indices on both sides of the slice put the channels last.
        images = padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        images = torch.where((uniform(n) < 0.5)[:, None, None, None], images.flip(-1), images)
    if erase:
        images = _erase(images, uniform(n) < erase, uniform(4, n))
    return images.reshape(shape)


def _erase(images: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """Grey rectangles in the chosen images: u, shape (4, n), tells each one's height, width, top and left edge."""

    def inside(length: int, size: Tensor, start: Tensor) -> Tensor:
        extent = (length / 8 + size * 3 * length / 8).long()
        first = (start * (length - extent + 1)).long()
        at = torch.arange(length, device=images.device)
        return (at >= first[:, None]) & (at < (first + extent)[:, None])

    height, width = images.shape[-2:]
    mask = inside(height, u[0], u[2])[:, :, None] & inside(width, u[1], u[3])[:, None, :] & chosen[:, None, None]
    grey = 127 if images.dtype == torch.uint8 else 0.5
    return images.masked_fill(mask[:, None], grey)
