"""Which confirmation runs (trials) to do around a sweep's suggestion: a function of the trials so far.

A third of the budget goes to each of three trials; where the training itself is not longer than that, each trial is the
whole training, and there are as many as fit. The first is at the sweep's LR, the next half a decade above, since short
trainings want more; then the lowest loss gets a neighbour on the side where it has none, or in the wider gap beside it.
A trial is a complete schedule from the initial state, never the beginning of a longer one, so that its learning rate
always comes down before it ends.

On the development jobs, three trials of 500 steps together lose least: fewer and longer ones see no lowest point, more
and shorter ones are too unlike the training (scripts/benchmarks/regret.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from lrrunner.core.lr_estimate import INTERVAL_ERRORS, OptimizerClass, for_training, prior_estimate
from lrrunner.core.regret import expected_regret
from lrrunner.records import Suggestion, Training, Trial, Verdict

NUM_TRIALS, MAX_TRIALS = 3, 6
"""Trials that share the budget, and most trials where each is the whole training."""

STEPS_PER_DECADE = 4
"""Trials lie on a grid of a quarter of a decade around the sweep's LR."""

NEAR, FAR = 2, 4
"""Positions to the next trial: half a decade, and a decade where a trial diverged or learnt nothing."""

EVALUATION_ERROR = 0.2
"""A loss is evaluated on twenty batches or more, so that its standard error is at most 1 / sqrt(20) of a batch's noise:
trials that differ by less are equally good."""


class PlannedTrial(NamedTuple):
    """A confirmation run to do next."""

    lr: float
    num_steps: int


def trial_start(sweep: Suggestion, *, optimizer: OptimizerClass | None, training: Training) -> Suggestion | None:
    """Where trials begin: the sweep's suggestion, or what is usual for the kind of optimizer.

    The latter where noise hides what the sweep did, so that trials may show it; None where they could not.

    Args:
        sweep: What the sweep suggests.
        optimizer: Class of the optimizer; None if it is not known.
        training: The training that the LR is for.
    """
    if sweep.lr is not None:
        return sweep
    if sweep.verdict not in (Verdict.TOO_NOISY, Verdict.NO_DESCENT) or optimizer is None:
        return None
    usual = for_training(prior_estimate(optimizer), training)
    lr, factor = float(10**usual.log_lr), float(10 ** (INTERVAL_ERRORS * usual.error))
    return dataclasses.replace(
        sweep,
        lr=lr,
        interval=(lr / factor, lr * factor),
        expected_regret=expected_regret(usual.error),
        reason=f"{sweep.reason}; confirmation began at an LR that is usual for the kind of optimizer",
    )


def next_trial(
    sweep: Suggestion,
    trials: Sequence[Trial],
    *,
    budget_steps: int,
    training_steps: int | None,
    initial_loss: float = math.nan,
    noise: float = 0.0,
) -> PlannedTrial | None:
    """The next confirmation run, or None when the budget is spent or nothing is left to learn.

    A pure function of reduced results, so every rank plans the same trial.

    Args:
        sweep: Where trials begin (:func:`trial_start`); it must have an LR.
        trials: Trials so far, in order.
        budget_steps: Optimizer steps that all trials together may plan.
        training_steps: Steps of the real training; None if they are not known.
        initial_loss: What their losses are compared with: the same loss before any training; NaN when it is not known.
        noise: Standard deviation of the loss between batches.
    """
    if sweep.lr is None:
        raise ValueError("the sweep must have suggested an LR")
    num_steps, count = _length_and_count(budget_steps, training_steps)
    if len(trials) >= count:
        return None
    losses = {round(STEPS_PER_DECADE * math.log10(trial.lr / sweep.lr)): trial.loss for trial in trials}
    position = _next_position(losses, initial_loss, EVALUATION_ERROR * noise)
    return None if position is None else PlannedTrial(sweep.lr * 10 ** (position / STEPS_PER_DECADE), num_steps)


def _length_and_count(budget_steps: int, training_steps: int | None) -> tuple[int, int]:
    """Steps of each trial, and the number of trials."""
    share = max(1, budget_steps // NUM_TRIALS)
    if training_steps is not None and training_steps <= share:
        return training_steps, min(MAX_TRIALS, budget_steps // training_steps)
    return share, min(NUM_TRIALS, budget_steps // share)


def _next_position(losses: dict[int, float], initial_loss: float, error: float) -> int | None:
    """Where the next trial is; None where no place is left between the lowest loss and a neighbour."""
    if not losses:
        return 0
    best = _best(losses, within=error)
    if best == min(losses) and (math.isinf(losses[best]) or losses[best] > initial_loss + error):
        return best - FAR
    above = min((position for position in losses if position > best), default=None)
    below = max((position for position in losses if position < best), default=None)
    if above is None:
        has_learnt_nothing = abs(losses[best] - initial_loss) <= error
        return best + (FAR if has_learnt_nothing else NEAR)
    if above - best > NEAR:
        return best + NEAR
    if below is None:
        return best - NEAR
    _, _, neighbour = max((abs(side - best), -losses[side], side) for side in (above, below))
    middle = (best + neighbour) // 2
    return None if middle in losses else middle


def _best(losses: dict[int, float], *, within: float) -> int:
    """Position of the lowest loss; of several that differ by less, the nearest to the sweep's, then the lower one.

    The lowest position where all diverged.
    """
    limit = min(losses.values()) + within
    if math.isinf(limit):
        return min(losses)
    return min((p for p, loss in losses.items() if loss <= limit), key=lambda p: (abs(p), p))
