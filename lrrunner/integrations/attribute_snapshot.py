"""Save and restore what objects of other libraries accumulate while a model trains: meters, logs, counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

MAX_DEPTH = 8
"""Containers nested more deeply are restored by reference."""

MAX_ITEMS, MAX_ELEMENTS = 10_000, 1_000_000
"""Larger containers and tensors hold data; they are restored by reference."""


class _Saved(NamedTuple):
    """A value and its content at the time; ``content`` is None for a value that is restored by reference."""

    value: Any
    content: Any = None


class AttributeSnapshot:
    """A copy of the attributes of some objects, and of the content of containers and tensors in them.

    Lists, dictionaries, sets, deques and tensors are restored in place, so that other references to them see the old
    content, too. Other objects, and containers and tensors too large for meters, are restored by reference: changes
    inside of them remain.

    Args:
        objects: Objects with a ``__dict__``; duplicates are saved once.
        ignored: Names of attributes that are neither saved nor restored.
    """

    def __init__(self, objects: Iterable[Any], *, ignored: Iterable[str] = ()) -> None:
        self._ignored = frozenset(ignored)
        self._objects = list({id(item): item for item in objects}.values())
        self._saved = [
            {name: _save(value) for name, value in vars(item).items() if name not in self._ignored}
            for item in self._objects
        ]

    def restore(self) -> None:
        """Restore every attribute; remove attributes that are new."""
        for item, saved in zip(self._objects, self._saved, strict=True):
            attributes = vars(item)
            for name in [name for name in attributes if name not in saved and name not in self._ignored]:
                del attributes[name]
            attributes.update({name: _restored(value) for name, value in saved.items()})


@contextmanager
def attributes_preserved(objects: Iterable[Any], *, ignored: Iterable[str] = ()) -> Iterator[None]:
    """Restore the attributes of ``objects`` at the end, also after an exception; see :class:`AttributeSnapshot`."""
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
    """Restore in place, only if it changed: a write raises the version counter, which autograd checks."""
    with torch.no_grad():
        if tensor.shape != content.shape:
            tensor.resize_(content.shape)
        if not _equal(tensor, content):
            tensor.copy_(content)


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(((first == second) | ((first != first) & (second != second))).all())
