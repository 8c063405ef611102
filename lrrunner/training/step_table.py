"""The table that ranks sum in each step: one row a rank, from which every decision is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property


class Column(IntEnum):
    """What each rank reports of a step, in its own row of the table. Columns of a probe follow."""

    LOSS_SUM = 0
    ITEMS = 1
    NON_FINITE = 2
    REQUEST = 3


class Request(IntEnum):
    """What a rank asks of all ranks. A stop includes a save."""

    NONE = 0
    SAVE = 1
    STOP = 2


@dataclass(frozen=True)
class StepReading:
    """The summed table of a step, read on the host; the same on every rank.

    Attributes:
        rows: Each rank's row, in rank order.
        grad_norm: L2 norm of the averaged gradient before clipping.
    """

    rows: list[list[float]]
    grad_norm: float

    @cached_property
    def num_items(self) -> float:
        """Items of all ranks."""
        return math.fsum(row[Column.ITEMS] for row in self.rows)

    @cached_property
    def loss(self) -> float:
        """Mean loss over all items; NaN without any."""
        num_items = self.num_items
        return sum(row[Column.LOSS_SUM] for row in self.rows) / num_items if num_items else math.nan

    @property
    def rank_losses(self) -> tuple[float, ...]:
        """Each rank's own mean loss; NaN without items."""
        return tuple(row[Column.LOSS_SUM] / row[Column.ITEMS] if row[Column.ITEMS] else math.nan for row in self.rows)

    @property
    def non_finite_ranks(self) -> tuple[int, ...]:
        """Ranks whose loss was not finite."""
        return tuple(rank for rank, row in enumerate(self.rows) if row[Column.NON_FINITE])

    @property
    def stopping_ranks(self) -> tuple[int, ...]:
        """Ranks that asked to stop."""
        return tuple(rank for rank, row in enumerate(self.rows) if row[Column.REQUEST] == Request.STOP)

    @property
    def save_requested(self) -> bool:
        """Whether a rank asked to save or to stop."""
        return any(row[Column.REQUEST] for row in self.rows)

    @property
    def spare_sums(self) -> list[float]:
        """Sums over ranks of the columns that follow the fixed ones."""
        return [sum(row[column] for row in self.rows) for column in range(len(Column), len(self.rows[0]))]
