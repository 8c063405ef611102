"""The names of configuration keys, the part of a configuration that has them, and which key a wrong one meant."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError

OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "batch_size": "data.global_batch_size",
    "precision": "train.mixed_precision",
    "amp": "train.mixed_precision",
    "grad_clip": "train.max_grad_norm",
    "gradient_accumulation_steps": "train.accumulation_steps",
    "workers": "data.dataloader.num_workers",
    "gpus": "launch.num_processes",
    "nproc_per_node": "launch.num_processes",
    "output_dir": "run.dir",
}
"""What other tools call a key."""

MAX_MEANT = 3

RENAMED_KEYS = {"confirm.horizon": "train.num_steps", "confirm.schedule": "train.schedule"}
"""Key of an earlier version -> the key that replaced it."""

FREE_SECTIONS = (
    "model",
    "loss",
    "objective",
    "optimizer",
    "optimizer_groups",
    "data.train",
    "data.val",
    "data.sampler",
    "data.collate_fn",
    "tracking.tags",
)
"""Mappings with keys of the user's own."""


def unknown_key_message(key: str, known: list[str]) -> str:
    """The error for a key that does not exist, with the key that may have been meant or how to add one.

    >>> unknown_key_message("batch_size", ["data.global_batch_size"])
    'batch_size is not a configuration key; did you mean data.global_batch_size?'
    """
    if key in RENAMED_KEYS:
        return f"{key} is now {RENAMED_KEYS[key]}, which describes your training; set {RENAMED_KEYS[key]}"
    close = difflib.get_close_matches(key, [name for name in known if name != key.rpartition(".")[0]], n=1, cutoff=0.75)
    meant = [*_keys_called(key.rpartition(".")[2], known), *close][:MAX_MEANT]
    if meant:
        hint = f"did you mean {' or '.join(dict.fromkeys(meant))}?"
    elif key.startswith(tuple(f"{name}." for name in FREE_SECTIONS)):
        hint = f"add it as +{key}=..."
    else:
        hint = "see lrrunner --cfg job for all keys"
    return f"{key} is not a configuration key; {hint}"


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys = []
    for name, annotation in get_type_hints(schema).items():
        keys.append(f"{prefix}{name}")
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            keys += known_keys(annotation, f"{prefix}{name}.")
    return keys


def known_part(node: Mapping[str, Any], schema: type, *, prefix: str, errors: list[str]) -> dict[str, Any]:
    """The part of ``node`` that the schema knows; Hydra accepts any `+key=value` in a structured configuration."""
    annotations = get_type_hints(schema)
    known: dict[str, Any] = {}
    if removed := [f"{prefix}{key}" for key in annotations if key not in node]:
        raise ConfigError(
            f"{key} must not be removed, got ~{key}; leave that out, and set the keys that are to change"
            for key in removed
        )
    for key, value in node.items():
        annotation = annotations.get(key)
        if key not in annotations:
            errors.append(unknown_key_message(f"{prefix}{key}", known_keys()))
        elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
            known[key] = known_part(value, annotation, prefix=f"{prefix}{key}.", errors=errors)
        else:
            known[key] = value
    return known


def _keys_called(ending: str, known: list[str]) -> list[str]:
    """Keys that others call so, and keys that end so."""
    other = OTHER_NAMES.get(ending)
    return [name for name in known if name == other or name.endswith(f".{ending}")]
