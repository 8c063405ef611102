"""Global state of a process that a job's own code may change, restored before the next job of a warm rank."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

UNREADABLE = object()

logger = logging.getLogger(__name__)

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""(read a setting, set it)."""

FLAGS: tuple[tuple[Any, str], ...] = (
    *((torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
)
"""Attributes of torch's back ends."""


def _set_default_device(device: torch.device) -> None:
    if torch.get_default_device() != device:
        torch.set_default_device(None)  # no device context, which costs every call of a factory function
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]


def _set_search_path(entries: list[str]) -> None:
    sys.path[:] = entries


def _autocast(device: str) -> Setting:
    def restore(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return (
        lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        restore,
    )


def _flag(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _flushes_denormal() -> bool:
    """torch has no reader of this flag of the processor."""
    return not torch.full((1,), 5e-324, dtype=torch.float64, device="cpu").mul_(1.0).item()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _global_hooks() -> list[dict[int, Any]]:
    """The dictionaries of hooks that run in every module and optimizer of the process."""
    return [
        value
        for owner in (torch.nn.modules.module, sys.modules[torch.optim.Optimizer.__module__])
        for name, value in vars(owner).items()
        if name.startswith("_global_") and isinstance(value, dict)
    ]


def _set_global_hooks(saved: list[dict[int, Any]]) -> None:
    for hooks, values in zip(_global_hooks(), saved, strict=True):
        hooks.clear()
        hooks.update(values)


def _loggers() -> dict[str, tuple[int, bool, bool]]:
    """Level, propagation and switch of every logger below the root."""
    return {
        name: (item.level, item.propagate, item.disabled)
        for name, item in list(logging.root.manager.loggerDict.items())
        if isinstance(item, logging.Logger)
    }


def _set_loggers(saved: dict[str, tuple[int, bool, bool]]) -> None:
    """Those that the job has made keep what it gave them, apart from a level."""
    for name in _loggers():
        item = logging.getLogger(name)
        level, item.propagate, item.disabled = saved.get(name, (logging.NOTSET, item.propagate, item.disabled))
        item.setLevel(level)


SETTINGS: tuple[Setting, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_num_threads, torch.set_num_threads),
    (_flushes_denormal, torch.set_flush_denormal),
    (lambda: [dict(hooks) for hooks in _global_hooks()], _set_global_hooks),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: torch.backends.mkldnn.enabled, lambda value: torch.backends.mkldnn.set_flags(value)),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    _autocast("cpu"),
    _autocast("cuda"),
    *(_flag(owner, name) for owner, name in FLAGS),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (np.geterr, lambda value: np.seterr(**value)),
    (lambda: list(warnings.filters), _set_warning_filters),
    (lambda: list(sys.path), _set_search_path),
    (lambda: dict(os.environ), _set_environment),
    (os.getcwd, os.chdir),
    (_umask, os.umask),
    (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    (gc.get_threshold, lambda value: gc.set_threshold(*value)),
    (lambda: logging.root.level, logging.root.setLevel),
    (lambda: logging.root.manager.disable, logging.disable),
    (_loggers, _set_loggers),
)


@contextmanager
def process_state_preserved() -> Iterator[None]:
    """Global settings of torch, NumPy, Python and the process are afterwards as before, also after an exception.

    What cannot be read back is not restored: imported modules and what these have patched, and the number of threads
    between operations, which torch fixes at its first use. Signal and log handlers are restored by their owners.
    """
    values = [_value(read) for read, _ in SETTINGS]
    try:
        yield
    finally:
        for (read, restore), value in zip(SETTINGS, values, strict=True):
            if value is UNREADABLE or _is_same(_value(read), value):
                continue
            try:
                restore(value)
            except Exception as error:  # noqa: BLE001 - one setting must not keep the others from being restored
                logger.warning("a setting that the job changed could not be restored: %s", error)


def _value(read: Callable[[], Any]) -> Any:
    """The value of a setting; ``UNREADABLE`` where the job has left it so that reading raises."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - a removed working directory, mixed precision flags of torch, ...
        return UNREADABLE


def _is_same(current: Any, value: Any) -> bool:
    """Whether a setting has kept its value; False if they cannot be compared, which restores it."""
    try:
        return bool(current == value)
    except (ValueError, RuntimeError):  # arrays
        return False
