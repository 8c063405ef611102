"""What a rank trains: the model wrapped for the world, its optimizer, and how a batch becomes a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.utils import send_to_device
from torch import nn

from lrrunner.training.optimizer.optimizers import set_optimizer_mode
from lrrunner.training.state.loss_modules import LossModule, LossModulesSnapshot
from lrrunner.training.state.snapshot import RngState, Snapshot

Objective = Callable[[nn.Module, Any], Any]
"""(model, batch) -> mean loss, or (mean loss, number of items that it averages)."""


class Batches(Protocol):
    """Endless micro-batches of this rank."""

    def __call__(self, repeat: int, first_step: int = 0) -> Iterator[Any]:
        """Yield the micro-batches of one repeat, from optimizer step ``first_step`` on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """What one rank trains, and how.

    Attributes:
        model: Wrapped for the world (DDP, FSDP2), on its device.
        optimizer: Holds the model's parameters; its LRs are the base LRs.
        objective: Computes the loss of a micro-batch.
        micro_batch_size: Samples of a micro-batch; the item count of a loss that is returned without one.
        count_items: Counts the items of such a batch instead; None if they cannot be counted.
        accumulation_steps: Micro-batches per optimizer step.
        max_grad_norm: L2 norm to clip the gradient to; None records the norm only.
        scaler: Gradient scaler for fp16.
        autocast: Context for the forward pass.
        no_sync: Context in which backward leaves gradients local.
        to_device: Moves a batch to the model's device.
        eval_mode: Whether evaluations put the model in eval mode; False for models that return no loss there.
        loss_modules: Modules that the objective uses beside the model, restored with it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    micro_batch_size: int = 1
    count_items: Callable[[Any], int | None] | None = None
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    scaler: torch.amp.GradScaler | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    to_device: Callable[[Any], Any] = lambda batch: batch
    eval_mode: bool = True
    loss_modules: tuple[LossModule, ...] = ()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the modules that the objective uses beside it."""
        return [self.model, *(each.module for each in self.loss_modules)]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer updates, in its order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def train(self) -> None:
        """Put the model in training mode, and a schedule-free optimizer, which averages weights, too."""
        self.model.train()
        set_optimizer_mode(self.optimizer, training=True)


class InitialState(NamedTuple):
    """Copies of what training changes: of model, optimizer and scaler, and of the modules that the objective uses."""

    trained: Snapshot
    used: LossModulesSnapshot

    def restore(self) -> None:
        """Restore everything, bit for bit; can be repeated."""
        self.trained.restore()
        self.used.restore()


@contextmanager
def preserved(trainable: Trainable) -> Iterator[InitialState]:
    """Restore model, optimizer, scaler, used modules and random number generators on exit, also after an exception."""
    device = trainable.device
    rng = RngState.capture(device)
    snapshot = InitialState(
        Snapshot(trainable.model, trainable.optimizer, trainable.scaler),
        LossModulesSnapshot(trainable.loss_modules, trainable.model),
    )
    try:
        yield snapshot
    finally:
        snapshot.restore()
        rng.restore(device)


def to_device(device: torch.device) -> Callable[[Any], Any]:
    """A function that moves a batch to a device; on a CPU it returns the batch."""
    if device.type == "cpu":
        return lambda batch: batch
    return functools.partial(send_to_device, device=device, non_blocking=True)
