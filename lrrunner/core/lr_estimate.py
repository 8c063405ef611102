"""One estimate of the best LR from all landmarks of a sweep, each weighted by what it knows, and a weak prior.

On the development jobs of the benchmark, the best LR of a training lies so far below each landmark on average
(``OFFSETS``), less where the sweep takes more steps for a decade (``STEPS_EXPONENTS``), with errors that have the
covariance ``COVARIANCE`` over jobs. To that the landmark's own error on this sweep is added. The estimate is the
generalised least-squares mean; the class of the optimizer, where it is known, counts as one more observation.

All constants come from ``scripts/benchmarks/fit_estimate.py``, from development jobs alone; their effect is in
``scripts/benchmarks/regret.md``.

References:
    Aitken 1936, doi:10.1017/S0370164600014346 (generalised least squares); Lange, Little and Taylor 1989,
    doi:10.1080/01621459.1989.10478852 (Student weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from lrrunner.core.landmarks import Landmark
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.records import Training

NAMES = ("half_fall", "most_of_fall", "minimum", "blow_up", "gradient_rise")

REFERENCE_STEPS_PER_DECADE = 99 / 8
"""Of a sweep of 100 steps over 8 decades."""

OFFSETS = (-0.12, 0.48, 0.77, 1.57, 0.98)
"""Decades from the best LR up to each landmark of ``NAMES``, at the reference."""

STEPS_EXPONENTS = (-0.71, -0.66, -0.33, -0.26, -0.70)
"""Decades that each landmark moves for ten times the steps: a slower sweep trains on the way."""

COVARIANCE = (
    (0.36, 0.18, 0.12, 0.04, 0.00),
    (0.18, 0.26, 0.13, 0.06, 0.02),
    (0.12, 0.13, 0.20, 0.09, 0.04),
    (0.04, 0.06, 0.09, 0.28, 0.10),
    (0.00, 0.02, 0.04, 0.10, 0.58),
)
"""Of the offsets over jobs, in square decades."""

LANDMARK_FREEDOM, PRIOR_FREEDOM = 4.0, 3.0
"""Degrees of freedom of Student's distribution: observations far from the others lose their weight."""

PRIOR_ERROR_DECADES = 0.4

REFERENCE_NUM_STEPS = 400
"""Steps of the trainings, at a constant LR, that all these constants come from."""

DEFAULT_EPOCHS = 10
LONGEST_NUM_STEPS = 5000
"""A training of unknown length is taken to be so many epochs, but neither shorter than the reference nor longer than
the longest trainings that were measured."""

LENGTH_EXPONENT, LENGTH_EXPONENT_ERROR = -0.35, 0.25
"""Decades, and their standard error over jobs, that the best LR moves for a training of ten times the steps."""

SCHEDULE_DECADES = {"constant": 0.0, "linear": 0.36, "cosine": 0.36}
"""Decades from the best constant LR up to the best peak of a schedule."""

SCHEDULE_ERROR = 0.18
"""Standard error of these over jobs."""

INTERVAL_ERRORS = 1.645
"""Standard errors to either side of an LR that make up its interval: 90 % of a normal distribution."""

MAX_ITERATIONS = 50


class OptimizerClass(StrEnum):
    """Optimizers whose LR has about the same meaning."""

    ADAPTIVE = "adaptive"
    """Steps of about the LR in each coordinate: Adam and its relatives, RMSprop."""
    ADAGRAD = "adagrad"
    """The same with a sum of squares, which makes steps smaller and smaller."""
    MOMENTUM = "momentum"
    SGD = "sgd"
    SIGN = "sign"
    """Steps of exactly the LR in each coordinate: Lion, signSGD."""
    ORTHOGONAL = "orthogonal"
    """Steps of the LR in each direction of a matrix: Muon."""


PRIOR_LOG_LRS = {
    OptimizerClass.ADAPTIVE: -2.16,
    OptimizerClass.ADAGRAD: -1.15,
    OptimizerClass.MOMENTUM: -1.49,
    OptimizerClass.SGD: -0.75,
    OptimizerClass.SIGN: -2.95,
    OptimizerClass.ORTHOGONAL: -1.99,
}
"""Means over the development jobs of each class, together with two more at what is usual."""


class Estimate(NamedTuple):
    """The best LR as far as a sweep shows it.

    Attributes:
        log_lr: log10 of the LR.
        error: Standard error in decades.
        weights: Name of each observation -> its share in the estimate; ``prior`` is the optimizer's class.
        log_lrs: Name of each observation -> log10 of the best LR according to it alone.
    """

    log_lr: float
    error: float
    weights: dict[str, float]
    log_lrs: dict[str, float]


def estimate(found: Mapping[str, Landmark], *, optimizer: OptimizerClass | None = None) -> Estimate | None:
    """The precision-weighted mean of what each landmark says; None without any landmark.

    Args:
        found: Landmarks of the sweep.
        optimizer: Class of the optimizer; None leaves the prior out.
    """
    indices = [i for i, name in enumerate(NAMES) if name in found]
    if not indices:
        return None
    said = np.array([_said(i, found[NAMES[i]]) for i in indices])
    errors = np.array([found[NAMES[i]].error for i in indices])
    covariance = np.array(COVARIANCE)[np.ix_(indices, indices)] + np.diag(errors**2)
    prior = None if optimizer is None else PRIOR_LOG_LRS[optimizer]
    log_lr, precisions, prior_precision = _student_mean(said, covariance, prior)
    total = precisions.sum() + prior_precision
    weights = {NAMES[i]: float(precision / total) for i, precision in zip(indices, precisions, strict=True)}
    log_lrs = {NAMES[i]: float(one) for i, one in zip(indices, said, strict=True)}
    if prior is not None:
        weights["prior"], log_lrs["prior"] = float(prior_precision / total), prior
    return Estimate(log_lr, float(total**-0.5), weights, log_lrs)


def prior_estimate(optimizer: OptimizerClass) -> Estimate:
    """The best LR as far as the kind of optimizer shows it, without a sweep."""
    log_lr = PRIOR_LOG_LRS[optimizer]
    return Estimate(log_lr, PRIOR_ERROR_DECADES, {"prior": 1.0}, {"prior": log_lr})


def with_length(training: Training, *, epoch_steps: int | None) -> Training:
    """The training with a length: ten epochs, from 400 to 5,000 steps, where it was not told.

    Args:
        training: What is known of the training.
        epoch_steps: Optimizer steps of an epoch; None if they are not known, which gives 400.
    """
    if training.num_steps is not None:
        return training
    num_steps = min(max(REFERENCE_NUM_STEPS, DEFAULT_EPOCHS * (epoch_steps or 0)), LONGEST_NUM_STEPS)
    return dataclasses.replace(training, num_steps=num_steps, is_assumed=True)


def for_training(found: Estimate, training: Training) -> Estimate:
    """The estimate for a training of another length or schedule than those on which the constants were fitted.

    A training without a length is taken to be the reference.
    """
    num_steps = training.num_steps or REFERENCE_NUM_STEPS
    further = float(np.log10(num_steps / REFERENCE_NUM_STEPS))
    schedule = SCHEDULE_DECADES[training.schedule]
    error = np.hypot(found.error, LENGTH_EXPONENT_ERROR * further)
    if schedule:
        error = np.hypot(error, SCHEDULE_ERROR)
    shift = LENGTH_EXPONENT * further + schedule
    log_lrs = {name: log_lr + shift for name, log_lr in found.log_lrs.items()}
    return found._replace(log_lr=found.log_lr + shift, error=float(error), log_lrs=log_lrs)


def _said(index: int, landmark: Landmark) -> float:
    """log10 of the best LR according to one landmark."""
    slower = np.log10(landmark.steps_per_decade / REFERENCE_STEPS_PER_DECADE)
    return float(landmark.log_lr - OFFSETS[index] - STEPS_EXPONENTS[index] * slower)


def _student_mean(said: FloatArray, covariance: FloatArray, prior: float | None) -> tuple[float, FloatArray, float]:
    """Mean under Student's distribution by reweighting, the precision each observation adds, and the prior's."""
    errors = np.sqrt(np.diag(covariance))
    trust, prior_precision = np.ones(len(said)), 0.0 if prior is None else PRIOR_ERROR_DECADES**-2
    centre, mean = 0.0 if prior is None else prior, np.inf
    for _ in range(MAX_ITERATIONS):
        precisions = _precisions(covariance / np.sqrt(np.outer(trust, trust)))
        before, mean = mean, (precisions @ said + prior_precision * centre) / (precisions.sum() + prior_precision)
        if abs(mean - before) < 1e-12:
            break
        trust = np.minimum(1, (LANDMARK_FREEDOM + 1) / (LANDMARK_FREEDOM + ((said - mean) / errors) ** 2))
        if prior is not None:
            distance = (mean - prior) / PRIOR_ERROR_DECADES
            prior_precision = (PRIOR_FREEDOM + 1) / (PRIOR_FREEDOM + distance**2) / PRIOR_ERROR_DECADES**2
    return float(mean), precisions, float(prior_precision)


def _precisions(covariance: FloatArray) -> FloatArray:
    """What each observation adds to the precision of the mean, none less than nothing: those are left out."""
    kept = np.arange(len(covariance))
    while True:
        added = np.linalg.inv(covariance[np.ix_(kept, kept)]).sum(axis=0)
        if (added >= 0).all() or len(kept) == 1:
            precisions = np.zeros(len(covariance))
            precisions[kept] = added
            return precisions
        kept = kept[added >= 0]
