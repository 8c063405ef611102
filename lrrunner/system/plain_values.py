"""Dataclasses as plain values (mappings, lists, strings, numbers), for JSON and checkpoints, and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def field_types(kind: type) -> dict[str, Any]:
    """Names and types of a dataclass's fields, in their order."""
    return _field_types(kind)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def to_plain(value: Any) -> Any:
    """The plain values of a dataclass; enumerations by their values.

    >>> to_plain({"ranks": (0, 1)})
    {'ranks': [0, 1]}
    """
    if is_dataclass(value):
        return {name: to_plain(getattr(value, name)) for name in field_types(type(value))}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass that :func:`to_plain` has made these values of.

    A key that is no field is ignored, and a field without a key takes its default.

    Raises:
        TypeError: a field without a default has no key.
        ValueError: a value is none of an enumeration.
    """
    types = field_types(kind)
    return kind(**{name: _converted(types[name], values[name]) for name in types if name in values})


def _converted(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        kind = next(option for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) is tuple:
        options = get_args(kind)
        options = options[:1] * len(value) if options[1:] == (...,) else options
        return tuple(_converted(option, item) for option, item in zip(options, value, strict=True))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if isinstance(kind, type) and is_dataclass(kind):
        return from_plain(kind, value)
    return value


def flattened(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as dotted keys.

    >>> flattened({"sweep": {"num_steps": 100}, "tags": []})
    {'sweep.num_steps': '100', 'tags': '[]'}
    """
    flat: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
