"""The caller's loss function, with the number of samples that it was given in the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lrrunner.training.item_counts import num_samples, num_sequences, unequal_sizes

LossFunction = Callable[[nn.Module, Any], Any]
"""(model, batch) -> mean loss, or (mean loss, number of items it is the mean of); None skips the batch."""


class ObservedLoss:
    """A loss function that counts the samples of the first optimizer step.

    Attributes:
        num_samples: Samples in the micro-batches of that step; 0 where batches do not show any.
        unequal_sizes: The sizes to choose from, where the tensors of a batch do not agree on it.

    Args:
        loss_fn: The caller's function.
        num_micro_batches: Micro-batches per optimizer step.
    """

    def __init__(self, loss_fn: LossFunction, *, num_micro_batches: int) -> None:
        self._loss_fn, self._num_uncounted = loss_fn, num_micro_batches
        self.num_samples = 0
        self.unequal_sizes = ""

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """What the function returns for a batch."""
        if self._num_uncounted and torch.is_grad_enabled():  # an evaluation is no step
            self._num_uncounted -= 1
            sequences = num_sequences(batch)
            self.num_samples += (num_samples(batch) or 0) if sequences is None else sequences
            self.unequal_sizes = "" if sequences is not None else unequal_sizes(batch)
        return self._loss_fn(model, batch)
