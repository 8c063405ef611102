"""Learning-rate range tests that every rank of a distributed job agrees on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lrrunner.version import __version__

if TYPE_CHECKING:
    from lrrunner.library.range_test import range_test
    from lrrunner.library.result import RangeTest
    from lrrunner.library.unfinished_confirmation import ConfirmationError, ConfirmationInterrupted
    from lrrunner.records import StopReason, Suggestion, Verdict

__all__ = [
    "ConfirmationError",
    "ConfirmationInterrupted",
    "RangeTest",
    "StopReason",
    "Suggestion",
    "Verdict",
    "__version__",
    "range_test",
]

_HOMES = {
    "range_test": "lrrunner.library.range_test",
    "ConfirmationError": "lrrunner.library.unfinished_confirmation",
    "ConfirmationInterrupted": "lrrunner.library.unfinished_confirmation",
    "RangeTest": "lrrunner.library.result",
    "StopReason": "lrrunner.records",
    "Suggestion": "lrrunner.records",
    "Verdict": "lrrunner.records",
}
"""Where each public name lives: imported when it is asked for, since the command line must not wait for torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
