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

LOOK_UP = 2
"""A first trial that learns less than the noise of a batch is followed by one so many thirds of a decade above it."""

DIVERGED_STEPS_BACK = 3
"""A trial that diverged, or ended above the initial loss, is followed by one a decade below it."""

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


class _Start(NamedTuple):
    """The loss before any training, and how much of a difference to it is noise."""

    loss: float
    noise: float

    def is_above(self, loss: float) -> bool:
        """Whether a loss has clearly fallen; yes where that is not known."""
        return math.isnan(self.loss) or loss < self.loss - self.noise

    def is_below(self, loss: float) -> bool:
        """Whether a loss has clearly risen; no where that is not known."""
        return loss > self.loss + self.noise


def next_trial(
    sweep: Suggestion,
    trials: Sequence[Trial],
    *,
    budget_steps: int,
    horizon: int | None,
    initial_loss: float = math.nan,
    noise: float = 0.0,
) -> PlannedTrial | None:
    """The next confirmation run, or None when the budget is spent or nothing is left to learn.

    A pure function of reduced results, so every rank plans the same trial.

    Args:
        sweep: What the sweep suggests; it must have an LR.
        trials: What was run so far, in order.
        budget_steps: Optimizer steps that all trials together may plan.
        horizon: Steps of the real training; None when it is not known.
        initial_loss: What their losses are compared with: the same loss before any training; NaN when it is not known.
        noise: Standard deviation of the loss between batches.
    """
    if sweep.lr is None:
        raise ValueError("the sweep must have suggested an LR")
    left = budget_steps - sum(trial.num_steps for trial in trials)
    short_steps = _short_steps(budget_steps, horizon)
    short = _losses_by_position([trial for trial in trials if trial.num_steps == short_steps], sweep.lr)
    long_trials = [trial for trial in trials if trial.num_steps != short_steps]
    start = _Start(initial_loss, noise)
    if not long_trials and (position := _next_short(short, start)) is not None and short_steps <= left:
        return PlannedTrial(_lr_at(position, sweep.lr), short_steps)
    long_steps = long_trials[0].num_steps if long_trials else min(horizon or left, left // NUM_LONG_TRIALS)
    if not long_trials and long_steps < WORTHWHILE * short_steps:
        return None
    next_position = _next_long(short, _losses_by_position(long_trials, sweep.lr), start)
    return None if next_position is None else PlannedTrial(_lr_at(next_position, sweep.lr), long_steps)


def _short_steps(budget_steps: int, horizon: int | None) -> int:
    """Length of the short trials: the whole training, where that is hardly longer and a few of them fit."""
    short = max(1, budget_steps // SHORT_SHARE)
    return horizon if horizon is not None and horizon < WORTHWHILE * short else short


def _next_short(short: dict[int, float], start: _Start) -> int | None:
    """Where the next short trial goes; None when the lowest loss lies between worse ones, or nothing is learnt."""
    if not short:
        return 0
    if len(short) >= MAX_SHORT_TRIALS:
        return None
    best = _best(short)
    if not math.isfinite(short[best]) or start.is_below(short[best]):
        return min(short) - DIVERGED_STEPS_BACK
    if not start.is_above(short[best]):  # near the initial loss, less is mostly nearer, and says nothing
        return LOOK_UP if list(short) == [0] else None
    sides = (best - 1, best + 1) if len(short) % 2 else (best + 1, best - 1)
    return next((side for side in sides if side not in short), None)


def _next_long(short: dict[int, float], long: dict[int, float], start: _Start) -> int | None:
    """Where the next long trial goes: the best short one, a neighbour, and then the side that promises more.

    The lower neighbour, since longer trainings want less; the upper one, where the short trials learnt nothing.
    """
    best = _best(short)
    if not math.isfinite(short[best]):
        return None
    side = -1
    if not start.is_above(short[best]):
        best, side = 0, 1
    if best not in long:
        return best
    if best + side not in long:
        return best + side
    better = best + side if long[best + side] < long[best] else best
    if not math.isfinite(long[better]):
        better = min(best, best + side)
        third = better - 1
    else:
        third = best + 2 * side if better != best else best - side
    return None if third in long or not math.isfinite(short.get(third, 0.0)) else third


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
    diverged = [trial for trial in trials if not math.isfinite(trial.loss)]
    too_high = min((trial.lr for trial in diverged), default=math.inf)
    finished = [trial for trial in trials if trial.lr < too_high]
    if not finished:
        reason = (
            f"{len(diverged)} of {len(trials)} confirmation runs diverged, the lowest at {too_high:.1e}, and none "
            "below that finished; warm up, clip gradients (train.max_grad_norm), or raise confirm.budget_steps"
        )
        return dataclasses.replace(sweep, lr=None, interval=None, verdict=Verdict.NO_DESCENT, reason=reason)
    num_steps = max(trial.num_steps for trial in finished)
    rung = {trial.lr: trial for trial in finished if trial.num_steps == num_steps}
    best = min(rung.values(), key=lambda trial: (trial.loss, trial.lr))
    losses = {lr: trial.loss for lr, trial in rung.items()} | ({too_high: math.inf} if diverged else {})
    lrs = sorted(losses)
    log_lr = _lowest_point(np.log10(lrs), np.array([losses[lr] for lr in lrs]), cap=initial_loss)
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
    shift = 0.5 * (rise_left * right**2 - rise_right * left**2) / curvature if curvature > 0 else 0.0
    return float(x[i] + np.clip(shift, -left / 2, right / 2))


def _losses_by_position(trials: Sequence[Trial], centre: float) -> dict[int, float]:
    return {round(math.log10(trial.lr / centre) * STEPS_PER_DECADE): trial.loss for trial in trials}


def _lr_at(position: int, centre: float) -> float:
    return float(centre * 10 ** (position / STEPS_PER_DECADE))


def _best(losses: dict[int, float]) -> int:
    """Position of the lowest loss, of equal ones the lowest LR."""
    return min(losses, key=lambda position: (losses[position], position))
