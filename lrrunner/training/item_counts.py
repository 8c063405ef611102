"""Whether a number that comes with a loss can be its number of items."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch


def count_error(count: Any, batch: Any) -> str:
    """Why a batch cannot hold so many items; empty if it can.

    Training steps of many projects return ``(loss, accuracy)``, which must not be taken for ``(loss, num_items)``.

    Args:
        count: What came with the loss.
        batch: A tensor, or a nested sequence or mapping of tensors. Without any tensor, nothing bounds the count.

    >>> count_error(0.53, torch.zeros(4, 2))
    'a fraction, 0.53'
    >>> count_error(9, torch.zeros(4, 2)), count_error(8, torch.zeros(4, 2))
    ('9, above the 8 elements of the batch', '')
    """
    if not isinstance(count, numbers.Real):
        return f"a {type(count).__name__}"
    number = float(count)
    if not math.isfinite(number):
        return f"{number}"
    if number != int(number):
        return f"a fraction, {number:.4g}"
    if number < 0:
        return f"{number:.4g}, below 0"
    largest = num_elements(batch)
    if largest is None or number <= largest:
        return ""
    return f"{number:.4g}, above the {largest} elements of the batch"


def num_elements(batch: Any) -> int | None:
    """Elements of the largest tensor in a batch, with the sizes of tensors in a list added; None without a tensor."""
    if isinstance(batch, torch.Tensor):
        return batch.numel()
    if isinstance(batch, Mapping):
        return max((n for part in batch.values() if (n := num_elements(part)) is not None), default=None)
    if isinstance(batch, list | tuple):
        sizes = [n for part in batch if (n := num_elements(part)) is not None]
        return sum(sizes) if sizes else None
    return None
