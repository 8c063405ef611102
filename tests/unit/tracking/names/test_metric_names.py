"""Which numbers of a record MLflow gets."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lrrunner.config.schema import SweepConfig
from lrrunner.records import Confirmation, RangeTestResult, Step, Stop, StopReason, Suggestion, Trial, Verdict
from lrrunner.tracking.names.metric_names import (
    MetricPoint,
    live_point,
    pass_points,
    pooled_points,
    result_metrics,
    result_tags,
    step_point,
    trial_point,
    trial_step_point,
)

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
    """MLflow shows the last value: of a cosine schedule that is nearly zero, so the run's own LR has another name."""
    assert trial_step_point(2, STEP) == MetricPoint({"scheduled_lr": 0.01, "loss": 2.5}, 3, 1000, "trial_2/")
    trial = Trial(trial=2, lr=0.5, num_steps=9, num_steps_run=9, loss=1.5)
    values = {"trial_2/peak_lr": 0.5, "confirm/peak_lr": 0.5, "confirm/loss": 1.5}
    assert trial_point(trial, timestamp_ms=7) == MetricPoint(values, 2, 7)
    diverged = Trial(trial=2, lr=0.5, num_steps=9, num_steps_run=3, loss=math.inf)
    assert trial_point(diverged, timestamp_ms=7).values == {"trial_2/peak_lr": 0.5}


def test_a_confirmed_lr_stands_beside_the_best_trial_and_the_sweep() -> None:
    """None of them is the LR of the trial that came last."""
    test = finished(STEP, lr=0.2)
    confirmation = Confirmation(
        schedule="cosine", monitored="loss", horizon=None, budget_steps=9, sweep=test.suggestion, measured_steps=9
    )
    trials = tuple(
        Trial(trial=number, lr=lr, num_steps=steps, num_steps_run=steps, loss=loss)
        for number, (lr, steps, loss) in enumerate([(0.1, 9, 1.5), (0.3, 9, 1.0), (0.6, 9, 2.0)])
    )
    confirmed = dataclasses.replace(test, trials=trials, confirmation=confirmation)
    metrics = result_metrics(confirmed)
    assert {key: value for key, value in metrics.items() if key.startswith("confirm/")} == {
        "confirm/confirmed_lr": 0.2,
        "confirm/best_trial_lr": 0.3,
        "confirm/best_trial_loss": 1.0,
        "confirm/sweep_lr": 0.2,
    }


def finished(*steps: Step, lr: float | None = 0.003, curve_pass: int | None = None) -> RangeTestResult:
    interval = None if lr is None else (lr / 2, lr * 2)
    suggestion = Suggestion(lr=lr, method="steepest", verdict=Verdict.OK, reason="why", interval=interval)
    stop = Stop(reason=StopReason.DIVERGED, step=1)
    return RangeTestResult(
        steps=steps,
        stops=(stop,),
        suggestion=suggestion,
        world_size=1,
        global_batch_size=64,
        curve_pass=curve_pass,
    )


@pytest.mark.parametrize(("repeats", "prefix"), [(1, ""), (3, "repeat_2/")])
def test_a_step_of_a_single_pass_has_its_final_name_at_once(repeats: int, prefix: str) -> None:
    """MLflow cannot take back a metric, so the plain names are left to the mean of several repeats."""
    sweep = SweepConfig(auto_range=False, repeats=repeats)
    assert live_point(Step(repeat=2, step=0, lr=0.1, loss=1.0), sweep).prefix == prefix


def test_only_the_curve_has_the_plain_names() -> None:
    """Other passes are kept under their own, and so are all passes of a sweep that has not ended."""
    steps = [Step(sweep_pass=number, step=0, lr=0.1, loss=1.0 + number) for number in (0, 1)]
    points = pass_points(steps, SweepConfig(auto_range=True), curve_pass=1)
    assert [(point.prefix, point.values["loss"]) for point in points] == [("pass_0/", 1.0), ("", 2.0)]
    unknown = pass_points(steps, SweepConfig(auto_range=True, repeats=2), curve_pass=None)
    assert [point.prefix for point in unknown] == ["pass_0/repeat_0/", "pass_1/repeat_0/"]


def test_repeats_have_their_own_names_and_their_mean_the_plain_ones() -> None:
    """A single repeat has no mean of its own."""
    steps = [Step(repeat=number, step=0, lr=0.1, loss=1.0 + number, smoothed_loss=1.0 + number) for number in (0, 1)]
    test = finished(*steps, curve_pass=0)
    pooled = pooled_points(test, SweepConfig(repeats=2))
    assert [(point.prefix, point.values["loss"]) for point in pooled] == [("", 1.5)]
    assert list(pooled_points(test, SweepConfig(repeats=1))) == []


def test_the_result_is_in_metrics_and_tags() -> None:
    """The runs table shows them; without a suggestion there is no LR to show."""
    last = Step(step=1, lr=0.2, loss=math.inf, smoothed_loss=math.inf)
    test = finished(Step(step=0, lr=0.1, loss=1.0, smoothed_loss=0.9), last)
    assert result_metrics(test) == {
        "suggested_lr": 0.003,
        "suggested_lr_low": 0.0015,
        "suggested_lr_high": 0.006,
        "log10_suggested_lr": math.log10(0.003),
        "best_loss": 0.9,
    }
    assert result_tags(test) == {
        "lrrunner.verdict": "ok",
        "verdict": "ok",
        "lrrunner.stop_reason": "diverged",
        "lrrunner.first_nonfinite_step": "1",
    }
    assert result_metrics(finished(Step(step=0, lr=0.1, loss=1.0), lr=None)) == {}
