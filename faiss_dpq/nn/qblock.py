"""Q-Blocks, the differentiable quantizers of Deep Progressive Quantization, and their progressive stack."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..training import Effort, train_codebooks

SIMILARITIES = ("cosine", "l2")
SUBTRACTIONS = ("soft", "hard")


class Quantized(NamedTuple):
    """What a quantizer makes of a batch of n vectors; a Q-Block's own output has no axis M.

    Attributes
    ----------
    soft : tensor, shape (M, n, d)
        q_l, the soft-assigned values (Eq. 14), level by level.
    hard : tensor, shape (M, n, d)
        q_l^H, the assigned codewords (Eq. 17).
    codes : tensor, shape (n, M), int64
        Their numbers.
    """

    soft: Tensor
    hard: Tensor
    codes: Tensor


def nearest(x: Tensor, codewords: Tensor) -> Tensor:
    """Number of the L2-nearest codeword of every vector (Eq. 26): (n, d), (K, d) -> (n,), int64."""
    return (codewords.square().sum(1) - 2 * x @ codewords.T).argmin(1)


class QBlock(nn.Module):
    """One level: a soft assignment of vectors to K codewords (Eq. 14), and the hard one that it approximates.

        q = sum_k softmax_k(-gamma d(x, c(k))) c(k)

    Parameters
    ----------
    d, K : int
        Dimension and number of the codewords.
    gamma : float
        Sharpness of the assignment; towards infinity q becomes the codeword that is most similar (Eq. 13).
    similarity : "cosine" or "l2"
        d(x, c) is the negative cosine of the two (Eq. 15), or ||x - c||^2 / scale (Eq. 13).
    assign : "l2" or "similarity"
        Which codeword the hard value is: the L2-nearest one (Eq. 17), as retrieval chooses it, or the one with the
        largest weight in the soft value, as the authors' program does in training.
    unit : bool
        Keep the codewords on the unit sphere, as PQN does.

    Attributes
    ----------
    codewords : tensor, shape (K, d)
        Of length 1 if `unit`.
    weight : parameter, shape (K, d)
        What is trained; the codewords themselves, unless `unit`.
    scale : tensor, scalar
        Unit of squared L2 distances, so that one gamma serves all levels whatever their residuals' size: 1 unless
        `calibrate` has set it.

    Raises
    ------
    ValueError
        If `similarity` or `assign` is not one of these, or gamma is not positive.
    """

    scale: Tensor

    def __init__(
        self,
        d: int,
        K: int,
        *,
        gamma: float = 20.0,
        similarity: str = "cosine",
        assign: str = "l2",
        unit: bool = False,
    ) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"QBlock: similarity is {similarity!r}, expected one of {SIMILARITIES}")
        if assign not in ("l2", "similarity"):
            raise ValueError(f"QBlock: assign is {assign!r}, expected 'l2' or 'similarity'")
        if not gamma > 0:
            raise ValueError(f"QBlock: gamma is {gamma}, expected a positive number")
        self.weight = nn.Parameter(torch.randn(K, d) / d**0.5)
        self.register_buffer("scale", torch.ones(()))
        self.gamma, self.similarity, self.assign, self.unit = float(gamma), similarity, assign, unit

    @property
    def codewords(self) -> Tensor:
        """The codewords, shape (K, d), through which gradients reach `weight`."""
        return functional.normalize(self.weight, dim=1) if self.unit else self.weight

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Take the variance of vectors, shape (n, d), as the unit of squared distances; 1 on the unit sphere."""
        if not self.unit:
            self.scale.copy_((x - x.mean(0)).square().sum(1).mean().clamp_min(1e-12))

    def similarities(self, x: Tensor) -> Tensor:
        """-d(x, c(k)) of every vector and codeword, up to a constant of the vector: (n, d) -> (n, K)."""
        codewords = self.codewords
        if self.similarity == "cosine":
            return functional.normalize(x, dim=1) @ functional.normalize(codewords, dim=1).T
        return (2 * x @ codewords.T - codewords.square().sum(1)) / self.scale

    def forward(self, x: Tensor) -> Quantized:
        """Soft and hard value of x, shape (n, d); the hard value lets gradients through to the codeword alone."""
        similarities = self.similarities(x)
        codewords = self.codewords
        soft = (self.gamma * similarities).softmax(1) @ codewords
        with torch.no_grad():
            codes = similarities.argmax(1) if self.assign == "similarity" else nearest(x, codewords)
        return Quantized(soft, codewords[codes], codes)


class ProgressiveQuantization(nn.Module):
    """L Q-Blocks one upon another: each quantizes what the ones before left of the vector (Eq. 8, 16).

    Parameters
    ----------
    d : int
        Dimension.
    M : int
        Number of levels, the paper's L.
    nbits : int
        Bits a level, 1 to 12: K = 2**nbits codewords.
    gamma, similarity, assign
        Of every `QBlock`.
    subtract : "soft" or "hard"
        What of level l is subtracted to make the input of level l + 1: the soft value (Eq. 16 as printed), or the
        codeword, as retrieval and the authors' program do.
    unit : bool
        Keep the first level's codewords on the unit sphere.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """

    def __init__(
        self,
        d: int,
        M: int = 4,
        nbits: int = 8,
        *,
        gamma: float = 20.0,
        similarity: str = "cosine",
        assign: str = "l2",
        subtract: str = "hard",
        unit: bool = False,
    ) -> None:
        super().__init__()
        if d < 1 or M < 1:
            raise ValueError(f"ProgressiveQuantization: d is {d} and M is {M}, expected at least 1")
        if not 1 <= nbits <= 12:
            raise ValueError(f"ProgressiveQuantization: nbits is {nbits}, expected 1 to 12")
        self.d, self.M, self.nbits, self.K = d, M, nbits, 1 << nbits
        self.subtract = subtract
        self.blocks = nn.ModuleList(
            QBlock(d, self.K, gamma=gamma, similarity=similarity, assign=assign, unit=unit and level == 0)
            for level in range(M)
        )

    @property
    def subtract(self) -> str:
        """What of a level is subtracted before the next one: "soft" or "hard"."""
        return self._subtract

    @subtract.setter
    def subtract(self, subtract: str) -> None:
        if subtract not in SUBTRACTIONS:
            raise ValueError(f"ProgressiveQuantization: subtract is {subtract!r}, expected one of {SUBTRACTIONS}")
        self._subtract = subtract

    @property
    def gamma(self) -> float:
        """Sharpness of all levels' soft assignments."""
        return self._levels()[0].gamma

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        if not gamma > 0:
            raise ValueError(f"ProgressiveQuantization: gamma is {gamma}, expected a positive number")
        for block in self._levels():
            block.gamma = float(gamma)

    def _levels(self) -> list[QBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def codebooks(self) -> Tensor:
        """All codewords: shape (M, K, d), detached."""
        return torch.stack([block.codewords.detach() for block in self._levels()])

    def set_codebooks(self, codebooks: Tensor | Iterable[Tensor]) -> None:
        """Overwrite the codewords by others of the same shape, (M, K, d).

        Raises
        ------
        ValueError
            If the shape is another.
        """
        codebooks = torch.as_tensor(codebooks)
        if codebooks.shape != (self.M, self.K, self.d):
            raise ValueError(
                f"ProgressiveQuantization: codebooks has shape {tuple(codebooks.shape)}, "
                f"expected {(self.M, self.K, self.d)}"
            )
        with torch.no_grad():
            for block, codewords in zip(self._levels(), codebooks, strict=True):
                block.weight.copy_(codewords)

    def forward(self, x: Tensor) -> Quantized:
        """Values and codes of every level of x, shape (n, d)."""
        levels = []
        residual = x
        for block in self._levels():
            level = block(residual)
            residual = residual - (level.soft if self.subtract == "soft" else level.hard)
            levels.append(level)
        soft, hard, codes = zip(*levels, strict=True)
        return Quantized(torch.stack(soft), torch.stack(hard), torch.stack(codes, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor, seed: int) -> None:
        """Set the codebooks by residual k-means of vectors, shape (n, d), n at least K: no codeword starts unused.

        Raises
        ------
        RuntimeError
            If there are fewer vectors than codewords, or one is not finite.
        """
        kmeans = Effort(iterations=0, beam_size=1, max_points_per_centroid=256)
        vectors = np.ascontiguousarray(x.cpu().numpy(), np.float32)
        weights = np.arange(self.M, 0, -1)  # given: codebooks that are good at every length
        codebooks, _ = train_codebooks(vectors, self.M, self.nbits, seed=seed, effort=kmeans, weights=weights)
        self.set_codebooks(torch.tensor(codebooks))
        self.calibrate(x)

    def calibrate(self, x: Tensor) -> None:
        """`QBlock.calibrate` of every level, by what vectors of shape (n, d) leave for it."""
        for block, inputs in zip(self._levels(), self.residuals(x), strict=True):
            block.calibrate(inputs)

    @torch.no_grad()
    def restart_dead(self, x: Tensor, counts: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Move codewords that no vector uses to where the quantizer is worst.

        Parameters
        ----------
        x : tensor, shape (n, d)
            Vectors to choose new codewords from: what reaches a level of them, with probability in proportion to its
            squared distance from the nearest codeword (as k-means++ does).
        counts : tensor, shape (M, K)
            How often each codeword was used.
        generator : torch.Generator
            Of the choice; on the CPU.

        Returns
        -------
        restarted : list of M tensors, int64
            Numbers of the restarted codewords of every level.
        """
        restarted = []
        for level, block in enumerate(self._levels()):
            dead = (counts[level] == 0).nonzero()[:, 0]
            inputs = self.residuals(x)[level]  # anew, since the levels before may have changed
            errors = (inputs - block.codewords[nearest(inputs, block.codewords)]).square().sum(1)
            dead = dead[: int((errors > 0).sum())]
            if len(dead):
                chosen = torch.multinomial(errors.double().cpu(), len(dead), generator=generator)
                block.weight[dead] = inputs[chosen.to(inputs.device)]
            restarted.append(dead)
        return restarted

    @torch.no_grad()
    def residuals(self, x: Tensor) -> list[Tensor]:
        """What retrieval's encoder meets at each level: M tensors of shape (n, d), the first of them x."""
        inputs = [x]
        for block in self._levels()[:-1]:
            inputs.append(inputs[-1] - block.codewords[nearest(inputs[-1], block.codewords)])
        return inputs

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Retrieval's codes: the L2-nearest codeword, level by level (Eq. 26). (n, d) -> (n, M), int64."""
        inputs = self.residuals(x)
        return torch.stack([nearest(r, b.codewords) for r, b in zip(inputs, self._levels(), strict=True)], 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the codewords of codes, or of their prefixes (Eq. 28): (n, levels) -> (n, d)."""
        blocks = self._levels()[: codes.shape[1]]
        return torch.stack([block.codewords[codes[:, l]] for l, block in enumerate(blocks)]).sum(0)
