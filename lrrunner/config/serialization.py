"""A configuration as the plain values of YAML and JSON, and back. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from omegaconf import OmegaConf

from lrrunner.config.schema import Config


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as config.yaml and the job mailbox hold it: mappings, lists and scalars, in schema order."""
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(node: Any) -> Any:
    if dataclasses.is_dataclass(node):
        return {field.name: _plain(getattr(node, field.name)) for field in dataclasses.fields(node)}
    if isinstance(node, Enum):
        return node.name
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node


def config_from(values: Mapping[str, Any]) -> Config:
    """The configuration that :func:`to_plain` has written; a missing key takes its default.

    Raises:
        OmegaConfBaseException: a key is unknown, or a value has the wrong type.
    """
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), _escaped(dict(values))))
    assert isinstance(config, Config)
    return config


def _escaped(node: Any) -> Any:
    """The same values with ``${`` escaped: what looks like an interpolation has been resolved, and is text."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", node)
    return node


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
