"""Which optimizers can be swept, and what their LR means."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer

from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.optimizer.lr_response import lr_response

_CLASSES = {
    OptimizerClass.ADAPTIVE: {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop"},
    OptimizerClass.ADAGRAD: {"Adagrad"},
    OptimizerClass.SIGN: {"Lion", "SignSGD"},
    OptimizerClass.ORTHOGONAL: {"Muon"},
}
"""Class of an optimizer -> the names that its Python class, or one it derives from, has there."""


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper, which skips steps in the middle of an accumulation."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def held_optimizer(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimizer that another object holds, whose state a snapshot would miss; None if it holds none."""
    parts = list(getattr(optimizer, "__dict__", {}).values())
    for part in parts[:]:
        parts += part if isinstance(part, list | tuple) else part.values() if type(part) is dict else ()
    return next((part for part in parts if isinstance(part, torch.optim.Optimizer)), None)


def set_optimizer_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Set the mode of an optimizer that evaluates other weights than it trains; does nothing for other optimizers.

    References:
        Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682.
    """
    mode = getattr(optimizer, "train" if training else "eval", None)
    if callable(mode):
        mode()


def lr_remark(optimizer: torch.optim.Optimizer) -> str:
    """What to know about the LR of an unusual optimizer, or of one whose groups differ; empty for others.

    D-Adaptation and Prodigy find a step size by themselves and multiply it by their LR, which is usually 1.
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
    if isinstance(optimizer, torch.optim.Adafactor):
        remarks.append(f"{name} takes 1/sqrt(step) in place of a larger LR")
    elif math.isfinite(highest := lr_response(optimizer).highest_lr):
        remarks.append(f"{name} takes no larger steps above an LR of {highest:.2g}")
    ratios = LearningRate(optimizer).ratios
    if any("lr_scale" in group for group in groups):
        remarks.append("the LR is that before each group's lr_scale")
    elif len(set(ratios)) > 1:
        remarks.append(f"the LR is that of parameter group {ratios.index(1.0)}, the others keep their ratios to it")
    return "; ".join(remarks)


def optimizer_class(optimizer: torch.optim.Optimizer) -> OptimizerClass | None:
    """What kind of steps the LR of an optimizer stands for; None where that is not known.

    Not known for optimizers of other libraries with other names, and for those that multiply the LR by a step size of
    their own (see :func:`lr_remark`).
    """
    optimizer = unwrapped(optimizer)
    names = {base.__name__.removesuffix("8bit") for base in type(optimizer).__mro__}
    groups = optimizer.param_groups
    if any("d" in group or "train_mode" in group for group in groups):
        return None
    if "SGD" in names:
        has_momentum = any(group.get("momentum", 0) > 0 for group in groups)
        return OptimizerClass.MOMENTUM if has_momentum else OptimizerClass.SGD
    return next((kind for kind, known in _CLASSES.items() if names & known), None)


def highest_useful_lr(optimizer: torch.optim.Optimizer) -> float:
    """LR above which the optimizer takes no larger steps; infinite for most.

    References:
        Shazeer and Stern 2018, arXiv:1804.04235, section 6; torch's Adafactor takes min(lr, 1 / sqrt(step)).
    """
    return lr_response(optimizer).highest_lr


def optimizer_errors(optimizer: torch.optim.Optimizer) -> list[str]:
    """Why an optimizer cannot be swept.

    It holds another optimizer, as Lookahead does; evaluates the loss by itself, as L-BFGS does; has no LR; or does not
    use the one that is set before a step: Rprop adapts its own, and ASGD uses that of the step before.
    """
    name = type(optimizer).__name__
    if (held := held_optimizer(optimizer)) is not None:
        return [
            f"optimizer must keep its state by itself, got {name} around {type(held).__name__}; "
            "sweep with an optimizer that wraps no other"
        ]
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        return [
            f"optimizer must step without a closure, got {name}, which searches its own step length; "
            "use another optimizer"
        ]
    if not all("lr" in group for group in optimizer.param_groups):
        return [f"optimizer must have an LR in every group, got {name}; use another optimizer"]
    try:
        LearningRate(optimizer)
    except ValueError as error:
        return [str(error)]
    if lr_response(optimizer).is_ignored:
        return [
            f"optimizer must step by the LR that is set before each step, got {name}, whose step does not change with "
            "it; use another optimizer"
        ]
    return []
