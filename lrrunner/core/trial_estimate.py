"""The best LR of a training after a sweep and a few short trainings (trials), as a distribution over log LR.

Before the trials it is what the sweep says: Student's distribution around the sweep's LR. A trial of h steps at x
decades ends where a bowl says that has its lowest point at z + b log10(h / H), with z the best log LR of the training
of H steps, and b what the best LR moves for ten times the steps (``lr_estimate``). Height and depth of the bowl are the
trials' own, its curvature is one that jobs have (``regret``). Bayes' rule weighs every z, b and curvature by how well
the losses fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.lr_estimate import (
    INTERVAL_ERRORS,
    LENGTH_EXPONENT,
    LENGTH_EXPONENT_ERROR,
    PRIOR_FREEDOM,
    REFERENCE_NUM_STEPS,
)
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.core.regret import CURVATURE_WEIGHTS, CURVATURES, DEVIATIONS, expected_regret, regret

SEED_NOISE = 0.03
"""Standard deviation of a trial's loss over seeds, as a share of the fall that the trials achieve. On development jobs,
half or twice as much changes the mean regret by less than 0.002."""

GRID_DECADES = 0.02
MARGIN_DECADES = 1.5
"""The grid of log LRs: its spacing, and how far it goes beyond the sweep's LR and the trials."""

TRIALS_ERROR = 0.35
"""Standard error, in decades, of what three trials of the training's own length say. With it, the expected regret after
500 steps is about that of the development jobs."""

BOWL_ERROR = 0.13
"""Standard error, in decades, that is left when the bowl is known: real ones are not as smooth. With it, nine of ten
intervals hold on the development jobs."""

INTERVAL_SHARE = 0.9


class TrialLosses(NamedTuple):
    """What trials ended at.

    Attributes:
        log_lrs: log10 of their LRs, shape (K,).
        num_steps: Their steps, shape (K,).
        losses: Their losses, shape (K,); infinite where one diverged.
        errors: Standard errors of the losses' differences from the lowest, in the unit of the loss, shape (K,).
        initial: The same loss before any training; NaN if it is not known.
    """

    log_lrs: Sequence[float]
    num_steps: Sequence[int]
    losses: Sequence[float]
    errors: Sequence[float]
    initial: float


class TrialEstimate(NamedTuple):
    """The best log LR of the training.

    Attributes:
        log_lr: Its mean.
        low: 5 % quantile.
        high: 95 % quantile.
        expected_regret: What ``log_lr`` is expected to lose.
    """

    log_lr: float
    low: float
    high: float
    expected_regret: float


def trial_estimate(
    trials: TrialLosses, *, sweep_log_lr: float, sweep_error: float, training_steps: int | None
) -> TrialEstimate:
    """Combine trials with what a sweep says.

    Args:
        trials: At least one of them must have ended below the initial loss.
        sweep_log_lr: log10 of the sweep's LR, for this training.
        sweep_error: Its standard error in decades.
        training_steps: Steps of the training; None if they are not known.
    """
    x = np.asarray(trials.log_lrs)
    limit = x[~np.isfinite(trials.losses)].min(initial=math.inf)
    grid = np.arange(
        min(sweep_log_lr, x.min()) - MARGIN_DECADES, max(sweep_log_lr, x.max()) + MARGIN_DECADES, GRID_DECADES
    )
    distance = (grid - sweep_log_lr) / sweep_error
    prior = -(PRIOR_FREEDOM + 1) / 2 * np.log1p(distance**2 / PRIOR_FREEDOM)
    prior[grid >= limit] = -np.inf
    joint = prior[:, None] + _log_likelihood(trials, grid, training_steps or REFERENCE_NUM_STEPS)
    joint = np.exp(joint - joint.max())
    weights, by_curvature = joint.sum(axis=1) / joint.sum(), joint.sum(axis=0) / joint.sum()
    log_lr = float(weights @ grid)
    weights = _spread(weights)
    low, high = np.interp([(1 - INTERVAL_SHARE) / 2, (1 + INTERVAL_SHARE) / 2], np.cumsum(weights), grid)
    lost = regret(log_lr - grid[:, None], CURVATURES)
    return TrialEstimate(log_lr, float(low), min(float(high), limit), float(weights @ lost @ by_curvature))


def _spread(weights: FloatArray) -> FloatArray:
    """Weights on the grid after a normal distribution of ``BOWL_ERROR`` was added."""
    places = np.arange(-MARGIN_DECADES, MARGIN_DECADES, GRID_DECADES)
    kernel = np.exp(-0.5 * (places / BOWL_ERROR) ** 2)
    return np.asarray(np.convolve(weights, kernel / kernel.sum(), mode="same"))


def _log_likelihood(trials: TrialLosses, grid: FloatArray, training_steps: int) -> FloatArray:
    """Of each best log LR and curvature, over the exponents of the length; shape (len(grid), len(CURVATURES))."""
    x, num_steps = np.asarray(trials.log_lrs), np.asarray(trials.num_steps, dtype=float)
    found, noise = _shares(trials)
    further = np.log10(num_steps / training_steps)
    total = np.full((len(grid), len(CURVATURES)), -np.inf)
    for deviation in DEVIATIONS:
        exponent = LENGTH_EXPONENT + LENGTH_EXPONENT_ERROR * deviation
        above = x - (grid[:, None, None] + exponent * further)
        rest = found - regret(above, CURVATURES[:, None])
        fit = sum(_log_fit(rest[..., num_steps == n], noise[num_steps == n]) for n in np.unique(num_steps))
        total = np.logaddexp(total, fit - deviation**2 / 2)
        if not further.any():
            break
    return np.asarray(total + np.log(CURVATURE_WEIGHTS))


def _log_fit(rest: FloatArray, noise: FloatArray) -> FloatArray:
    """Log likelihood of trials of one length, whose lowest loss is not known: their mean is taken out."""
    precision = noise**-2
    mean = (rest @ precision) / precision.sum()
    return np.asarray(-0.5 * ((rest - mean[..., None]) ** 2 @ precision))


def _shares(trials: TrialLosses) -> tuple[FloatArray, FloatArray]:
    """Losses above the lowest, and their standard errors, as shares of the fall; what lost everything counts as 1."""
    losses = np.asarray(trials.losses, dtype=float)
    finite = losses[np.isfinite(losses)]
    lowest = finite.min()
    start = trials.initial if trials.initial > lowest else finite.max()
    fall = start - lowest or 1.0
    errors = np.asarray(trials.errors) / fall
    return np.minimum((np.minimum(losses, max(start, lowest)) - lowest) / fall, 1.0), np.hypot(SEED_NOISE, errors)


def regret_with_trials(sweep_error: float, *, trial_steps: int, training_steps: int) -> float:
    """The expected regret after three trials that have not been done yet.

    Args:
        sweep_error: Standard error of the sweep's LR, in decades.
        trial_steps: Steps of each trial.
        training_steps: Steps of the training.
    """
    further = max(0.0, math.log10(training_steps / trial_steps))
    trials_error = math.hypot(TRIALS_ERROR, LENGTH_EXPONENT_ERROR * further)
    return expected_regret((sweep_error**-2 + trials_error**-2) ** -0.5)


def interval_error(low: float, high: float) -> float:
    """Standard error in decades of an LR with this interval."""
    return math.log10(high / low) / 2 / INTERVAL_ERRORS
