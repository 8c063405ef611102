"""Objectives: (model, batch) -> mean loss, or (mean loss, number of items it is the mean of)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

OR_WRITE_ONE = "or name an objective of your own, a function (model, batch) -> loss"


class Supervised:
    """The criterion of a model's output and a target.

    Args:
        criterion: (output, target) -> mean loss, such as a ``torch.nn`` loss.
    """

    def __init__(self, criterion: Callable[[Any, Any], torch.Tensor]) -> None:
        self._criterion = criterion

    def __call__(self, model: nn.Module, batch: tuple[Any, Any]) -> torch.Tensor | tuple[torch.Tensor, int]:
        """The mean loss of a batch (inputs, target); (loss, 0) where the criterion ignores all of the target."""
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise TypeError(
                f"data.train must yield (inputs, target) for objective=supervised, got {_described(batch)}; use "
                f"objective=model_loss for a model that takes named fields and returns its own loss, {OR_WRITE_ONE}"
            )
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
                f"objective=model_loss for a model that returns its own loss, {OR_WRITE_ONE}"
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
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"data.train must yield dictionaries for objective=model_loss, got {_described(batch)}; use "
                f"objective=supervised for (inputs, target), {OR_WRITE_ONE}"
            )
        output = model(**batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"model must return its loss for objective=model_loss, as output.loss or output['loss'], got "
                f"{type(output).__name__} without one; pass it labels, {OR_WRITE_ONE}"
            )
        return loss


def _described(batch: Any) -> str:
    """The type of a batch and its fields.

    >>> _described({"ids": 1, "mask": 2}), _described([1, 2, 3])
    ("a dict with the keys 'ids', 'mask'", 'a list of 3')
    """
    name = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {name} with the keys {', '.join(map(repr, batch))}"
    return f"a {name} of {len(batch)}" if isinstance(batch, list | tuple) else f"a {name}"
