"""What an objective returned: a mean loss, and the number of items that it is the mean of."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lrrunner.training.step.item_counts import count_error

NOT_A_LOSS = (
    "objective (loss_fn) must return a mean loss, a tensor without dimensions, or (loss, num_items), got {}; return {}"
)
NO_GRADIENT = (
    "objective (loss_fn) must return a loss that depends on the model's parameters, got one without a gradient; return "
    "the tensor before detach(), computed outside of torch.no_grad()"
)
NO_COUNT = (
    "objective (loss_fn) must return (loss, num_items) where a batch holds no tensor to count by, got {}; count its "
    "items"
)
WRONG_COUNT = (
    "a tuple returned with the loss must be (loss, num_items), got {} for num_items; return the loss alone, or count "
    "the items that it is the mean of"
)

Count = torch.Tensor | float
"""A number of items; a tensor only where the host must not wait for the device that it is on."""


def loss_and_count(
    result: Any, *, batch: Any, count_items: Callable[[Any], int | None], on_cpu: bool
) -> tuple[torch.Tensor | None, Count]:
    """The loss and the item count of an objective's result.

    Args:
        result: What the objective returned: None, a loss, or a loss and its number of items.
        batch: What it was given, which bounds the number.
        count_items: Number of items of a batch whose loss comes without one; None if they cannot be counted.
        on_cpu: Whether a count may be read.

    Returns:
        The loss and its count; without items None and 0, whatever loss was returned. If the count cannot be read, a
        loss over no items is 0.

    Raises:
        ValueError: the objective returned something else.
    """
    if isinstance(result, torch.Tensor):
        loss, count = result, count_items(batch)
        if count is None:
            raise ValueError(NO_COUNT.format(type(batch).__name__))
    elif result is None:
        return None, 0
    elif type(result) is tuple and len(result) == 2:
        loss, count = result
    else:
        raise ValueError(NOT_A_LOSS.format(type(result).__name__, _advice(result)))
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(NOT_A_LOSS.format(got, _advice(loss)))
    if isinstance(count, torch.Tensor) and not (on_cpu or count.device.type == "cpu" or count.ndim):
        return torch.where(count > 0, loss, 0.0), count
    if loss is not result:
        if hasattr(count, "item") and not getattr(count, "ndim", 0):  # of torch or NumPy
            count = count.item()
        if wrong := count_error(count, batch):
            raise ValueError(WRONG_COUNT.format(wrong))
    if not count:
        return None, 0
    if not loss.requires_grad and torch.is_grad_enabled():
        raise ValueError(NO_GRADIENT)
    return loss, count


def weighted(loss: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """The loss times a weight; in 32 bits at least, since 16 would round the weight."""
    if isinstance(weight, float) and weight == 1.0:
        return loss
    loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    return loss * (weight.to(loss.dtype) if isinstance(weight, torch.Tensor) else weight)


def _advice(result: Any) -> str:
    """What to return instead."""
    if isinstance(result, numbers.Number | np.ndarray):
        return "the tensor before item() or numpy(), which the gradient is computed from"
    has_loss = hasattr(result, "loss") or (isinstance(result, dict) and "loss" in result)
    return "its loss" if has_loss else "its loss alone" if isinstance(result, tuple) else "its mean"
