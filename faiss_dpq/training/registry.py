"""Training methods by name.

A training method is a function that gets a `Task` and returns codebooks, shape (M, K, d). Its module registers it. A
method may also live in a package above this one, which is not imported before the method is asked for: `announce` says
which module will register it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..codec import Floats, Layout
from .progress import Steps
from .stats import TrainStats


@dataclass(frozen=True)
class Task:
    """What a training method is given.

    Attributes
    ----------
    x : array, shape (n, d), float32
        Training vectors: finite, at least K of them, at most as many as are to be used.
    M, K : int
        Levels, and codewords a level.
    layout : Layout
        The subspaces of the levels, for methods that know of them.
    weights : array, shape (M,)
        w_l, the weight of the error at prefix length l.
    iterations, beam_size : int
        How much work to do: turns of the alternation, and the beam of the encoder in training.
    kmeans_iterations : int
        Of the k-means that a training starts from.
    seed : int
    rng : numpy.random.Generator
        Made from the seed.
    stats : TrainStats
        `history` and `iterations` are the method's to fill in.
    progress : Steps
        To be told every level of k-means, and every turn.
    lengths_count : bool
        Whether codes of fewer levels have to be good, too, at the cost of those of all levels.
    """

    x: Floats
    M: int
    K: int
    layout: Layout
    weights: npt.NDArray[np.float64]
    iterations: int
    beam_size: int
    kmeans_iterations: int
    seed: int
    rng: np.random.Generator
    stats: TrainStats
    progress: Steps
    lengths_count: bool


Method = Callable[[Task], Floats]

_methods: dict[str, Method] = {}
_announced: dict[str, str] = {}


def register(name: str, method: Method) -> None:
    """Make a training method known under a name."""
    _methods[name] = method


def announce(name: str, module: str) -> None:
    """Say that importing a module registers a method of this name."""
    _announced[name] = module


def method(name: str) -> Method:
    """The training method of a name; imports its module if it has only been announced.

    Raises
    ------
    ValueError
        If there is no such method.
    ImportError
        If its module needs a package that is not installed.
    """
    if name not in _methods:
        if name not in _announced:
            known = " or ".join(map(repr, {**_methods, **_announced}))
            raise ValueError(f"train: trainer is {name!r}, expected {known}")
        importlib.import_module(_announced[name])
    return _methods[name]
