"""Which short trainings to run around a suggestion, and what they say: pure functions of the trials so far."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from lrrunner.records import Suggestion, Trial

NUM_TRIALS = 5
STEP_DECADES = 0.5


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
    assert sweep.lr is not None
    num_steps = min(horizon or budget_steps, budget_steps // NUM_TRIALS)
    if num_steps < 1 or (len(trials) + 1) * num_steps > budget_steps:
        return None
    if len(trials) < 3:
        return PlannedTrial(sweep.lr * 10 ** (STEP_DECADES * (0, -1, 1)[len(trials)]), num_steps)
    best = min(trials, key=lambda trial: trial.loss)
    done = {round(math.log10(trial.lr / sweep.lr) / STEP_DECADES) for trial in trials}
    position = round(math.log10(best.lr / sweep.lr) / STEP_DECADES)
    for neighbour in (position + 1, position - 1):
        if neighbour not in done:
            return PlannedTrial(sweep.lr * 10 ** (STEP_DECADES * neighbour), num_steps)
    return None


def confirmed(sweep: Suggestion, trials: Sequence[Trial], *, horizon: int | None, monitored: str) -> Suggestion:
    """The sweep's suggestion, moved and narrowed by its confirmation runs.

    Args:
        sweep: What the sweep suggests.
        trials: All confirmation runs.
        horizon: Steps of the real training; None when it is not known.
        monitored: What the trials' losses are, in words: "validation loss", say.

    Returns:
        The same suggestion when no trial finished; else with another LR, interval and reason.
    """
    finished = [trial for trial in trials if math.isfinite(trial.loss)]
    if not finished:
        return sweep
    best = min(finished, key=lambda trial: trial.loss)
    reason = f"{sweep.reason}; {len(trials)} runs of {best.num_steps} steps compared on the {monitored}"
    half = 10 ** (STEP_DECADES / 2)
    return dataclasses.replace(sweep, lr=best.lr, interval=(best.lr / half, best.lr * half), reason=reason)
