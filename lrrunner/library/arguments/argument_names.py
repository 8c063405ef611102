"""Rewords messages about configuration keys for a Python call, which has arguments instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lrrunner.errors import ArgumentError, ConfigError

ARGUMENT_NAMES = {
    "train.num_steps": "training_steps",
    "confirm.budget_steps": "confirm",
    "data.train": "train_loader",
    "data.val": "val_loader",
    "sweep.": "",
    "suggestion.": "",
    "train.": "",
    "data.global_batch_size": "the batch size",
    "run.dir": "directory",
    "tracking.uri": "uri",
    "tracking.experiment": "experiment",
}
"""Configuration key, or the prefix of a group of keys -> name of the argument."""

_KEY = re.compile(r"(?<![\w./-])(?:" + "|".join(map(re.escape, ARGUMENT_NAMES)) + ")")
"""A key outside of file names."""


def in_argument_names(message: str) -> str:
    """The message with argument names and Python's constants.

    >>> in_argument_names("train.max_grad_norm must be above 0, got -1; null turns clipping off")
    'max_grad_norm must be above 0, got -1; None turns clipping off'
    >>> in_argument_names("run.dir must be empty, got /data/train.runs")
    'directory must be empty, got /data/train.runs'
    >>> in_argument_names("needs train.eval_mode=false; raise confirm.budget_steps")
    'needs eval_mode=False; raise confirm'
    """
    message = _KEY.sub(lambda match: ARGUMENT_NAMES[match.group()], message)
    message = re.sub(r"(?<==)(true|false)\b", lambda match: match.group().capitalize(), message)
    return re.sub(r"\bnull\b", "None", message)


@contextmanager
def argument_errors() -> Iterator[None]:
    """Raise configuration errors of the block as errors of the call's arguments.

    Raises:
        ArgumentError: the block raised a ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        raise ArgumentError(map(in_argument_names, error.errors)) from None
