"""State of the caller's objects that a sweep must change because no argument of theirs can replace it.

Each context manager here changes one such state and restores it, whatever happens inside. ``README.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training.state.snapshot import RngState


@contextmanager
def gradient_sync_enabled(model: nn.Module) -> Iterator[None]:
    """Make DDP reduce gradients, also where the caller is inside ``no_sync`` or an accumulation."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    before = [wrapper.require_backward_grad_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_backward_grad_sync = True
    try:
        yield
    finally:
        for wrapper, value in zip(wrappers, before, strict=True):
            wrapper.require_backward_grad_sync = value


@contextmanager
def scaler_between_steps(scaler: torch.amp.GradScaler | None) -> Iterator[None]:
    """Make a gradient scaler forget that the caller has unscaled gradients in the current step."""
    if scaler is None:
        yield
        return
    before = dict(scaler._per_optimizer_states)
    scaler._per_optimizer_states.clear()
    try:
        yield
    finally:
        scaler._per_optimizer_states.clear()
        scaler._per_optimizer_states.update(before)


@contextmanager
def rng_restored(device: torch.device) -> Iterator[None]:
    """Restore the random number generators of this process and of a device."""
    before = RngState.capture(device)
    try:
        yield
    finally:
        before.restore(device)


@contextmanager
def dataset_epoch_restored(loader: Any) -> Iterator[None]:
    """Set the epoch that Accelerate's loaders set on their dataset, which a twin shares, back to the loader's own."""
    try:
        yield
    finally:
        set_epoch = getattr(getattr(loader, "dataset", None), "set_epoch", None)
        if hasattr(loader, "iteration") and set_epoch is not None:
            set_epoch(loader.iteration)
