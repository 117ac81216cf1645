"""Readers of the files that labelled images are published in; errors name the file and what was expected of it."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..lab.datasets import FASHION_MNIST, read_idx

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class LabelledImages:
    """Images with one label each, in memory or as files.

    Attributes
    ----------
    images : array, shape (n, C, H, W), uint8, or list of Path
    labels : array, shape (n,), int64
        Numbers of classes.
    class_names : tuple of str
    """

    images: Pixels | list[Path]
    labels: Labels
    class_names: tuple[str, ...]


def read_fashion_mnist(folder: str | Path = FASHION_MNIST) -> LabelledImages:
    """All 70,000 images of Fashion-MNIST, 28 x 28 in grey: the 60,000 for training, then the 10,000 for testing.

    Parameters
    ----------
    folder : path
        Where the four idx files are, each plain or with .gz; by default where Debian's dataset-fashion-mnist puts them.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is not such a file.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(Path(folder), f"{part}-images-idx3-ubyte", (28, 28)))
        labels.append(read_idx(Path(folder), f"{part}-labels-idx1-ubyte", ()))
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(
                f"{folder}: there are {len(images[-1])} {part} images and {len(labels[-1])} labels, expected as many"
            )
    numbers = np.concatenate(labels).astype(np.int64)
    if numbers.max() >= len(FASHION_MNIST_CLASSES):
        raise ValueError(f"{folder}: there is a label {numbers.max()}, expected 0 to 9")
    return LabelledImages(np.concatenate(images)[:, None], numbers, FASHION_MNIST_CLASSES)


def read_cifar10(folder: str | Path) -> LabelledImages:
    """All 60,000 images of CIFAR-10, 32 x 32 in colour: the 50,000 for training, then the 10,000 for testing.

    Parameters
    ----------
    folder : path
        Where the unpacked files of the python or of the binary version are, or the folder above.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is not such a file.
    """
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for place in (Path(folder), Path(folder) / "cifar-10-batches-py", Path(folder) / "cifar-10-batches-bin"):
        for suffix, read in (("", _read_cifar10_pickle), (".bin", _read_cifar10_binary)):
            paths = [place / f"{name}{suffix}" for name in names]
            if paths[0].exists():
                return _join_cifar10([read(_existing(path)) for path in paths])
    raise FileNotFoundError(
        f"{folder}: expected CIFAR-10's files there, data_batch_1 to data_batch_5 and test_batch of the python version "
        "or the same with .bin of the binary version"
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: expected the six batch files of CIFAR-10 in one folder")
    return path


def _join_cifar10(batches: list[tuple[Pixels, Labels]]) -> LabelledImages:
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return LabelledImages(pixels.reshape(-1, 3, 32, 32), labels, CIFAR10_CLASSES)


def _read_cifar10_pickle(path: Path) -> tuple[Pixels, Labels]:
    try:
        with path.open("rb") as stream:
            batch = _PlainUnpickler(stream).load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10's python version: {error!r}") from error
    return _checked_cifar10(path, pixels, labels)


def _read_cifar10_binary(path: Path) -> tuple[Pixels, Labels]:
    record = 1 + 3 * 32 * 32  # the label, then the pixels
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) % record:
        raise ValueError(f"{path} has {len(content)} bytes, expected a multiple of {record}: CIFAR-10's binary version")
    rows = content.reshape(-1, record)
    return _checked_cifar10(path, rows[:, 1:], rows[:, 0].astype(np.int64))


def _checked_cifar10(path: Path, pixels: npt.NDArray[Any], labels: Labels) -> tuple[Pixels, Labels]:
    if pixels.dtype != np.uint8 or not len(pixels) or pixels.shape != (len(labels), 3072):
        raise ValueError(
            f"{path} has images of shape {pixels.shape} and type {pixels.dtype} and {len(labels)} labels, "
            "expected (n, 3072), uint8, and n labels"
        )
    if not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"{path} has labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    return pixels, labels


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists and numpy arrays and refuses all else: a file from elsewhere cannot run code."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),  # bytes in the old protocol that the published files have
        }
    )

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_image_folder(folder: str | Path) -> LabelledImages:
    """The image files of a tree in which every folder at the top is a class (torchvision's ImageFolder).

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, has no folders in it, or one of them has no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: expected a folder with one folder of images a class")
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        raise FileNotFoundError(f"{root} has no folders in it: expected one folder of images a class")
    files: list[Path] = []
    labels: list[int] = []
    for number, place in enumerate(classes):
        members = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not members:
            raise FileNotFoundError(f"{place} has no images in it, expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        files += members
        labels += [number] * len(members)
    return LabelledImages(files, np.array(labels, np.int64), tuple(place.name for place in classes))


def read_list(path: Path, images: Path) -> tuple[list[Path], npt.NDArray[np.float32]]:
    """Read a list of image files with their labels, the form in which NUS-WIDE-21 and others are split.

    Parameters
    ----------
    path : Path
        Text; a line is an image's path without spaces, and its labels: 0 or 1 for every class, or one class number.
    images : Path
        What the paths in the list start from.

    Returns
    -------
    files : list of Path
    labels : array, shape (n, columns), float32

    Raises
    ------
    FileNotFoundError
        If the list or an image is missing.
    ValueError
        If a line is not of this form, or there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: expected the lists train.txt, test.txt and database.txt there")
    files: list[Path] = []
    rows: list[list[int]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, *labels = line.split()
        if not labels or not all(label.isdecimal() for label in labels) or (rows and len(labels) != len(rows[0])):
            raise ValueError(
                f"{path}, line {number}: expected an image's path and its labels, 0 or 1 for every class or the "
                f"number of its class, as many as in the lines before; it is {line[:80]!r}"
            )
        files.append(images / name)
        rows.append([int(label) for label in labels])
        # All of them now: an image found missing after hours of training would cost these hours.
        if not files[-1].exists():
            raise FileNotFoundError(f"{files[-1]} is missing: {path}, line {number}, expects an image there")
    if not rows:
        raise ValueError(f"{path} is empty: expected a line for every image")
    return files, np.array(rows, np.float32)
