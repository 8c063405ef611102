"""Builders of sweeps whose shape is known: made of records, without the code under test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import settings

from lrrunner.records import Step, Stop, StopReason

FloatArray = npt.NDArray[np.float64]

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)
"""For every property: the same examples in each run, so that a failure is a change of the code."""

STEP_DECADES = 8 / 99
"""Distance of two steps of the default sweep, in decades."""


def sweep_lrs(num_steps: int = 100, *, low: float = -7.0, high: float = 1.0) -> FloatArray:
    """Learning rates from 10**low to 10**high at equal ratios."""
    return np.asarray(10.0 ** np.linspace(low, high, num_steps))


def noise(seed: int, num_steps: int = 100, *, std: float) -> FloatArray:
    """Independent normal noise."""
    return np.random.default_rng(seed).normal(0.0, std, num_steps)


def sigmoid_fall(
    lrs: FloatArray, *, level: float = 2.3, depth: float = 1.8, at: float = -3.0, width: float = 0.4
) -> FloatArray:
    """A fall from ``level`` by ``depth``, steepest against log LR at 10**at, and then a plateau."""
    return np.asarray(level - depth / (1 + np.exp(-(np.log10(lrs) - at) / width)))


def fall_and_blow_up(lrs: FloatArray, *, at: float = -3.0, width: float = 0.4, diverges_at: float = -0.5) -> FloatArray:
    """The usual curve: level 2.3, a fall to 0.5 that is steepest at 10**at, exponential growth from 10**diverges_at."""
    beyond = np.maximum(np.log10(lrs) - diverges_at, 0.0)
    return np.asarray(sigmoid_fall(lrs, at=at, width=width) + np.expm1(6 * beyond))


def cosine_valley(lrs: FloatArray) -> FloatArray:
    """Level 2.3 up to 1e-5, half a cosine down to 0 at 1e-1 (steepest at 1e-3), and up again in the mirror image."""
    phase = np.maximum(np.log10(lrs) + 5.0, 0.0) * np.pi / 4
    return np.asarray(1.15 * (1 + np.cos(phase)))


def with_tail(losses: FloatArray, *, first: int, value: float | FloatArray) -> FloatArray:
    """The same losses with everything from index ``first`` on replaced."""
    replaced = losses.copy()
    replaced[first:] = value
    return replaced


def records(
    lrs: FloatArray | Sequence[float],
    losses: FloatArray | Sequence[float],
    *,
    repeat: int = 0,
    sweep_pass: int = 0,
    skipped: bool = False,
    grad_norms: FloatArray | Sequence[float] | None = None,
) -> list[Step]:
    """One record a step, for as many steps as there are losses."""
    norms = [math.nan] * len(losses) if grad_norms is None else grad_norms
    return [
        Step(
            step=i,
            lr=float(lr),
            loss=float(loss),
            grad_norm=float(norm),
            repeat=repeat,
            sweep_pass=sweep_pass,
            skipped=skipped,
        )
        for i, (lr, loss, norm) in enumerate(zip(lrs, losses, norms, strict=False))
    ]


def ended(step: int = 99) -> list[Stop]:
    """Every step was applied."""
    return [Stop(reason=StopReason.END_OF_SCHEDULE, step=step)]


def diverged(step: int = 99) -> list[Stop]:
    """The stop rule fired."""
    return [Stop(reason=StopReason.DIVERGED, step=step)]


def non_finite(step: int) -> list[Stop]:
    """A rank saw NaN or infinity."""
    return [Stop(reason=StopReason.NON_FINITE, step=step, ranks=(0,))]
