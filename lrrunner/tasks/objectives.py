"""Objectives: (model, batch) -> mean loss, or (mean loss, number of items it is the mean of)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class Supervised:
    """The criterion of a model's output and a target.

    Args:
        criterion: (output, target) -> mean loss, such as a ``torch.nn`` loss.
    """

    def __init__(self, criterion: Callable[[Any, Any], torch.Tensor]) -> None:
        self._criterion = criterion

    def __call__(self, model: nn.Module, batch: tuple[Any, Any]) -> torch.Tensor | tuple[torch.Tensor, int]:
        """The mean loss of a batch (inputs, target); (loss, 0) where the criterion ignores all of the target."""
        inputs, target = batch
        output = model(inputs)
        try:
            loss = self._criterion(output, target)
            return (loss, 0) if self._ignores_all(target, loss) else loss
        except (TypeError, AttributeError) as error:
            if isinstance(output, torch.Tensor):
                raise
            raise TypeError(
                f"model must return a tensor for objective=supervised, got {type(output).__name__}; use "
                "objective=model_loss for a model that returns its own loss, or name an objective of your own, a "
                "function (model, batch) -> loss"
            ) from error

    def _ignores_all(self, target: Any, loss: torch.Tensor) -> bool:
        """Whether every label is the one that the criterion ignores; not read on a GPU, where the host would wait.

        The mean over nothing is NaN, or 0 where the criterion avoids that.
        """
        ignored = getattr(self._criterion, "ignore_index", None)
        if ignored is None or not isinstance(target, torch.Tensor) or target.device.type != "cpu":
            return False
        if loss.ndim or not (math.isnan(value := loss.item()) or value == 0):
            return False
        return not target.is_floating_point() and bool((target == ignored).all())


class ModelLoss:
    """The loss that a model returns for a batch of keyword arguments, as Hugging Face models do."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """The model's mean loss, ``output.loss`` or ``output["loss"]``."""
        output = model(**batch)
        loss: torch.Tensor = output["loss"] if isinstance(output, Mapping) else output.loss
        return loss
