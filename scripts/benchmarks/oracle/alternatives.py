"""What one would do instead of a range test, at the same number of steps, replayed on measured short trainings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oracle.bowls import TrialTable

DECADES = 4.0
"""Width of the range that is searched, around the optimizer's usual LR."""

Alternative = Callable[[TrialTable, float, np.random.Generator], float]


def _spread(usual_lr: float, count: int, random: np.random.Generator) -> list[float]:
    """LRs at equal distances over the range, moved together by less than one distance."""
    offsets = (np.arange(count) + random.random()) / count - 0.5
    return [float(usual_lr * 10 ** (DECADES * offset)) for offset in offsets]


def successive_halving(table: TrialTable, usual_lr: float, random: np.random.Generator) -> float:
    """8 LRs for 25 steps, the best 4 for 50, the best 2 for 100: 600 steps.

    References:
        Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1810.05934 (ASHA).
    """
    lrs = _spread(usual_lr, 8, random)
    for num_steps, keep in ((25, 4), (50, 2), (100, 1)):
        lrs = sorted(lrs, key=lambda lr: table.loss(lr, num_steps))[:keep]
    return lrs[0]


def random_search(table: TrialTable, usual_lr: float, random: np.random.Generator) -> float:
    """6 random LRs for 100 steps: 600 steps."""
    lrs = [float(usual_lr * 10 ** (DECADES * (random.random() - 0.5))) for _ in range(6)]
    return min(lrs, key=lambda lr: table.loss(lr, 100))


def coarse_grid(table: TrialTable, usual_lr: float, random: np.random.Generator) -> float:
    """12 LRs, three a decade, for 50 steps: 600 steps."""
    return min(_spread(usual_lr, 12, random), key=lambda lr: table.loss(lr, 50))


ALTERNATIVES: tuple[Alternative, ...] = (successive_halving, random_search, coarse_grid)
