"""DPQ without labels or network: codebooks of given vectors, trained by gradients of E (Eq. 21)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..training import registry
from . import losses
from .qblock import ProgressiveQuantization
from .trainer import device_name, one_cycle

Floats = npt.NDArray[np.float32]


def train_codebooks_sgd(
    x: npt.ArrayLike,
    codebooks: npt.ArrayLike,
    *,
    epochs: int = 10,
    lr: float = 2e-3,
    batch_size: int = 1024,
    gamma: float = 20.0,
    similarity: str = "l2",
    subtract: str = "hard",
    soft: float = 1.0,
    mu: float = 1.0,
    nu: float = 0.1,
    weights: npt.ArrayLike | None = None,
    device: str = "auto",
    seed: int = 1234,
) -> Floats:
    """Improve codebooks by stochastic gradients of E = soft + mu hard + nu match (Eq. 21), with Adam.

    Vectors are centred and scaled to a mean squared norm of 1 before, and codebooks scaled back after, so `lr` and
    `gamma` do not depend on the data's size.

    Parameters
    ----------
    x : array, shape (n, d), float32
        Training vectors.
    codebooks : array, shape (M, K, d), float32
        Where to start, such as residual k-means finds; K a power of two up to 4096.
    epochs : int
        Passes through the vectors.
    lr : float
        Adam's learning rate; it falls to zero as a cosine.
    batch_size : int
        Vectors a step.
    gamma, similarity, subtract
        Of the soft assignment; see `ProgressiveQuantization`. L2 distances are in units of what each level is given.
    soft, mu, nu : float
        Factors of the parts of E; the soft assignment is not computed where both `soft` and `nu` are 0.
    weights : array, shape (M,), optional
        w_l of Eq. 10 and 19; M, M - 1, ..., 1 by default, as `faiss_dpq.train_codebooks` has them.
    device : str
        torch's name of it; "auto" is a GPU if there is one, else the CPU.
    seed : int
        Of the order of the vectors.

    Returns
    -------
    codebooks : array, shape (M, K, d), float32

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or `weights` are not M finite numbers >= 0.
    """
    chosen = device_name(device)
    vectors = np.ascontiguousarray(x, np.float32)
    start = np.asarray(codebooks, np.float32)
    w = _checked(vectors, start, weights)
    centre = vectors.mean(0, dtype=np.float64).astype(np.float32)
    vectors = vectors - centre
    scale = float(np.sqrt(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64) / len(vectors))) or 1.0
    quantizer = ProgressiveQuantization(
        start.shape[2],
        len(start),
        start.shape[1].bit_length() - 1,
        gamma=gamma,
        similarity=similarity,
        subtract=subtract,
    ).to(chosen)
    first = np.eye(len(start), 1, dtype=np.float32)[:, :, None]  # only the first codebook holds the centre
    quantizer.set_codebooks(torch.from_numpy((start - first * centre) / np.float32(scale)))
    data = torch.from_numpy(vectors / np.float32(scale)).to(chosen)
    quantizer.calibrate(data[: 1 << 16])
    factors = torch.from_numpy(w).to(chosen)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator).to(chosen)
        for first_row in range(0, len(data), batch_size):
            done = (epoch + first_row / len(data)) / epochs
            optimizer.param_groups[0]["lr"] = lr * one_cycle(done)
            batch = data[order[first_row : first_row + batch_size]]
            optimizer.zero_grad()
            _distortion(quantizer, batch, factors, soft, mu, nu).backward()
            optimizer.step()
    return quantizer.codebooks.cpu().numpy() * np.float32(scale) + first * centre


def _after_least_squares(task: registry.Task) -> Floats:
    """The training method "sgd", which continues from the codebooks of "least-squares"."""
    start = registry.method("least-squares")(task)
    return train_codebooks_sgd(task.x, start, weights=task.weights, seed=task.seed)


registry.register("sgd", _after_least_squares)


def _distortion(
    quantizer: ProgressiveQuantization, x: Tensor, weights: Tensor, soft: float, mu: float, nu: float
) -> Tensor:
    if not soft and not nu:
        levels = zip(quantizer.parameters(), quantizer.encode(x).T, strict=True)
        return mu * losses.prefix_loss(x, torch.stack([codewords[codes] for codewords, codes in levels]), weights)
    quantized = quantizer(x)
    return (
        soft * losses.soft_loss(x, quantized, weights)
        + mu * losses.hard_loss(x, quantized, weights)
        + nu * losses.match_loss(quantized, weights)
    )


def _checked(x: Floats, codebooks: Floats, weights: npt.ArrayLike | None) -> Floats:
    """The prefix weights, if all arguments are as they should be."""
    name = "train_codebooks_sgd"
    if codebooks.ndim != 3 or 0 in codebooks.shape or codebooks.shape[1] & (codebooks.shape[1] - 1):
        raise ValueError(f"{name}: codebooks has shape {codebooks.shape}, expected (M, K, d), K a power of two")
    M, _, d = codebooks.shape
    if x.ndim != 2 or x.shape[1] != d or not len(x):
        raise ValueError(f"{name}: x has shape {x.shape}, expected (n, d={d}), n at least 1")
    if not np.isfinite(x).all() or not np.isfinite(codebooks).all():
        raise ValueError(f"{name}: x or codebooks has NaN or infinite values")
    w = np.arange(M, 0, -1, dtype=np.float32) if weights is None else np.asarray(weights, np.float32)
    if w.shape != (M,) or not np.isfinite(w).all() or w.min() < 0:
        raise ValueError(f"{name}: weights is {weights!r}, expected M={M} finite numbers >= 0")
    return w
