"""What one would do instead of a range test, at the same number of steps, replayed on measured short trainings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oracle.bowls import TrialTable

DECADES = 4.0
"""Width of the range that is searched, around the optimizer's usual LR."""

Alternative = Callable[..., float]
"""(table, usual LR, random numbers, total_steps) -> LR. How many LRs for how many steps is what loses least on the
development jobs, of several such divisions each."""


def _spread(usual_lr: float, count: int, random: np.random.Generator) -> list[float]:
    """LRs at equal distances over the range, moved together by less than one distance."""
    offsets = (np.arange(count) + random.random()) / count - 0.5
    return [float(usual_lr * 10 ** (DECADES * offset)) for offset in offsets]


def successive_halving(table: TrialTable, usual_lr: float, random: np.random.Generator, *, total_steps: int) -> float:
    """6 LRs for half of the steps, the best 3 for the other half: 50 and 100 steps each of 600.

    References:
        Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1810.05934 (ASHA).
    """
    lrs = sorted(_spread(usual_lr, 6, random), key=lambda lr: table.loss(lr, total_steps // 12))
    return min(lrs[:3], key=lambda lr: table.loss(lr, total_steps // 6))


def random_search(table: TrialTable, usual_lr: float, random: np.random.Generator, *, total_steps: int) -> float:
    """Random LRs for 100 steps each, but at least 6 of them."""
    count = max(6, total_steps // 100)
    lrs = [float(usual_lr * 10 ** (DECADES * (random.random() - 0.5))) for _ in range(count)]
    return min(lrs, key=lambda lr: table.loss(lr, total_steps // count))


def coarse_grid(table: TrialTable, usual_lr: float, random: np.random.Generator, *, total_steps: int) -> float:
    """6 LRs, three in two decades: for 100 steps each of 600."""
    return min(_spread(usual_lr, 6, random), key=lambda lr: table.loss(lr, total_steps // 6))


ALTERNATIVES: tuple[Alternative, ...] = (successive_halving, random_search, coarse_grid)
