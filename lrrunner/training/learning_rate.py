"""Set the learning rate of an optimizer, keeping the ratios between its parameter groups."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer


class LearningRate:
    """A multiplier on every parameter group's own base learning rate.

    Written straight to the groups before each step: no scheduler, whose first step, last step and multiplication by the
    world size are where other finders lose the link between a loss and its LR.

    Attributes:
        base_lr: What recorded LRs stand for: the LR of all groups; where they differ, the optimizer's default if some
            group has it, else the largest.
        ratios: Each group's LR over ``base_lr``, in the optimizer's order.

    Raises:
        ValueError: the optimizer has no positive LR to keep ratios to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # a scheduler that has moved the LRs keeps what they were before in initial_lr
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
        """Make ``lr`` the base learning rate for good: also of later groups, and of schedulers that are made later."""
        step: Any = unwrapped(self._optimizer).step
        if hasattr(step, "_wrapped_by_lr_sched"):
            warnings.warn("the optimizer's scheduler keeps the LRs it was made with; make it again", stacklevel=3)
        self.set(lr)
        for group, ratio in zip(self._optimizer.param_groups, self.ratios, strict=True):
            if "initial_lr" in group:
                _assign(group, "initial_lr", lr * ratio)
        if "lr" in self._optimizer.defaults:
            _assign(self._optimizer.defaults, "lr", lr)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that really steps, inside of Accelerate's, which skips steps in the middle of an accumulation."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def held_optimizer(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimizer inside of a wrapper, whose state is out of reach of a snapshot; None where there is none."""
    parts = list(getattr(optimizer, "__dict__", {}).values())
    for part in parts[:]:
        parts += part if isinstance(part, list | tuple) else part.values() if type(part) is dict else ()
    return next((part for part in parts if isinstance(part, torch.optim.Optimizer)), None)


def remark(optimizer: torch.optim.Optimizer) -> str:
    """What to know about the LR of an unusual optimizer, or of one whose groups differ; empty for others.

    D-Adaptation and Prodigy find a step size by themselves, and multiply it by their LR, for which 1 is the usual one.
    Schedule-free optimizers average weights instead of lowering their LR.

    References:
        Defazio and Mishchenko 2023, arXiv:2301.07733; Mishchenko and Defazio 2023, arXiv:2306.06101. Both keep their
            estimate in ``d``, in every group, beside what bounds its growth. Defazio et al. 2024, arXiv:2405.15682.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    bounds = {"d0", "d_coef", "growth_rate"}
    remarks = []
    if any("d" in group and bounds & group.keys() for group in groups):
        remarks.append(f"the LR multiplies the step size that {name} finds by itself")
    if any("train_mode" in group for group in groups):
        remarks.append(f"the LR multiplies all steps of {name}, which needs no schedule: keep it constant")
    ratios = LearningRate(optimizer).ratios
    if len(set(ratios)) > 1:
        remarks.append(f"the LR is that of parameter group {ratios.index(1.0)}, the others keep their ratios to it")
    return "; ".join(remarks)


def optimizer_errors(optimizer: torch.optim.Optimizer) -> list[str]:
    """Why no LR of this optimizer can be swept.

    It evaluates the loss by itself, as L-BFGS does, has no LR, or steps another optimizer, as Lookahead does.
    """
    if (held := held_optimizer(optimizer)) is not None:
        return [
            f"optimizer must keep its state by itself, got {type(optimizer).__name__} around {type(held).__name__}; "
            "sweep with an optimizer that wraps no other"
        ]
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        return [
            f"optimizer must step without a closure, got {type(optimizer).__name__}, which searches its own step "
            "length; use another optimizer"
        ]
    if not all("lr" in group for group in optimizer.param_groups):
        return [f"optimizer must have an LR in every group, got {type(optimizer).__name__}; use another optimizer"]
    try:
        LearningRate(optimizer)
    except ValueError as error:
        return [str(error)]
    return []


def _base_lr(optimizer: torch.optim.Optimizer, group_lrs: list[float]) -> float:
    default = optimizer.defaults.get("lr")
    if isinstance(default, torch.Tensor):  # the groups without an LR of their own hold this very tensor, and move it
        for group, lr in zip(optimizer.param_groups, group_lrs, strict=True):
            if group["lr"] is default:
                return lr
    return float(default) if default in group_lrs else max(group_lrs)


def _assign(values: dict[str, object], name: str, lr: float) -> None:
    """Compiled and capturable optimizers hold on to a tensor LR: it stays the same tensor."""
    current = values[name]
    if isinstance(current, torch.Tensor):
        current.fill_(lr)
    else:
        values[name] = lr
