"""How the suggested LR grows with a swept number: lr = c * x**exponent. numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lrrunner.core.lr_schedules import FloatArray

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond the table 2.04 or less, taken as 2.04 (30)."""

T_BEYOND = 2.042


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
        exponent: The common exponent; 1 is linear scaling, 0.5 square-root scaling.
        interval: 95 % confidence interval of the exponent.
        scales: c of each group.
    """

    exponent: float
    interval: tuple[float, float]
    scales: dict[Hashable, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"lr ~ x^{self.exponent:.2f} [{low:.2f}, {high:.2f}]"


def power_law(x: FloatArray, lr: FloatArray, groups: Sequence[Hashable]) -> PowerLaw | None:
    """Least squares of log lr on log x, with one exponent for all groups and a scale for each.

    log lr_i = log c_g(i) + exponent * log x_i + noise; the interval is exponent +- t * s / sqrt(S_xx), with s**2 the
    residual sum of squares over n - groups - 1 degrees of freedom, and S_xx the spread of log x within groups.

    Args:
        x: The swept number, shape (n,), above 0.
        lr: Suggested learning rates, shape (n,), above 0.
        groups: One key a point, what else was swept; points of one group share a scale.

    Returns:
        The law, or None where no degree of freedom is left for its uncertainty.

    Raises:
        ValueError: lengths that differ, or values that are not above 0.

    >>> law = power_law(np.array([16.0, 64.0, 256.0]), np.array([0.1, 0.2, 0.4]), ["a"] * 3)
    >>> round(law.exponent, 3)
    0.5
    """
    if not len(x) == len(lr) == len(groups):
        raise ValueError(f"x, lr and groups must have one length, got {len(x)}, {len(lr)} and {len(groups)}")
    if not (np.all(x > 0) and np.all(lr > 0)):
        raise ValueError("x and lr must be above 0 for a power law")
    log_x, log_lr = np.log(x), np.log(lr)
    names = list(dict.fromkeys(groups))
    members = [np.array([group == name for group in groups]) for name in names]
    centred_x, centred_lr = log_x.copy(), log_lr.copy()
    for member in members:
        centred_x[member] -= log_x[member].mean()
        centred_lr[member] -= log_lr[member].mean()
    spread = float(centred_x @ centred_x)
    freedom = len(x) - len(names) - 1
    if spread < 1e-12 or freedom < 1:
        return None
    exponent = float(centred_x @ centred_lr) / spread
    residuals = centred_lr - exponent * centred_x
    t = T_975[freedom - 1] if freedom <= len(T_975) else T_BEYOND
    half = t * float(np.sqrt(residuals @ residuals / freedom / spread))
    scales: dict[Hashable, float] = {
        name: float(np.exp(log_lr[member].mean() - exponent * log_x[member].mean()))
        for name, member in zip(names, members, strict=True)
    }
    return PowerLaw(exponent=exponent, interval=(exponent - half, exponent + half), scales=scales)
