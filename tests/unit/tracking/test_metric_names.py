"""Which numbers of a record MLflow gets."""

from __future__ import annotations

import math

from lrrunner.records import Step, Trial
from lrrunner.tracking.metric_names import MetricPoint, step_point, trial_point, trial_step_point

STEP = Step(step=3, lr=0.01, loss=2.5, smoothed_loss=2.25, timestamp_ms=1000)


def test_a_step_has_its_finite_numbers() -> None:
    """Whatever was not measured is absent, not NaN."""
    assert step_point(STEP, "pass_1/") == MetricPoint(
        {"lr": 0.01, "log10_lr": -2.0, "loss": 2.5, "smoothed_loss": 2.25}, 3, 1000, "pass_1/"
    )


def test_a_skipped_or_non_finite_step_is_no_point() -> None:
    """MLflow would store infinity as 1.8e308."""
    assert step_point(Step(step=0, lr=0.1, loss=math.inf)).values == {}
    assert step_point(Step(step=0, lr=0.1, loss=1.0, skipped=True)).values == {}


def test_a_confirmation_run_has_its_lr_and_loss() -> None:
    """Of each step below its own number, of its end by its number."""
    assert trial_step_point(2, STEP) == MetricPoint({"lr": 0.01, "loss": 2.5}, 3, 1000, "trial_2/")
    trial = Trial(trial=2, lr=0.5, num_steps=9, num_steps_run=9, loss=1.5)
    assert trial_point(trial, timestamp_ms=7) == MetricPoint({"lr": 0.5, "loss": 1.5}, 2, 7, "confirm/")
    diverged = Trial(trial=2, lr=0.5, num_steps=9, num_steps_run=3, loss=math.inf)
    assert trial_point(diverged, timestamp_ms=7).values == {}
