"""Labelled images for training and evaluating deep quantizers, read from files on this machine; nothing is downloaded.

Readers give images and labels; `retrieval_protocol` splits them by class into training images, queries and database as
hashing papers do, and data sets that come with a split (list files, ImageNet's trees) are read as `RetrievalData` at
once. `load` does either from a `DataConfig`, as run files hold it.

Every data set gives pairs of an image, a uint8 tensor of shape (C, H, W), or (T, C, H, W) for a video of T frames, and
its label: an int64 scalar, or a float32 multi-hot vector where images have several labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, TensorDataset

from .image_sets import AnimatedImages, ImageFiles, Item
from .readers import (
    FASHION_MNIST,
    LabelledImages,
    Labels,
    Pixels,
    read_cifar10,
    read_fashion_mnist,
    read_image_folder,
    read_list,
)

LIST_NAMES = {"train": "train.txt", "query": "test.txt", "database": "database.txt"}


@dataclass(frozen=True)
class RetrievalData:
    """A retrieval experiment: learn from `train`, then look for `query` in `database`.

    Attributes
    ----------
    train, query, database : Dataset
        Of pairs (image, label); see the module's description.
    class_names : tuple of str
    multilabel : bool
        Whether labels are multi-hot vectors.
    """

    train: Dataset[Item]
    query: Dataset[Item]
    database: Dataset[Item]
    class_names: tuple[str, ...]
    multilabel: bool = False

    def animated(self, frames: int, seed: int = 0) -> "RetrievalData":
        """The same experiment with videos made of its images, see `AnimatedImages`."""
        train, query, database = (
            AnimatedImages(images, frames, seed) for images in (self.train, self.query, self.database)
        )
        return replace(self, train=train, query=query, database=database)


@dataclass(frozen=True)
class DataConfig:
    """Which data, where from, and how they are split; the [data] table of a run file.

    Parameters
    ----------
    name : str
        "fashion-mnist", "cifar10", "lists" (NUS-WIDE-21 and others with train.txt, test.txt and database.txt),
        "image-folder" (a tree with a folder a class) or "imagenet" (two such trees, train and val).
    path : str
        The folder with the files; empty for Fashion-MNIST where Debian's package puts it.
    images : str
        Of "lists": the folder that the paths in the list files start from; `path` if empty.
    n_train, n_query : int
        Training images and queries a class. "lists" are split already, and "imagenet" takes all of val as queries.
    n_classes : int
        Of "imagenet": classes drawn at random, as the paper's 100; 0 for all.
    seed : int
        Of the split.
    size : int
        Side of the square that image files are resized and cropped to.
    class_names : str
        A text file of class names, which label embeddings are found by: one name a line, or, where classes are known
        by the names of their folders, such a name and then the class's (ImageNet's LOC_synset_mapping.txt).
    frames : int
        If not 0, every image becomes a video of so many frames by `AnimatedImages`.
    """

    name: str = "fashion-mnist"
    path: str = ""
    images: str = ""
    n_train: int = 500
    n_query: int = 100
    n_classes: int = 0
    seed: int = 0
    size: int = 224
    class_names: str = ""
    frames: int = 0


def load(config: DataConfig) -> RetrievalData:
    """The retrieval experiment that a configuration describes.

    Raises
    ------
    ValueError
        If the configuration names no known data set, or files or sizes are not what they should be.
    FileNotFoundError
        If files are missing.
    """
    if config.name not in _LOADERS:
        raise ValueError(f"data.name is {config.name!r}, expected one of {', '.join(_LOADERS)}")
    if not config.path and config.name != "fashion-mnist":
        raise ValueError(f"data.path is empty, expected the folder of {config.name}'s files")
    data = _LOADERS[config.name](config)
    if config.class_names:
        data = replace(data, class_names=_read_class_names(Path(config.class_names), data.class_names))
    return data.animated(config.frames, config.seed) if config.frames else data


def _read_class_names(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the names of {len(classes)} classes, one a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_folder = dict(line.split(maxsplit=1) for line in lines if " " in line)
    if set(classes) <= by_folder.keys():
        return tuple(by_folder[name] for name in classes)
    if len(lines) != len(classes):
        raise ValueError(f"{path} has {len(lines)} names, expected one for each of the {len(classes)} classes")
    return tuple(lines)


def _load_split(read: Callable[[DataConfig], LabelledImages]) -> Callable[[DataConfig], RetrievalData]:
    def load_split(config: DataConfig) -> RetrievalData:
        read_images = read(config)
        return retrieval_protocol(
            read_images.images,
            read_images.labels,
            config.n_train,
            config.n_query,
            config.seed,
            class_names=read_images.class_names,
            size=config.size,
        )

    return load_split


_LOADERS: dict[str, Callable[[DataConfig], RetrievalData]] = {
    "fashion-mnist": _load_split(lambda config: read_fashion_mnist(config.path or FASHION_MNIST)),
    "cifar10": _load_split(lambda config: read_cifar10(config.path)),
    "image-folder": _load_split(lambda config: read_image_folder(config.path)),
    "lists": lambda config: load_lists(config.path, config.images or config.path, config.seed, size=config.size),
    "imagenet": lambda config: load_imagenet(
        config.path, config.n_train, config.n_classes, config.seed, size=config.size
    ),
}


# ---- protocol ----------------------------------------------------------------------------------------------------


def retrieval_protocol(
    images: Pixels | torch.Tensor | Sequence[Path],
    labels: npt.ArrayLike,
    n_train: int = 500,
    n_query: int = 100,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
    size: int = 224,
) -> RetrievalData:
    """Split images as the CIFAR-10 protocol of hashing papers does: so many a class to train and to query with.

    All other images are the database. Every part is in random order, so that ties of short codes, which go to the
    lower id, favour no class. The queries depend on `seed` and `n_query` alone.

    Parameters
    ----------
    images : array or tensor, shape (n, C, H, W) or (n, H, W), uint8, or sequence of image files
    labels : array, shape (n,), integers
        Class numbers from 0 on.
    n_train, n_query : int
        Images a class.
    seed : int
    class_names : sequence of str, optional
        The classes' numbers by default.
    size : int
        Of image files: the side of the square that they are resized and cropped to.

    Raises
    ------
    ValueError
        If labels are not one class number an image, or a class has too few images.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and (
        str(images.dtype)[-5:] != "uint8" or images.ndim not in (3, 4)
    ):
        raise ValueError(
            f"retrieval_protocol: images has shape {tuple(images.shape)} and type {images.dtype}, "
            "expected (n, C, H, W) or (n, H, W), uint8"
        )
    numbers = _checked_class_numbers(labels, len(images))
    names = tuple(class_names or map(str, range(numbers.max() + 1)))
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Labels]] = {"query": [], "train": [], "database": []}
    for number in np.unique(numbers):
        members = rng.permutation(np.flatnonzero(numbers == number))
        if len(members) <= n_query + n_train:
            raise ValueError(
                f"retrieval_protocol: class {names[number]} has {len(members)} images, expected more than "
                f"n_query + n_train = {n_query} + {n_train}"
            )
        for part, ids in zip(parts.values(), np.split(members, [n_query, n_query + n_train]), strict=True):
            part.append(ids)
    rows = {part: rng.permutation(np.concatenate(ids)) for part, ids in parts.items()}
    train, query, database = (_dataset(images, numbers, rows[part], size) for part in ("train", "query", "database"))
    return RetrievalData(train, query, database, names)


def _checked_class_numbers(labels: npt.ArrayLike, n: int) -> Labels:
    numbers = np.asarray(labels)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu" or not n or numbers.min() < 0:
        raise ValueError(
            f"retrieval_protocol: labels has shape {numbers.shape} and type {numbers.dtype}, "
            f"expected a class number from 0 on for each of the {n} images"
        )
    return numbers.astype(np.int64)


def _dataset(
    images: Pixels | torch.Tensor | Sequence[Path], labels: npt.NDArray[Any], rows: Labels, size: int
) -> Dataset[Item]:
    if isinstance(images, (np.ndarray, torch.Tensor)):
        pixels = torch.as_tensor(images[rows])
        tensors = pixels[:, None] if pixels.ndim == 3 else pixels, torch.as_tensor(labels[rows])
        return cast(Dataset[Item], TensorDataset(*tensors))
    return ImageFiles([images[row] for row in rows], labels[rows], size)


# ---- data that come with a split ----------------------------------------------------------------------------------


def load_imagenet(
    folder: str | Path, n_train: int = 100, n_classes: int = 100, seed: int = 0, *, size: int = 224
) -> RetrievalData:
    """The ImageNet protocol of hashing papers, from two ImageFolder trees, `folder`/train and `folder`/val.

    The queries are all validation images, the database all training images, of some classes drawn at random (or all);
    it is trained on images drawn from the database.

    Parameters
    ----------
    folder : path
    n_train : int
        Training images a class.
    n_classes : int
        Classes that are drawn; 0 for all.
    seed : int
        Of both draws.
    size : int
        The side of the square that images are resized and cropped to.

    Raises
    ------
    FileNotFoundError
        If one of the trees is missing or empty.
    ValueError
        If the trees have different classes, or there are fewer classes or images than are to be drawn.
    """
    stored, asked = (read_image_folder(Path(folder) / part) for part in ("train", "val"))
    if stored.class_names != asked.class_names:
        differing = sorted(set(stored.class_names) ^ set(asked.class_names))[:5]
        raise ValueError(f"{folder}: train and val have different classes, among them {', '.join(differing)}")
    if n_classes > len(stored.class_names):
        raise ValueError(f"load_imagenet: n_classes is {n_classes}, {folder} has {len(stored.class_names)} classes")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(stored.class_names), n_classes or len(stored.class_names), replace=False))
    new_numbers = np.full(len(stored.class_names), -1)
    new_numbers[chosen] = np.arange(len(chosen))

    def part(source: LabelledImages, rows: Labels) -> Dataset[Item]:
        return _dataset(source.images, new_numbers[source.labels], rows, size)

    database, query = (rng.permutation(np.flatnonzero(new_numbers[of.labels] >= 0)) for of in (stored, asked))
    train = []
    for number in chosen:
        members = database[stored.labels[database] == number]
        if len(members) < n_train:
            raise ValueError(
                f"load_imagenet: class {stored.class_names[number]} has {len(members)} training images, "
                f"n_train is {n_train}"
            )
        train.append(members[:n_train])
    return RetrievalData(
        train=part(stored, rng.permutation(np.concatenate(train))),
        query=part(asked, query),
        database=part(stored, database),
        class_names=tuple(stored.class_names[number] for number in chosen),
    )


def load_lists(folder: str | Path, images: str | Path, seed: int = 0, *, size: int = 224) -> RetrievalData:
    """A split given by list files train.txt, test.txt (the queries) and database.txt, as published for NUS-WIDE-21.

    A line is the path of an image, without spaces, and its labels: 0 or 1 for every class, or the number of its only
    class. Where every image of the three lists has exactly one label the data are not multi-label (ImageNet's lists).
    The database is put in random order, as by `retrieval_protocol`.

    Parameters
    ----------
    folder : path
        Where the lists are.
    images : path
        What the paths in the lists start from.
    seed : int
        Of the order of the database.
    size : int
        The side of the square that images are resized and cropped to.

    Raises
    ------
    FileNotFoundError
        If a list or an image is missing.
    ValueError
        If a line is not of this form or the lists have different numbers of classes.
    """
    lists = {part: read_list(Path(folder) / name, Path(images)) for part, name in LIST_NAMES.items()}
    labels: dict[str, npt.NDArray[Any]] = dict(_multi_hot({part: rows for part, (_, rows) in lists.items()}, folder))
    n_classes = labels["train"].shape[1]
    multilabel = any((rows.sum(axis=1) != 1).any() for rows in labels.values())
    if not multilabel:
        labels = {part: rows.argmax(axis=1) for part, rows in labels.items()}
    orders = {part: np.arange(len(files)) for part, (files, _) in lists.items()}
    orders["database"] = np.random.default_rng(seed).permutation(orders["database"])
    train, query, database = (_dataset(files, labels[part], orders[part], size) for part, (files, _) in lists.items())
    return RetrievalData(train, query, database, tuple(map(str, range(n_classes))), multilabel)


def _multi_hot(rows: dict[str, npt.NDArray[np.float32]], folder: str | Path) -> dict[str, npt.NDArray[np.float32]]:
    """Labels of all parts as multi-hot vectors."""
    widths = {part: labels.shape[1] for part, labels in rows.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{folder}: the lists have different numbers of label columns: {widths}")
    if set(widths.values()) == {1}:
        n_classes = 1 + int(max(labels.max() for labels in rows.values()))
        return {part: np.eye(n_classes, dtype=np.float32)[labels[:, 0].astype(int)] for part, labels in rows.items()}
    if any(labels.max() > 1 for labels in rows.values()):
        raise ValueError(f"{folder}: a list has several label columns and a label above 1, expected 0 or 1")
    return rows
