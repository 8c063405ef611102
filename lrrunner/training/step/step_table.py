"""The table that ranks sum in each step: one row a rank, from which every decision is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

GRADIENT_TOLERANCE = 1e-4
"""Relative difference of gradient norms that ranks may have after a reduction; today all of them hold the same bits."""

MAX_LISTED_RANKS = 8

Columns = Sequence[Sequence[float]]
"""The table by column: one value a rank, in rank order; empty instead of zeros."""


class Column(IntEnum):
    """What each rank reports of a step, in its own row of the table. Columns of a probe follow.

    GRADIENT is the L2 norm of the rank's gradient after the backward pass, of the parameters that DDP reduces; under
    FSDP the squared norm of its shard. It is not finite if any part of the rank's gradient is not.
    """

    LOSS_SUM = 0
    ITEMS = 1
    NON_FINITE = 2
    REQUEST = 3
    GRADIENT = 4


class Request(IntEnum):
    """What a rank asks of all ranks. A stop includes a save."""

    NONE = 0
    SAVE = 1
    STOP = 2


def columns_of(rows: npt.NDArray[np.float64]) -> Columns:
    """The columns of a table; one of zeros only is empty, since thousands of ranks rarely report anything in it."""
    return [column.tolist() if column.any() else () for column in rows.T]


class StepReading:
    """The summed table of a step, read on the host; the same on every rank.

    Args:
        columns: What all ranks reported.
        grad_norm: L2 norm of the averaged gradient before clipping.

    Attributes:
        grad_norm: As given.
        bad_gradient_ranks: Ranks whose own gradient was not finite, as far as that was looked into.
        save_requested: Whether a rank asked to save or to stop.
        num_items: Items of all ranks.
        loss: Mean loss over all items; NaN without any. Exactly rounded, so that the order of summation does not count.
    """

    def __init__(self, columns: Columns, *, grad_norm: float = math.nan) -> None:
        self._columns = columns
        self.grad_norm = grad_norm
        self.bad_gradient_ranks: tuple[int, ...] = ()
        self.num_items = _exact_sum(columns[Column.ITEMS])
        self.loss = _exact_sum(columns[Column.LOSS_SUM]) / self.num_items if self.num_items else math.nan
        self.save_requested = any(columns[Column.REQUEST])

    @property
    def non_finite_ranks(self) -> tuple[int, ...]:
        """Ranks whose loss was not finite."""
        return _ranks(self._columns[Column.NON_FINITE]) if any(self._columns[Column.NON_FINITE]) else ()

    @property
    def stopping_ranks(self) -> tuple[int, ...]:
        """Ranks that asked to stop."""
        if not self.save_requested:
            return ()
        return _ranks([request == Request.STOP for request in self._columns[Column.REQUEST]])

    @property
    def gradient_sum(self) -> float:
        """Sum over ranks of GRADIENT: under FSDP, the squared norm of the whole gradient."""
        return sum(self._columns[Column.GRADIENT])

    @property
    def spare_sums(self) -> list[float]:
        """Sums over ranks of the columns of a probe."""
        return [_exact_sum(values) for values in self._columns[len(Column) :]]

    @property
    def gradient_disagreement(self) -> str:
        """Which ranks hold which gradient norm, where these should be equal and are not; else empty."""
        norms = self._columns[Column.GRADIENT]
        if not norms or not math.isfinite(self.gradient_sum):
            return ""
        largest = max(norms)
        if largest - min(norms) <= GRADIENT_TOLERANCE * largest:
            return ""
        shown = ", ".join(f"{norm:.4g} on rank {rank}" for rank, norm in enumerate(norms[:MAX_LISTED_RANKS]))
        return shown if len(norms) <= MAX_LISTED_RANKS else f"{shown}, ..."


def _ranks(flags: Sequence[float]) -> tuple[int, ...]:
    return tuple(rank for rank, flag in enumerate(flags) if flag)


def _exact_sum(values: Sequence[float]) -> float:
    """The sum, exactly rounded."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # the sum is infinite, or infinities of both signs are in it
        return sum(values)
