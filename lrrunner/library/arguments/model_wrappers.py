"""The wrappers that a script puts around its model: DistributedDataParallel, FSDP2, torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training import fsdp

if TYPE_CHECKING:
    from accelerate import Accelerator


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside of what torch.compile returned."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def innermost(model: nn.Module) -> nn.Module:
    """The module that the script made, inside of DDP and torch.compile."""
    while (inner := uncompiled(model)) is not model or isinstance(model, DistributedDataParallel):
        model = inner.module if isinstance(inner, DistributedDataParallel) else inner
    return model


def no_sync(accelerator: Accelerator | None, model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """A context in which backward passes leave gradients local.

    Accelerate's ``accumulate`` would not do: it counts micro-batches by itself.
    """
    if fsdp.is_sharded(model):
        return functools.partial(fsdp.no_sync, uncompiled(model))
    if accelerator is not None:
        return functools.partial(accelerator.no_sync, model)
    context: Callable[[], AbstractContextManager[Any]] = getattr(model, "no_sync", nullcontext)
    return context
