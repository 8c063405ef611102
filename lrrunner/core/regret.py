"""What a training loses by an LR that is off its best one, as a share of what the best one achieves.

Over the development jobs of the benchmark, this share (the regret) grows with the square of the distance in decades,
levels off at the whole, and grows faster above the best LR than below it. How fast differs by job. The constants
describe trainings of 400 steps at a constant LR (``scripts/benchmarks/fit_bowls.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrrunner.core.lr_schedules import FloatArray

MEDIAN_CURVATURE = 0.25
"""Of the jobs: the share that is lost a decade below the best LR, about."""

CURVATURE_SPREAD = 0.7
"""Standard deviation of log10 of the curvature over jobs."""

STEEPER_ABOVE = 1.8
"""How much faster the share grows above the best LR."""

DEVIATIONS = np.linspace(-2, 2, 9)
CURVATURES = MEDIAN_CURVATURE * 10 ** (CURVATURE_SPREAD * DEVIATIONS)
CURVATURE_WEIGHTS = np.exp(-(DEVIATIONS**2) / 2) / np.exp(-(DEVIATIONS**2) / 2).sum()
"""Curvatures of jobs, and the share of jobs that has each; shapes (9,)."""

NORMAL_PLACES = np.linspace(-3, 3, 61)
NORMAL_WEIGHTS = np.exp(-(NORMAL_PLACES**2) / 2) / np.exp(-(NORMAL_PLACES**2) / 2).sum()


def regret(decades_above: Any, curvature: Any) -> FloatArray:
    """Share of the achievable fall that is lost, in [0, 1); 0 at the best LR. The arguments broadcast.

    Args:
        decades_above: Distance from the best LR, negative below it.
        curvature: How fast the share grows.

    >>> regret([-1.0, 0.0, 1.0], 0.25).round(2).tolist()
    [0.2, 0.0, 0.31]
    """
    decades = np.asarray(decades_above)
    lost = np.where(decades > 0, STEEPER_ABOVE, 1.0) * curvature * decades**2
    return np.asarray(lost / (1 + lost))


def expected_regret(error: float) -> float:
    """Mean regret, over jobs, of an LR whose distance from the best one has the standard error ``error``, in decades.

    >>> round(expected_regret(0.25), 3)
    0.041
    """
    by_place = regret(error * NORMAL_PLACES[:, None], CURVATURES) @ CURVATURE_WEIGHTS
    return float(NORMAL_WEIGHTS @ by_place)
