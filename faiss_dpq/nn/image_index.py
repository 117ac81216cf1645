"""Search by images: a trained model and its index in one object."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import DeepQuantizer


class ImageIndex:
    """A model and an index of its vectors: images in, codes stored, nearest images out.

    Parameters
    ----------
    model : DeepQuantizer
        Put into evaluation mode.
    index : faiss.Index, optional
        Of the model's vectors, such as `faiss_dpq.read_index` reads; `model.to_index()` by default.
    batch_size : int
        Images that go through the model at a time.

    Raises
    ------
    ValueError
        If the index has another dimension than the model's vectors.
    """

    def __init__(self, model: DeepQuantizer, index: faiss.Index | None = None, batch_size: int = 256) -> None:
        self.model = model.eval()
        self.index = model.to_index() if index is None else index
        self.batch_size = batch_size
        if self.index.d != model.d:
            raise ValueError(f"ImageIndex: index has d={self.index.d}, the model's vectors have {model.d} dimensions")

    @property
    def ntotal(self) -> int:
        """Number of images in the index."""
        return self.index.ntotal

    @torch.no_grad()
    def embed(self, images: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.float32]:
        """Vectors of images: (n, C, H, W), uint8 or float in 0..1 (videos: (n, T, C, H, W)) -> (n, d), float32."""
        batches = torch.as_tensor(images).split(self.batch_size)
        return np.concatenate([self.model.embed(batch).cpu().numpy() for batch in batches])

    def add(self, images: npt.NDArray[Any] | Tensor) -> None:
        """Encode images and store their codes under the ids ntotal, ntotal + 1, ..."""
        for batch in torch.as_tensor(images).split(self.batch_size):
            self.index.add(self.embed(batch))

    def search(
        self, images: npt.NDArray[Any] | Tensor, k: int, *, params: faiss.SearchParameters | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k nearest stored images of each image: distances and ids, as faiss.Index.search gives them."""
        return self.index.search(self.embed(images), k, params=params)
