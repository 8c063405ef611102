"""How many items a batch holds, and whether a number that comes with a loss can be its number of items."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

BOUNDS = {"cu_seqlens", "cu_seqlens_q", "cu_seq_lens", "cu_seq_lens_q"}
"""Names under which batches of packed sequences hold where each of these begins and the last one ends."""


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
    if isinstance(count, torch.Tensor):
        return f"a tensor of shape {tuple(count.shape)}"
    if isinstance(count, bool) or not isinstance(count, numbers.Real):
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


def num_sequences(batch: Any) -> int | None:
    """Sequences that are packed into one row of tokens, from their bounds or positions; None for other batches.

    Collators that pack (flash attention, TRL, Megatron) name the bounds ``cu_seqlens`` or so, or restart the positions.

    >>> num_sequences({"input_ids": torch.zeros(1, 9), "cu_seqlens": torch.tensor([0, 4, 7, 9])})
    3
    >>> num_sequences({"input_ids": torch.zeros(1, 5), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    2
    """
    if not isinstance(batch, Mapping):
        return None
    for name in BOUNDS & batch.keys():
        if isinstance(batch[name], torch.Tensor) and batch[name].numel() > 1:
            return int(batch[name].numel()) - 1
    positions = batch.get("position_ids")
    if isinstance(positions, torch.Tensor) and positions.shape[:1] == (1,):
        return int((positions == 0).sum()) or None
    return None


def unequal_sizes(batch: Any) -> str:
    """The first dimensions of a batch's tensors, as text, where they differ; else empty.

    >>> unequal_sizes({"x": torch.zeros(90, 3), "graph": torch.zeros(90), "label": torch.zeros(8)})
    'x: 90, label: 8'
    """
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, list | tuple) else ()
    first: dict[int, str] = {}
    for name, field in named:
        if isinstance(field, torch.Tensor) and field.ndim:
            first.setdefault(len(field), str(name))
    return ", ".join(f"{name}: {size}" for size, name in first.items()) if len(first) > 1 else ""
