"""The caller's loss function, with the number of samples that it was given in the first step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lrrunner.library.arguments.failure_hints import CRITERION_CALL, CRITERION_MODULES, explain_call
from lrrunner.training.step.item_counts import num_samples, num_sequences, unequal_sizes

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
        try:
            return self._loss_fn(model, batch)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            explain_call(error, model, batch)
            raise


def loss_function_errors(loss_fn: Any) -> list[str]:
    """Why a loss function cannot be called as ``loss_fn(model, batch)``; empty where it can.

    >>> loss_function_errors(lambda model, x, y: None)
    ['loss_fn must be callable as loss_fn(model, batch), got a function of (model, x, y); unpack the batch in it']
    """
    must = "loss_fn must be callable as loss_fn(model, batch)"
    if isinstance(loss_fn, type):
        return [f"{must}, got the class {loss_fn.__name__}; give a function, as in {CRITERION_CALL}"]
    if not callable(loss_fn):
        return [f"{must}, got {type(loss_fn).__name__}; give a function"]
    function = loss_fn
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    if named.__module__ in CRITERION_MODULES:
        return [f"{must}, got {named.__qualname__}, which takes an output and a target; give {CRITERION_CALL}"]
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # a function of C
        return []
    try:
        signature.bind(None, None)
    except TypeError:
        names = ", ".join(signature.parameters)
        return [f"{must}, got a function of ({names}); unpack the batch in it"]
    return []
