"""What one rank sees of the noise in its gradients: the norm of each micro-batch's own gradient.

A hook on a parameter is given the gradient of one backward pass, before it is added to what is there already and before
DDP averages it. So one rank with accumulation, several ranks, and both together are measured alike, and what is summed
and averaged is what it would be without, to the last bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch


class GradientProbe:
    """Sums up squared gradient norms over the micro-batches of a step.

    Works as a context, inside which the hooks are there.

    Args:
        parameters: Those whose gradient's norm is recorded; none is sharded.
    """

    num_columns = 2
    """What it reports of a step: the sum of items times squared norm, and the number of micro-batches with items."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in self._parameters)
        self._norms: dict[int, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.begin()

    def __enter__(self) -> Self:
        for index, parameter in enumerate(self._parameters):
            self._hooks.append(parameter.register_hook(functools.partial(self._measure, index)))  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._norms = [], {}

    def begin(self) -> None:
        """A step begins."""
        self._norms.clear()
        self._weighted_squares: torch.Tensor | float = 0.0
        self._num_parts: torch.Tensor | float = 0.0

    def take(self, count: torch.Tensor | float, multiplier: torch.Tensor | float) -> None:
        """A backward pass is over.

        Args:
            count: Items behind the mean loss.
            multiplier: What that loss was multiplied by before.
        """
        square = self._square()
        if isinstance(count, torch.Tensor):  # on a device that the host does not wait for
            weighted = torch.where(count > 0, count * square / multiplier**2, 0.0)
            self._weighted_squares = self._weighted_squares + weighted
            self._num_parts = self._num_parts + (count > 0)
        elif count > 0:
            multiplier = float(multiplier) if self._on_cpu else multiplier
            self._weighted_squares = self._weighted_squares + count * square / multiplier**2
            self._num_parts = self._num_parts + 1

    def columns(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """What the step came to."""
        return self._weighted_squares, self._num_parts

    def _measure(self, index: int, gradient: torch.Tensor) -> None:
        """Note a gradient's norm; a second piece in one pass (reentrant checkpointing) makes it unknown."""
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        dtype = torch.promote_types(values.dtype, torch.float32)
        norm = torch.linalg.vector_norm(values.detach(), dtype=dtype)
        self._norms[index] = torch.full_like(norm, math.nan) if index in self._norms else norm

    def _square(self) -> torch.Tensor | float:
        """Squared norm of the gradient of the pass that is over, in float64."""
        norms = list(self._norms.values())
        self._norms.clear()
        if self._on_cpu:
            return sum(norm.item() ** 2 for norm in norms)
        return torch.stack(norms).double().square().sum() if norms else 0.0
