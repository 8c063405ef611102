"""What an objective returned: a mean loss, and the number of items that it is the mean of."""

from __future__ import annotations

from typing import Any

import torch

from lrrunner.training.item_counts import count_error

WRONG_COUNT = (
    "a tuple returned with the loss must be (loss, num_items), got {} for num_items; return the loss alone, or count "
    "the items that it is the mean of"
)

Count = torch.Tensor | float
"""A number of items; a tensor only where the host must not wait for the device that it is on."""


def loss_and_count(result: Any, *, batch: Any, default_count: int, on_cpu: bool) -> tuple[torch.Tensor | None, Count]:
    """The loss and the item count of an objective's result.

    Args:
        result: What the objective returned: None, a loss, or a loss and its number of items.
        batch: What it was given, which bounds the number.
        default_count: Number of items of a loss that comes without one.
        on_cpu: Whether a count may be read.

    Returns:
        The loss and its count; without items None and 0, whatever loss was returned. If the count cannot be read, a
        loss over no items is 0.

    Raises:
        ValueError: the number cannot be a number of items.
    """
    if result is None:
        return None, 0
    if not isinstance(result, tuple):
        return result, default_count
    loss, count = result
    if isinstance(count, torch.Tensor):
        if not on_cpu and count.device.type != "cpu":
            return torch.where(count > 0, loss, 0.0), count
        count = count.item()
    if wrong := count_error(count, batch):
        raise ValueError(WRONG_COUNT.format(wrong))
    return (loss if count else None), count


def weighted(loss: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """The loss times a weight; in 32 bits at least, since 16 would round the weight."""
    if isinstance(weight, float) and weight == 1.0:
        return loss
    loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    return loss * (weight.to(loss.dtype) if isinstance(weight, torch.Tensor) else weight)
