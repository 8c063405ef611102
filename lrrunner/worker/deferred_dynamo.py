"""Defers the import of ``torch._dynamo``, which takes a second of CPU time, until something is compiled.

Torch's optimizers and DDP import it, and with it DTensor, FSDP and sympy, only to call two functions that do nothing
outside of compiled code, and one that returns a setting. A stand-in with these functions takes its place; when anything
else of the module is used, the stand-in loads the real one and steps aside. The stand-in is process-wide, so that only
processes that lrrunner owns may install it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"

DISABLED = "__dynamo_disable"
"""Attribute of a function in which ``torch._compile`` keeps what ``disable`` returned for it."""


def defer_dynamo() -> None:
    """Put a stand-in in place of ``torch._dynamo``, unless that is imported already."""
    if NAME not in sys.modules:
        stand_in = _DeferredDynamo()
        sys.modules[NAME] = stand_in
        vars(torch)["_dynamo"] = stand_in


def is_dynamo_loaded() -> bool:
    """Whether the real ``torch._dynamo`` is imported."""
    return not isinstance(sys.modules.get(NAME), _DeferredDynamo | None)


class _DeferredDynamo(ModuleType):
    """Stands in for ``torch._dynamo``. Any attribute but its own ones loads the real module."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.__spec__ = importlib.util.find_spec(NAME)
        self.__file__ = self.__spec__.origin if self.__spec__ is not None else None
        self.utils = _DeferredUtils("torch._dynamo.utils")
        self._unprotected: list[Any] = []

    def graph_break(self, msg: str = "") -> None:
        """Do nothing, as outside of compiled code."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return torch's own functions as they are, since no compiler is loaded that could trace them."""
        if kwargs != {"wrapping": False}:  # not torch._compile, which keeps the result where it can be revoked
            return self._load().disable(fn, *args, **kwargs)
        self._unprotected.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked by inspect and the like, of every module there is
            raise AttributeError(name)
        return getattr(self._load(), name)

    def _load(self) -> Any:
        """Import the real module, which protects torch's functions when they are called next."""
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], vars(torch)["_dynamo"]
            for function in self._unprotected:
                vars(function).pop(DISABLED, None)
        return importlib.import_module(NAME)


class _DeferredUtils(ModuleType):
    """Stands in for ``torch._dynamo.utils``, of which DDP reads one setting."""

    def get_optimize_ddp_mode(self) -> str:
        """The default; to change it, one must have loaded the real module."""
        return "ddp_optimizer"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)
