"""The caller's loss function, checked, with the number of items that each loss is the mean of."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

LossFunction = Callable[[nn.Module, Any], Any]
"""(model, batch) -> mean loss, or (mean loss, number of items it is the mean of)."""


class CountedLoss:
    """A loss function whose losses always come with a number of items.

    Attributes:
        num_samples: Samples in the micro-batches of the first optimizer step; 0 where batches do not show any.

    Args:
        loss_fn: The caller's function.
        num_micro_batches: Micro-batches per optimizer step.
    """

    def __init__(self, loss_fn: LossFunction, *, num_micro_batches: int) -> None:
        self._loss_fn, self._num_uncounted = loss_fn, num_micro_batches
        self.num_samples = 0

    def __call__(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any] | None:
        """The mean loss of a batch and its number of items; None where the function returns None.

        Raises:
            ValueError: The function returned something else, or the batch has no tensor to count by.
        """
        samples = num_samples(batch)
        if self._num_uncounted and torch.is_grad_enabled():  # an evaluation is no step
            self._num_uncounted -= 1
            self.num_samples += samples or 0
        result = self._loss_fn(model, batch)
        if result is None:  # nothing to learn from in this batch
            return None
        loss, num_items = result if isinstance(result, tuple) and len(result) == 2 else (result, samples)
        _check_loss(loss)
        _check_num_items(num_items, batch)
        return loss, num_items


def num_samples(batch: Any) -> int | None:
    """Size of the first dimension of the first tensor in a batch; None without one.

    A batch is a tensor, or a sequence or mapping of fields, (inputs, targets) for example. Lists inside a batch are not
    searched, since they may hold one sample per entry; nor is a list of mappings that have the same keys.

    >>> num_samples({"ids": torch.zeros(3, 7), "mask": torch.zeros(3)})
    3
    >>> num_samples(([torch.zeros(2, 5)] * 8, [torch.zeros(1)] * 8))
    """
    if isinstance(batch, list | tuple):
        if batch and isinstance(batch[0], torch.Tensor) and batch[0].ndim:
            return batch[0].shape[0]
        return None if _are_samples(batch) else _first(map(_num_rows, batch))
    return _num_rows(batch)


def _num_rows(field: Any) -> int | None:
    """Size of the first dimension of the first tensor in a field of a batch, which may be a mapping of fields."""
    if isinstance(field, torch.Tensor):
        return len(field) if field.ndim else None
    return _first(map(_num_rows, field.values())) if isinstance(field, Mapping) else None


def _are_samples(batch: Sequence[Any]) -> bool:
    """Whether a sequence holds samples instead of fields."""
    return len(batch) > 1 and all(isinstance(part, Mapping) and part.keys() == batch[0].keys() for part in batch)


def _first(counts: Iterable[int | None]) -> int | None:
    return next((count for count in counts if count is not None), None)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return a mean loss, a tensor without dimensions, got {got}; return its mean")


def _check_num_items(num_items: Any, batch: Any) -> None:
    if num_items is None:
        raise ValueError(
            f"loss_fn must return (loss, num_items) where a batch holds no tensor to count by, "
            f"got {type(batch).__name__}; count its items"
        )
    if wrong := _not_a_count(num_items):
        raise ValueError(f"loss_fn must return (loss, num_items) with a number of items, got {wrong}; count them")


def _not_a_count(num_items: Any) -> str:
    """Describes a value that is no number of items; empty for a number.

    A number on a GPU is not read, since that would wait for the device.
    """
    if type(num_items) is int and num_items >= 0:
        return ""
    if isinstance(num_items, torch.Tensor):
        if num_items.ndim:
            return f"a tensor of shape {tuple(num_items.shape)}"
        if num_items.device.type != "cpu":
            return ""
        num_items = num_items.item()
    if not isinstance(num_items, numbers.Real):
        return type(num_items).__name__
    return "" if math.isfinite(num_items) and float(num_items) >= 0 else f"{num_items}"
