"""What the files of FAISS have no place for, and every copy of an index takes along.

A *setting* changes the codes of vectors that are added, or what a search returns. Each class of this package names its
own in `_settings`, as one writes them in Python ("rq.cp.seed"). The trailer of a file holds them as JSON. What else the
Python objects know is in `_python_state`, for copies within Python.
"""

import operator
from typing import Any

import faiss

from .registry import downcast_index

State = list[Any]  # [{name: value}, [the State of every index within]]


def settings_of(index: faiss.Index) -> State:
    """The settings of an index and of all indexes within it."""
    return _state(downcast_index(index), ("_settings",))


def python_state(index: faiss.Index) -> State:
    """The settings, and what else only the Python objects know."""
    return _state(downcast_index(index), ("_settings", "_python_state"))


def _state(index: faiss.Index, kinds: tuple[str, ...]) -> State:
    names = [name for kind in kinds for name in getattr(index, kind, ())]
    own = {name: operator.attrgetter(name)(index) for name in names}
    return [own, [_state(inner, kinds) for inner in _inner_indexes(index)]]


def set_state(index: faiss.Index, state: State) -> None:
    """Give a copy of an index what `python_state` or `settings_of` found in the original."""
    own, inner_states = state
    for name, value in own.items():
        _set(index, name, value)
    for inner, inner_state in zip(_inner_indexes(index), inner_states, strict=False):
        set_state(inner, inner_state)


def set_settings(index: faiss.Index, state: Any) -> None:
    """Set the settings that a file names, whatever they are.

    Raises
    ------
    RuntimeError
        If they are not those of such an index, or a value is not one that can be set.
    """
    try:
        own, inner_states = state
        known = getattr(index, "_settings", ())
        for name, value in own.items():
            if name in known:  # a later release may have more
                _set(index, name, value)
        inner_indexes = _inner_indexes(index)
        if len(inner_states) != len(inner_indexes):
            raise ValueError(f"settings of {len(inner_states)} indexes within, there are {len(inner_indexes)}")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise RuntimeError(f"settings of a {type(index).__name__}: {error}") from None
    for inner, inner_state in zip(inner_indexes, inner_states, strict=True):
        set_settings(inner, inner_state)


def _set(index: faiss.Index, name: str, value: Any) -> None:
    *path, last = name.split(".")
    setattr(operator.attrgetter(".".join(path))(index) if path else index, last, value)


def _inner_indexes(index: faiss.Index) -> list[faiss.Index]:
    return index._inner_indexes() if hasattr(index, "_inner_indexes") else []
