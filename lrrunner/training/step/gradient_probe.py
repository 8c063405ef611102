"""Measures the noise of the gradient on one rank: the norm of the gradient of each micro-batch.

A hook on a parameter receives the gradient of one backward pass, before it is accumulated and before DDP averages it.
One rank with accumulation, several ranks, and both together are therefore measured alike, and the gradients that are
applied do not change by a bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch


class GradientProbe:
    """Sums squared gradient norms over the micro-batches of a step.

    It is a context manager; the hooks exist inside the context.

    Args:
        parameters: Parameters whose gradients are measured; none may be sharded.
    """

    num_columns = 2
    """Values per step: the sum of items times squared norm, and the number of micro-batches with items."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in self._parameters)
        self._norms: dict[int, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.begin()

    def __enter__(self) -> Self:
        for index, parameter in enumerate(self._parameters):
            self._hooks.append(parameter.register_hook(functools.partial(self._measure, index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._norms = [], {}

    def begin(self) -> None:
        """Start a step."""
        self._norms.clear()
        self._weighted_squares: torch.Tensor | float = 0.0
        self._num_parts: torch.Tensor | float = 0.0

    def take(self, count: torch.Tensor | float, multiplier: torch.Tensor | float) -> None:
        """Record a backward pass.

        Args:
            count: Items that the loss is the mean of.
            multiplier: Factor that the loss was multiplied by.
        """
        square = self._square()
        if isinstance(count, torch.Tensor):  # on a device that the host must not wait for
            weighted = torch.where(count > 0, count * square / multiplier**2, 0.0)
            self._weighted_squares = self._weighted_squares + weighted
            self._num_parts = self._num_parts + (count > 0)
        elif count > 0:
            multiplier = float(multiplier) if self._on_cpu else multiplier
            self._weighted_squares = self._weighted_squares + count * square / multiplier**2
            self._num_parts = self._num_parts + 1

    def columns(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """The values of the step."""
        return self._weighted_squares, self._num_parts

    def _measure(self, index: int, gradient: torch.Tensor) -> None:
        """Record a gradient's norm; NaN if a pass computes it in several pieces (reentrant checkpointing)."""
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        dtype = torch.promote_types(values.dtype, torch.float32)
        norm = torch.linalg.vector_norm(values.detach(), dtype=dtype)
        self._norms[index] = torch.full_like(norm, math.nan) if index in self._norms else norm

    def _square(self) -> torch.Tensor | float:
        """Squared norm of the gradient of the last pass, in float64."""
        norms = list(self._norms.values())
        self._norms.clear()
        if self._on_cpu:
            return sum(norm.item() ** 2 for norm in norms)
        return torch.stack(norms).double().square().sum() if norms else 0.0
