"""The table that ranks sum in each step: one row a rank, from which every decision is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

GRADIENT_TOLERANCE = 1e-4
"""Relative difference of gradient norms that ranks may have after a reduction; today all of them hold the same bits."""

MAX_LISTED_RANKS = 8


class Column(IntEnum):
    """What each rank reports of a step, in its own row of the table. Columns of a probe follow.

    GRADIENT is the L2 norm of the rank's gradient after the backward pass; under FSDP the squared norm of its shard.
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


@dataclass(frozen=True)
class StepReading:
    """The summed table of a step, read on the host; the same on every rank.

    Attributes:
        rows: Each rank's row, in rank order; shape (world_size, number of columns), float64.
        grad_norm: L2 norm of the averaged gradient before clipping.
        bad_gradient_ranks: Ranks whose own gradient was not finite, as far as that was looked into.
    """

    rows: npt.NDArray[np.float64]
    grad_norm: float
    bad_gradient_ranks: tuple[int, ...] = ()

    @cached_property
    def num_items(self) -> float:
        """Items of all ranks."""
        return math.fsum(self.rows[:, Column.ITEMS].tolist())

    @cached_property
    def loss(self) -> float:
        """Mean loss over all items; NaN without any. Exactly rounded, so that the order of summation does not count."""
        num_items = self.num_items
        if not num_items:
            return math.nan
        sums = self.rows[:, Column.LOSS_SUM]
        total = math.fsum(sums.tolist()) if np.isfinite(sums).all() else float(sums.sum())
        return total / num_items

    @property
    def non_finite_ranks(self) -> tuple[int, ...]:
        """Ranks whose loss was not finite."""
        return self._ranks(self.rows[:, Column.NON_FINITE] != 0)

    @property
    def stopping_ranks(self) -> tuple[int, ...]:
        """Ranks that asked to stop."""
        return self._ranks(self.rows[:, Column.REQUEST] == Request.STOP)

    @property
    def save_requested(self) -> bool:
        """Whether a rank asked to save or to stop."""
        return bool((self.rows[:, Column.REQUEST] != Request.NONE).any())

    @property
    def spare_sums(self) -> list[float]:
        """Sums over ranks of the columns of a probe."""
        return [math.fsum(self.rows[:, column].tolist()) for column in range(len(Column), self.rows.shape[1])]

    @property
    def gradient_disagreement(self) -> str:
        """Which ranks hold which gradient norm, where these should be equal and are not; else empty."""
        norms = self.rows[:, Column.GRADIENT]
        if not np.isfinite(norms).all() or np.ptp(norms) <= GRADIENT_TOLERANCE * np.abs(norms).max():
            return ""
        shown = ", ".join(f"{norm:.4g} on rank {rank}" for rank, norm in enumerate(norms[:MAX_LISTED_RANKS]))
        return shown if len(norms) <= MAX_LISTED_RANKS else f"{shown}, ..."

    def _ranks(self, flags: npt.NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(np.flatnonzero(flags).tolist())
