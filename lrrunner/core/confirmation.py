"""Which short trainings to run around a suggestion, and what they say: pure functions of the trials so far.

Two rungs. The first runs trials of a fourteenth of the budget, a third of a decade apart, and walks towards the lowest
loss until it has a worse neighbour on both sides. The second spends what is left on three longer trials around it. A
trial is a complete schedule from the initial state, never the beginning of a longer one, so that no schedule is cut off
before its learning rate has come down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.schedule import FloatArray
from lrrunner.records import Suggestion, Trial, Verdict

STEPS_PER_DECADE = 3
"""Trials lie a third of a decade apart: on the development jobs the loss at the end changes by about a hundredth of the
achievable improvement from the best LR to its neighbour (scripts/benchmarks/regret.md)."""

SHORT_SHARE = 14
"""The budget holds so many short trials; they may take six, the rest is for the long ones."""

MAX_SHORT_TRIALS = 6
NUM_LONG_TRIALS = 3

WORTHWHILE = 1.5
"""Long trials that are not this much longer than the short ones would say the same again."""

DIVERGED_STEPS_BACK = 3
"""A candidate that diverged is followed by one a decade below it."""

HORIZON_EXPONENT = 0.32
"""The best LR of a training of H steps goes as H**-0.32 (Bjorck et al. 2024, arXiv:2409.19913, for language models)."""

HORIZON_EXPONENT_ERROR = 0.16
"""Half of the exponent: between no effect of the length and twice the published one lie two of these each way."""

MEASURED_ERROR_DECADES = 0.2
"""Half the width of an interval without extrapolation: a little more than half the distance of two trials."""


class PlannedTrial(NamedTuple):
    """A confirmation run to do next."""

    lr: float
    num_steps: int


def next_trial(
    sweep: Suggestion, trials: Sequence[Trial], *, budget_steps: int, horizon: int | None
) -> PlannedTrial | None:
    """The next confirmation run, or None when the budget is spent or nothing is left to learn.

    A pure function of reduced results, so every rank plans the same trial.

    Args:
        sweep: What the sweep suggests; it must have an LR.
        trials: What was run so far, in order.
        budget_steps: Optimizer steps that all trials together may plan.
        horizon: Steps of the real training; None when it is not known.
    """
    if sweep.lr is None:
        raise ValueError("the sweep must have suggested an LR")
    left = budget_steps - sum(trial.num_steps for trial in trials)
    short_steps = max(1, min(horizon or budget_steps, budget_steps // SHORT_SHARE))
    short = _losses_by_position([trial for trial in trials if trial.num_steps == short_steps], sweep.lr)
    long_trials = [trial for trial in trials if trial.num_steps != short_steps]
    if not long_trials and (position := _next_short(short)) is not None and short_steps <= left:
        return PlannedTrial(_lr_at(position, sweep.lr), short_steps)
    long_steps = long_trials[0].num_steps if long_trials else min(horizon or left, left // NUM_LONG_TRIALS)
    if not long_trials and long_steps < WORTHWHILE * short_steps:
        return None
    next_position = _next_long(short, _losses_by_position(long_trials, sweep.lr))
    return None if next_position is None else PlannedTrial(_lr_at(next_position, sweep.lr), long_steps)


def _next_short(short: dict[int, float]) -> int | None:
    """Where the next short trial goes; None when the lowest loss lies between worse neighbours."""
    if not short:
        return 0
    if len(short) >= MAX_SHORT_TRIALS:
        return None
    best = _best(short)
    if not math.isfinite(short[best]):
        return min(short) - DIVERGED_STEPS_BACK
    sides = (best - 1, best + 1) if len(short) % 2 else (best + 1, best - 1)
    return next((side for side in sides if side not in short), None)


def _next_long(short: dict[int, float], long: dict[int, float]) -> int | None:
    """Where the next long trial goes: the best short one, its lower neighbour, and then the side that promises more."""
    best = _best(short)
    if not math.isfinite(short[best]):
        return None
    if best not in long:
        return best
    if best - 1 not in long:
        return best - 1
    third = best - 2 if long[best - 1] <= long[best] else best + 1
    return third if third not in long else None


def confirmed(
    sweep: Suggestion,
    trials: Sequence[Trial],
    *,
    horizon: int | None,
    monitored: str,
    initial_loss: float = math.nan,
) -> Suggestion:
    """The sweep's suggestion, moved and narrowed by its confirmation runs.

    The lowest point of a parabola through the lowest loss of the longest trials and its two neighbours, losses capped
    at the initial one; brought from the length of these trials to the real training's by H**-0.32 where that is longer.

    Args:
        sweep: What the sweep suggests.
        trials: All confirmation runs.
        horizon: Steps of the real training; None when it is not known.
        monitored: What the trials' losses are, in words: "validation loss", say.
        initial_loss: The same loss before any training; NaN when it is not known.

    Returns:
        The sweep's own suggestion when nothing was run; without an LR when every run diverged; else with another LR,
        interval and reason.
    """
    if not trials:
        return sweep
    too_high = min((trial.lr for trial in trials if not math.isfinite(trial.loss)), default=math.inf)
    finished = [trial for trial in trials if trial.lr < too_high]
    if not finished:
        lowest = min(trial.lr for trial in trials)
        reason = (
            f"all {len(trials)} confirmation runs diverged, also at {lowest:.1e}; warm up, clip gradients "
            "(train.max_grad_norm), or lower sweep.start_lr"
        )
        return dataclasses.replace(sweep, lr=None, interval=None, verdict=Verdict.NO_DESCENT, reason=reason)
    num_steps = max(trial.num_steps for trial in finished)
    rung = sorted((trial for trial in trials if trial.num_steps == num_steps), key=lambda trial: trial.lr)
    best = min(rung, key=lambda trial: trial.loss)
    log_lr = _lowest_point(
        np.log10([trial.lr for trial in rung]),
        np.array([trial.loss for trial in rung]),
        cap=initial_loss,
    )
    further = max(0.0, math.log10(horizon / num_steps)) if horizon is not None else 0.0
    log_lr -= HORIZON_EXPONENT * further
    half_width = math.hypot(MEASURED_ERROR_DECADES, HORIZON_EXPONENT_ERROR * further)
    return dataclasses.replace(
        sweep,
        lr=10**log_lr,
        interval=(10 ** (log_lr - half_width), 10 ** (log_lr + half_width)),
        reason=f"{sweep.reason}; {_measured(trials, best, monitored, initial_loss)}{_extrapolated(horizon, num_steps)}",
    )


def _measured(trials: Sequence[Trial], best: Trial, monitored: str, initial_loss: float) -> str:
    number = "1 run" if len(trials) == 1 else f"{len(trials)} runs"
    lowest = f"which {best.num_steps} steps at {best.lr:.1e} bring to {best.loss:.4g}"
    return f"{number} compared on the {monitored}, {lowest}" + (", not below its start" * (best.loss >= initial_loss))


def _extrapolated(horizon: int | None, num_steps: int) -> str:
    if horizon is None:
        return "; longer trainings mostly want less (confirm.horizon)"
    if horizon <= num_steps:
        return ""
    return f"; extrapolated from {num_steps} to {horizon} steps by ({num_steps}/{horizon})**{HORIZON_EXPONENT}"


def _lowest_point(x: FloatArray, losses: FloatArray, *, cap: float) -> float:
    """Where a parabola through the lowest loss and its neighbours is lowest; the lowest itself at an end.

    Losses above ``cap`` count as ``cap`` (without one, as twice the spread of the finite ones above their lowest): how
    far a run diverged says nothing about where the lowest loss is.
    """
    finite = losses[np.isfinite(losses)]
    if not math.isfinite(cap) or cap <= finite.min():
        cap = float(finite.min() + 2 * np.ptp(finite))
    losses = np.minimum(losses, cap)
    i = int(np.argmin(losses))
    if i in (0, len(x) - 1):
        return float(x[i])
    left, right = x[i] - x[i - 1], x[i + 1] - x[i]
    rise_left, rise_right = losses[i - 1] - losses[i], losses[i + 1] - losses[i]
    curvature = rise_left * right + rise_right * left
    return float(x[i] + (0.5 * (rise_left * right**2 - rise_right * left**2) / curvature if curvature > 0 else 0.0))


def _losses_by_position(trials: Sequence[Trial], centre: float) -> dict[int, float]:
    return {round(math.log10(trial.lr / centre) * STEPS_PER_DECADE): trial.loss for trial in trials}


def _lr_at(position: int, centre: float) -> float:
    return float(centre * 10 ** (position / STEPS_PER_DECADE))


def _best(losses: dict[int, float]) -> int:
    """Position of the lowest loss, of equal ones the lowest LR."""
    return min(losses, key=lambda position: (losses[position], position))
