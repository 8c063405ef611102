"""What objects of other libraries accumulate while a model trains (meters, logs, counters), saved and restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

MAX_DEPTH = 8
"""Containers nested deeper are restored by reference."""

MAX_ITEMS, MAX_ELEMENTS = 10_000, 1_000_000
"""Containers and tensors above this size are data."""


class _Saved(NamedTuple):
    """A value, and what it held when it was saved; ``content`` is None for values that cannot change in place."""

    value: Any
    content: Any = None


class AttributeSnapshot:
    """The attributes of some objects, with the content of the containers and tensors in them.

    Lists, dictionaries, sets, deques and tensors are restored in place, so that whoever else refers to them sees the
    old content, too. An attribute that holds another object is restored by reference: what that object does to itself
    is not undone, unless it is one of the objects. Containers and tensors too large for meters are taken for data, and
    also restored by reference.

    Args:
        objects: Each with a ``__dict__``; duplicates count once.
        ignored: Names of attributes that are left alone.
    """

    def __init__(self, objects: Iterable[Any], *, ignored: Iterable[str] = ()) -> None:
        self._ignored = frozenset(ignored)
        self._objects = list({id(item): item for item in objects}.values())
        self._saved = [
            {name: _save(value) for name, value in vars(item).items() if name not in self._ignored}
            for item in self._objects
        ]

    def restore(self) -> None:
        """Set every attribute to what it was; attributes that are new since then are removed."""
        for item, saved in zip(self._objects, self._saved, strict=True):
            attributes = vars(item)
            for name in [name for name in attributes if name not in saved and name not in self._ignored]:
                del attributes[name]
            attributes.update({name: _restored(value) for name, value in saved.items()})


@contextmanager
def attributes_preserved(objects: Iterable[Any], *, ignored: Iterable[str] = ()) -> Iterator[None]:
    """The attributes of ``objects`` are afterwards as before, whatever happens inside; see AttributeSnapshot."""
    snapshot = AttributeSnapshot(objects, ignored=ignored)
    try:
        yield
    finally:
        snapshot.restore()


def _save(value: Any, depth: int = 0) -> _Saved:
    if depth < MAX_DEPTH:
        if isinstance(value, torch.Tensor):
            return _Saved(value, value.detach().clone()) if value.numel() <= MAX_ELEMENTS else _Saved(value)
        if isinstance(value, dict | list | deque | set) and len(value) > MAX_ITEMS:
            return _Saved(value)
        if isinstance(value, dict):
            return _Saved(value, [(key, _save(item, depth + 1)) for key, item in value.items()])
        if isinstance(value, list | deque):
            return _Saved(value, [_save(item, depth + 1) for item in value])
        if isinstance(value, set):
            return _Saved(value, set(value))
    return _Saved(value)


def _restored(saved: _Saved) -> Any:
    value, content = saved
    if content is None:
        return value
    if isinstance(value, torch.Tensor):
        _restore_tensor(value, content)
    elif isinstance(value, dict):
        value.clear()
        value.update({key: _restored(item) for key, item in content})
    elif isinstance(value, set):
        value.clear()
        value.update(content)
    else:
        value.clear()
        value.extend(_restored(item) for item in content)
    return value


def _restore_tensor(tensor: torch.Tensor, content: torch.Tensor) -> None:
    """In place, and only where it has changed: a parameter's version counter is part of autograd's state."""
    with torch.no_grad():
        if tensor.shape != content.shape:
            tensor.resize_(content.shape)
        if not _equal(tensor, content):
            tensor.copy_(content)


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(((first == second) | ((first != first) & (second != second))).all())
