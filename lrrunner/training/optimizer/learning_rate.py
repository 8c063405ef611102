"""Set the learning rate of an optimizer, keeping the ratios between its parameter groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

NO_LR = (
    "optimizer.lr must be a number above 0 in every group, got {}; the sweep sets it before each step. Give an LR, and "
    "switch off what sets one in its place (relative_step=False of Adafactor)"
)

NUM_CHECKED_STEPS = 2
"""Steps after which an LR in a tensor on a device is read back."""


class LearningRate:
    """A multiplier on every parameter group's own base learning rate.

    It is written to the groups before each step, without a scheduler: the first and last step of schedulers, and their
    multiplication by the world size, are where other finders lose the link between a loss and its LR.

    Args:
        optimizer: The optimizer itself, not a wrapper of it.

    Attributes:
        base_lr: What recorded LRs mean: the LR of all groups; if they differ, the optimizer's default if some group has
            it, else the largest.
        ratios: Each group's LR over ``base_lr``, in the optimizer's order, its ``lr_scale`` included.

    Raises:
        ValueError: some group has no LR, or the optimizer has no positive LR to keep ratios to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._num_checks = 0
        # a scheduler that has changed the LRs keeps the original ones in initial_lr
        found = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if any(lr is None for lr in found):
            raise ValueError(NO_LR.format(None))
        group_lrs, scales, self._is_scaled = _unscaled([float(lr) for lr in found], optimizer.param_groups)
        self.base_lr = _base_lr(optimizer, group_lrs)
        if not self.base_lr > 0:
            raise ValueError(NO_LR.format(self.base_lr))
        self._unscaled_ratios = tuple(lr / self.base_lr for lr in group_lrs)
        self.ratios = tuple(ratio * scale for ratio, scale in zip(self._unscaled_ratios, scales, strict=True))

    def set(self, lr: float) -> None:
        """Make ``lr`` the base learning rate of the next step."""
        for group, ratio in zip(self._optimizer.param_groups, self.ratios, strict=True):
            _assign(group, "lr", lr * ratio)

    def changed_lr(self, lr: float) -> float | None:
        """The LR of a group that is no longer what :meth:`set` made it.

        LRs in tensors on a device are read in the first steps only, since the host would wait.
        """
        self._num_checks += 1
        for group, ratio in zip(self._optimizer.param_groups, self.ratios, strict=True):
            current, expected = group["lr"], lr * ratio
            if isinstance(current, torch.Tensor):
                if current.device.type != "cpu" and self._num_checks > NUM_CHECKED_STEPS:
                    continue
                expected = torch.tensor(expected, dtype=current.dtype).item()
                current = current.item()
            if current != expected:
                return float(current)
        return None

    def apply(self, lr: float) -> None:
        """Make ``lr`` the base learning rate of the training, also of later groups and of schedulers made later.

        An ``lr_scale`` of a group is left to the training's own scheduler, which multiplies by it, unless the LRs of
        the groups contained it already.
        """
        step: Any = self._optimizer.step
        if hasattr(step, "_wrapped_by_lr_sched"):
            warnings.warn("the optimizer's scheduler keeps the LRs it was made with; make it again", stacklevel=3)
        ratios = self.ratios if self._is_scaled else self._unscaled_ratios
        for group, ratio in zip(self._optimizer.param_groups, ratios, strict=True):
            _assign(group, "lr", lr * ratio)
            if "initial_lr" in group:
                _assign(group, "initial_lr", lr * ratio)
        if "lr" in self._optimizer.defaults:
            _assign(self._optimizer.defaults, "lr", lr)


def _unscaled(group_lrs: list[float], groups: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], bool]:
    """LRs without their groups' ``lr_scale``, these scales, and whether the LRs contained them.

    Layer-wise LR decay (timm, BEiT, MAE, open_clip) keeps a group's ratio in ``lr_scale``, and the training's scheduler
    multiplies by it in each step. Where that has happened already, the LRs differ by just these scales.
    """
    scales = [float(group.get("lr_scale", 1.0)) for group in groups]
    if len(set(group_lrs)) > 1 and all(scales):
        bare = [lr / scale for lr, scale in zip(group_lrs, scales, strict=True)]
        if max(bare) - min(bare) <= 1e-6 * max(bare):
            return [bare[0]] * len(bare), scales, True
    return group_lrs, scales, False


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
