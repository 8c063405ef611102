"""Set the learning rate of an optimizer, keeping the ratios between its parameter groups."""

from __future__ import annotations

import warnings
from typing import Any

import torch


class LearningRate:
    """A multiplier on every parameter group's own base learning rate.

    It is written to the groups before each step, without a scheduler: the first and last step of schedulers, and their
    multiplication by the world size, are where other finders lose the link between a loss and its LR.

    Args:
        optimizer: The optimizer itself, not a wrapper of it.

    Attributes:
        base_lr: What recorded LRs mean: the LR of all groups; if they differ, the optimizer's default if some group has
            it, else the largest.
        ratios: Each group's LR over ``base_lr``, in the optimizer's order.

    Raises:
        ValueError: the optimizer has no positive LR to keep ratios to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # a scheduler that has changed the LRs keeps the original ones in initial_lr
        group_lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.base_lr = _base_lr(optimizer, group_lrs)
        if not self.base_lr > 0:
            raise ValueError(f"optimizer.lr must be above 0, got {self.base_lr}; the sweep keeps group ratios to it")
        self.ratios = tuple(lr / self.base_lr for lr in group_lrs)

    def set(self, lr: float) -> None:
        """Make ``lr`` the base learning rate of the next step."""
        for group, ratio in zip(self._optimizer.param_groups, self.ratios, strict=True):
            _assign(group, "lr", lr * ratio)

    def apply(self, lr: float) -> None:
        """Make ``lr`` the base learning rate of the training, also of later groups and of schedulers made later."""
        step: Any = self._optimizer.step
        if hasattr(step, "_wrapped_by_lr_sched"):
            warnings.warn("the optimizer's scheduler keeps the LRs it was made with; make it again", stacklevel=3)
        self.set(lr)
        for group, ratio in zip(self._optimizer.param_groups, self.ratios, strict=True):
            if "initial_lr" in group:
                _assign(group, "initial_lr", lr * ratio)
        if "lr" in self._optimizer.defaults:
            _assign(self._optimizer.defaults, "lr", lr)


def _base_lr(optimizer: torch.optim.Optimizer, group_lrs: list[float]) -> float:
    default = optimizer.defaults.get("lr")
    if isinstance(default, torch.Tensor):  # groups without an LR of their own hold this very tensor, and change it
        for group, lr in zip(optimizer.param_groups, group_lrs, strict=True):
            if group["lr"] is default:
                return lr
    return float(default) if default in group_lrs else max(group_lrs)


def _assign(values: dict[str, object], name: str, lr: float) -> None:
    """Set a value; a tensor stays the same tensor, since compiled and capturable optimizers hold on to it."""
    current = values[name]
    if isinstance(current, torch.Tensor):
        current.fill_(lr)
    else:
        values[name] = lr
