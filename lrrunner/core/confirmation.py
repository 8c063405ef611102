"""Which confirmation runs (trials) to do around a suggestion, and what they support: functions of the trials so far.

Short trials of a fourteenth of the budget come first, a third of a decade apart, and move towards the lowest loss until
it has a worse neighbour on both sides. What is left of the budget goes to three longer trials around it. A trial is a
complete schedule from the initial state, never the beginning of a longer one, so that its learning rate always comes
down before it ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from lrrunner.core.lr_estimate import INTERVAL_ERRORS
from lrrunner.records import Suggestion, Trial, Verdict

STEPS_PER_DECADE = 3
"""Trials lie a third of a decade apart: on the development jobs the loss at the end changes by about a fiftieth of the
achievable improvement from the best LR to its neighbour (`regret.py --landmarks`)."""

SHORT_SHARE = 14
"""The budget holds so many short trials. At most six are run, the rest is for the long ones."""

MAX_SHORT_TRIALS = 6
NUM_LONG_TRIALS = 3

WORTHWHILE = 1.5
"""Long trials must be this much longer than the short ones to give a new answer."""

LOOK_UP = 2
"""A first trial that gains less than the noise of a batch is followed by one so many thirds of a decade above it."""

EVALUATION_ERROR = 0.2
"""A loss is evaluated on twenty batches or more, so that its standard error is at most 1 / sqrt(20) of a batch's noise:
trials that differ by less are equally good."""

DIVERGED_STEPS_BACK = 3
"""A trial that diverged, or ended above the initial loss, is followed by one a decade below it."""

HORIZON_EXPONENT = 0.32
"""The best LR of a training of H steps goes as H**-0.32 (Bjorck et al. 2024, arXiv:2409.19913, for language models)."""

EXTRAPOLATION_ERROR = 0.45
"""Standard error, in decades for each decade from the trials' length to the training's: short trials prefer LRs that
are too high for more steps, by an amount that differs by job. Therefore the sweep's own estimate counts, too: together
they lose 0.037 on 24 development jobs of 400 steps, the trials alone 0.047, the sweep 0.043
(scripts/benchmarks/regret.md)."""

MEASURED_ERROR_DECADES = 0.2
"""Half the width of an interval without extrapolation: a little more than half the distance of two trials."""


class PlannedTrial(NamedTuple):
    """A confirmation run to do next."""

    lr: float
    num_steps: int


class Confirmed(NamedTuple):
    """What a sweep and its confirmation runs support together.

    Attributes:
        suggestion: What to train with.
        measured_steps: Length of the runs that it was read from; None if it is the sweep's own.
        failure_reason: Why the runs confirmed nothing; empty if they did.
    """

    suggestion: Suggestion
    measured_steps: int | None = None
    failure_reason: str = ""


class _Start(NamedTuple):
    """The loss before any training, and how much of a difference to it is noise."""

    loss: float
    noise: float

    def is_near(self, loss: float) -> bool:
        """Whether a loss is neither clearly below nor clearly above it; False if it is not known."""
        return abs(loss - self.loss) <= self.noise

    def has_risen_to(self, loss: float) -> bool:
        """Whether a loss is clearly above it; False if it is not known."""
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
        trials: Trials so far, in order.
        budget_steps: Optimizer steps that all trials together may plan.
        horizon: Steps of the real training; None if not known.
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
    """Length of the short trials: that of the real training, if it is hardly longer and a few of them fit."""
    short = max(1, budget_steps // SHORT_SHARE)
    return horizon if horizon is not None and horizon < WORTHWHILE * short else short


def _next_short(short: dict[int, float], start: _Start) -> int | None:
    """Position of the next short trial; None if the lowest loss lies between worse ones, or no trial gained."""
    if not short:
        return 0
    if len(short) >= MAX_SHORT_TRIALS:
        return None
    best = _best(short, within=EVALUATION_ERROR * start.noise)
    if not math.isfinite(short[best]) or (start.has_risen_to(short[best]) and best == min(short)):
        return min(short) - DIVERGED_STEPS_BACK
    if start.is_near(short[best]):  # a lower LR would mostly stay nearer to the start
        return LOOK_UP if list(short) == [0] else None
    sides = (best - 1, best + 1) if len(short) % 2 else (best + 1, best - 1)
    return next((side for side in sides if side not in short), None)


def _next_long(short: dict[int, float], long: dict[int, float], start: _Start) -> int | None:
    """Position of the next long trial: the best short one, a neighbour, and then the more promising side.

    The lower neighbour, since longer trainings want a smaller LR; the upper one, if the short trials gained nothing.
    Never where one diverged, or above.
    """
    best, side = _best(short, within=EVALUATION_ERROR * start.noise), -1
    if not math.isfinite(short[best]):
        return None
    too_high = min((position for position, loss in (short | long).items() if math.isinf(loss)), default=None)
    if start.is_near(short[best]):
        best, side = (best if start.has_risen_to(short[0]) else 0), 1
        if too_high is not None and best + 1 >= too_high and best + 1 not in long:
            side = -1
    wanted = [best, best + side]
    if all(position in long for position in wanted):
        first, second = (long[position] for position in wanted)
        if math.isinf(min(first, second)):
            wanted.append(min(wanted) - 1)
        else:
            wanted.append(best + 2 * side if second < first else best - side)
    position = next((position for position in wanted if position not in long), None)
    return None if position is None or (too_high is not None and position >= too_high) else position


def confirmed(
    sweep: Suggestion,
    trials: Sequence[Trial],
    *,
    horizon: int | None,
    monitored: str,
    initial_loss: float = math.nan,
) -> Confirmed:
    """The sweep's suggestion, moved and narrowed by its confirmation runs.

    The lowest point of a parabola through the lowest loss of the longest trials and its two neighbours, losses capped
    at the initial one; for a longer training scaled by H**-0.32 and averaged with the sweep's own estimate.

    Args:
        sweep: What the sweep suggests.
        trials: All confirmation runs.
        horizon: Steps of the real training; None if not known.
        monitored: Name of the trials' loss, "validation loss" for example.
        initial_loss: The same loss before any training; NaN when it is not known.

    Returns:
        The sweep's own suggestion with the failure reason if nothing was compared or gained; without an LR if every run
        diverged; else with another LR, interval and reason. An interval ends at a trial's distance from the lowest
        loss, but is as wide as the sweep's own where the lowest loss is the last one that was tried.
    """
    if not trials:
        return Confirmed(sweep)
    diverged = [trial for trial in trials if not math.isfinite(trial.loss)]
    too_high = min((trial.lr for trial in diverged), default=math.inf)
    finished = [trial for trial in trials if trial.lr < too_high]
    if not finished:
        reason = (
            f"{len(diverged)} of {len(trials)} confirmation runs diverged, the lowest at {too_high:.1e}, and none "
            "below that finished; warm up, clip gradients (train.max_grad_norm), or raise confirm.budget_steps"
        )
        return Confirmed(_without_lr(sweep, reason))
    group = _decisive_group(finished, too_high)
    best = group.trials[group.lowest]
    if len(group.x) == 1:
        return not_confirmed(sweep, "a single run compares nothing; raise confirm.budget_steps", too_high=too_high)
    if best.loss >= initial_loss:
        why = f"no run brought the {monitored} below its start, {initial_loss:.4g}"
        return not_confirmed(sweep, why, too_high=too_high)
    log_lr, half_width = _with_the_sweep(sweep, _lowest_point(group, cap=initial_loss), best.num_steps, horizon)
    low, high = 10 ** (log_lr - half_width), 10 ** (log_lr + half_width)
    if sweep.interval is not None and group.lowest == 0:
        low = min(low / 10 ** (1 / STEPS_PER_DECADE), sweep.interval[0])
    if sweep.interval is not None and group.is_last:
        high = max(high * 10 ** (1 / STEPS_PER_DECADE), sweep.interval[1])
    verdict, reasons = sweep.verdict, [sweep.reason]
    if group.is_closed:
        verdict, reasons = Verdict.OK, [sweep.reason] if sweep.verdict == Verdict.OK else []
    reason = "; ".join([*reasons, _measured(trials, best, monitored), *_caveats(group, horizon)])
    found = dataclasses.replace(sweep, lr=10**log_lr, interval=(low, high), verdict=verdict, reason=reason)
    return Confirmed(found, measured_steps=best.num_steps)


def _with_the_sweep(sweep: Suggestion, measured: float, num_steps: int, horizon: int | None) -> tuple[float, float]:
    """log10 of the LR for the real training, and half its interval.

    What was measured at the length of the training stands. What was measured in shorter trials is scaled by H**-0.32
    and is one of two observations: the other is the sweep's estimate, and each counts by its precision.
    """
    further = max(0.0, math.log10(horizon / num_steps)) if horizon is not None else 0.0
    log_lr, error = measured - HORIZON_EXPONENT * further, EXTRAPOLATION_ERROR * further
    if sweep.interval is not None and sweep.lr is not None and error > 0:
        low, high = map(math.log10, sweep.interval)
        sweep_error = (high - low) / 2 / INTERVAL_ERRORS
        weight = sweep_error**2 / (sweep_error**2 + error**2)
        log_lr = weight * log_lr + (1 - weight) * math.log10(sweep.lr)
        error *= math.sqrt(weight)
    return log_lr, math.hypot(MEASURED_ERROR_DECADES, INTERVAL_ERRORS * error)


def not_confirmed(sweep: Suggestion, why: str, *, too_high: float = math.inf) -> Confirmed:
    """The sweep's own suggestion, unconfirmed.

    Args:
        sweep: What the sweep suggests; it must have an LR.
        why: The failure reason.
        too_high: The lowest LR that diverged; the sweep's own LR is dropped from there on.
    """
    if sweep.lr is None:
        raise ValueError("the sweep must have suggested an LR")
    if sweep.lr >= too_high:
        return Confirmed(_without_lr(sweep, f"a confirmation run diverged at {too_high:.1e}, and below it {why}"))
    return Confirmed(dataclasses.replace(sweep, reason=f"{sweep.reason}; not confirmed: {why}"), failure_reason=why)


def _without_lr(sweep: Suggestion, reason: str) -> Suggestion:
    return dataclasses.replace(sweep, lr=None, interval=None, verdict=Verdict.NO_DESCENT, reason=reason)


class _TrialGroup(NamedTuple):
    """Trials of one length by LR, the position of the lowest loss, and a divergence above them if one was seen."""

    trials: list[Trial]
    x: list[float]
    losses: list[float]
    lowest: int

    @property
    def is_last(self) -> bool:
        """Whether nothing higher was tried."""
        return self.lowest == len(self.x) - 1

    @property
    def is_closed(self) -> bool:
        """Whether the lowest loss has a worse one on both sides."""
        return 0 < self.lowest < len(self.x) - 1


def _decisive_group(finished: Sequence[Trial], too_high: float) -> _TrialGroup:
    """The longest trials of which there are several."""
    groups = []
    for num_steps in sorted({trial.num_steps for trial in finished}, reverse=True):
        trials = sorted((trial for trial in finished if trial.num_steps == num_steps), key=lambda trial: trial.lr)
        lrs, losses = [trial.lr for trial in trials], [trial.loss for trial in trials]
        if math.isfinite(too_high):
            lrs, losses = [*lrs, too_high], [*losses, math.inf]
        groups.append(_TrialGroup(trials, [math.log10(lr) for lr in lrs], losses, losses.index(min(losses))))
    return next((group for group in groups if len(group.x) > 1), groups[0])


def _measured(trials: Sequence[Trial], best: Trial, monitored: str) -> str:
    number = "1 run" if len(trials) == 1 else f"{len(trials)} runs"
    return (
        f"{number} compared on the {monitored}, which {best.num_steps} steps at {best.lr:.1e} bring to {best.loss:.4g}"
    )


def _caveats(group: _TrialGroup, horizon: int | None) -> list[str]:
    """What the measurement does not cover."""
    num_steps = group.trials[group.lowest].num_steps
    caveats = []
    if not group.is_closed:
        caveats.append(f"nothing {'lower' if group.lowest == 0 else 'higher'} was tried (confirm.budget_steps)")
    if horizon is None:
        caveats.append("longer trainings mostly want less (train.num_steps)")
    elif horizon > num_steps:
        caveats.append(
            f"extrapolated from {num_steps} to {horizon} steps by ({num_steps}/{horizon})**{HORIZON_EXPONENT}"
        )
    return caveats


def _lowest_point(group: _TrialGroup, *, cap: float) -> float:
    """Where a parabola through the lowest loss and its neighbours is lowest; the lowest itself at an end.

    Losses above ``cap`` count as ``cap`` (without one, as twice the spread of the finite ones above their lowest): how
    far a run diverged has nothing to do with where the lowest loss is.
    """
    x, i = group.x, group.lowest
    if not group.is_closed:
        return x[i]
    finite = [loss for loss in group.losses if math.isfinite(loss)]
    if not math.isfinite(cap) or cap <= min(finite):
        cap = min(finite) + 2 * (max(finite) - min(finite))
    left, right = x[i] - x[i - 1], x[i + 1] - x[i]
    rise_left, rise_right = (min(group.losses[j], cap) - group.losses[i] for j in (i - 1, i + 1))
    curvature = rise_left * right + rise_right * left
    shift = 0.5 * (rise_left * right**2 - rise_right * left**2) / curvature if curvature > 0 else 0.0
    return x[i] + min(max(shift, -left / 2), right / 2)


def _losses_by_position(trials: Sequence[Trial], centre: float) -> dict[int, float]:
    return {round(math.log10(trial.lr / centre) * STEPS_PER_DECADE): trial.loss for trial in trials}


def _lr_at(position: int, centre: float) -> float:
    return float(centre * 10 ** (position / STEPS_PER_DECADE))


def _best(losses: dict[int, float], *, within: float) -> int:
    """Position of the lowest loss; of those within so much of it the nearest to the sweep's LR, then the lowest LR."""
    enough = min(losses.values()) + within
    return min((abs(position), position) for position, loss in losses.items() if loss <= enough)[1]
