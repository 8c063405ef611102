"""What is logged under which metric name and tag: steps while a sweep runs, and its curve and result at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lrrunner.config.schema import SweepConfig
from lrrunner.core.curve import pooled_steps
from lrrunner.core.measured_trials import best_measured_trial
from lrrunner.records import RangeTestResult, Step, Trial
from lrrunner.tracking.names import tag_names

STEP_METRICS = ("lr", "log10_lr", "loss", "val_loss", "smoothed_loss", "grad_norm")
TRIAL_METRICS = {"scheduled_lr": "lr", "loss": "loss"}
"""Of a step of a confirmation run, by the step's own name: its LR follows a schedule, and is not the LR of the run."""


class MetricPoint(NamedTuple):
    """Metrics of one step.

    Attributes:
        values: By name, without the prefix; empty for a step that is no point of a curve.
        step: Number of the step.
        timestamp_ms: When it was measured: a point that is sent twice is stored once.
        prefix: Precedes the names.
    """

    values: Mapping[str, float]
    step: int
    timestamp_ms: int
    prefix: str = ""


def step_point(step: Step, prefix: str = "") -> MetricPoint:
    """The finite metrics of a step; none of a skipped or non-finite one, which is no point of a curve."""
    values: dict[str, float | None] = {}
    if not step.skipped and math.isfinite(step.loss):
        values = {name: math.log10(step.lr) if name == "log10_lr" else getattr(step, name) for name in STEP_METRICS}
    finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return MetricPoint(finite, step.step, step.timestamp_ms, prefix)


def live_point(step: Step, sweep: SweepConfig) -> MetricPoint:
    """A step of a sweep of one pass, with a prefix of its own if it has several repeats."""
    return step_point(step, _repeat_prefix(step, sweep))


def pass_points(steps: Iterable[Step], sweep: SweepConfig, *, curve_pass: int | None) -> Iterator[MetricPoint]:
    """Steps of all passes.

    Args:
        steps: Their records.
        sweep: The section ``sweep``.
        curve_pass: The pass whose steps have the plain names; None if it is not known, for a sweep that has not ended.
    """
    for step in steps:
        pass_prefix = "" if step.sweep_pass == curve_pass else f"pass_{step.sweep_pass}/"
        yield step_point(step, pass_prefix + _repeat_prefix(step, sweep))


def trial_step_point(number: int, step: Step) -> MetricPoint:
    """A step of a confirmation run."""
    point = step_point(step, f"trial_{number}/")
    values = {name: point.values[own] for name, own in TRIAL_METRICS.items() if own in point.values}
    return point._replace(values=values)


def trial_point(trial: Trial, *, timestamp_ms: int) -> MetricPoint:
    """What a confirmation run has measured.

    Args:
        trial: The confirmation run.
        timestamp_ms: Time of its last step.
    """
    values = {f"trial_{trial.trial}/peak_lr": trial.lr}
    if math.isfinite(trial.loss):
        values |= {"confirm/peak_lr": trial.lr, "confirm/loss": trial.loss}
    return MetricPoint(values, trial.trial, timestamp_ms)


def pooled_points(test: RangeTestResult, sweep: SweepConfig) -> Iterator[MetricPoint]:
    """The mean over repeats of the curve that the suggestion was read from, under the plain names."""
    if sweep.repeats > 1:
        for step in pooled_steps(test.curve_steps, beta=sweep.smoothing):
            yield step_point(step)


def result_metrics(test: RangeTestResult) -> dict[str, float]:
    """Suggested LR, lowest loss and noise scale, as far as there are any."""
    metrics: dict[str, float | None] = {}
    suggestion, noise = test.suggestion, test.noise_scale
    if suggestion.lr is not None and suggestion.interval is not None:
        low, high = suggestion.interval
        metrics |= {"suggested_lr": suggestion.lr, "suggested_lr_low": low, "suggested_lr_high": high}
        metrics["log10_suggested_lr"] = math.log10(suggestion.lr)
    metrics["best_loss"] = test.best_loss
    metrics |= _confirmation_metrics(test)
    if noise is not None:
        metrics |= {
            "critical_batch_size": noise.critical_batch_size,
            "critical_batch_size_low": noise.low,
            "critical_batch_size_high": noise.high,
        }
    return {key: value for key, value in metrics.items() if value is not None}


def _confirmation_metrics(test: RangeTestResult) -> dict[str, float | None]:
    """The confirmed LR, beside what was measured and what the sweep alone suggests."""
    confirmation, best = test.confirmation, best_measured_trial(test)
    if confirmation is None or best is None:
        return {}
    return {
        "confirm/confirmed_lr": test.suggestion.lr,
        "confirm/best_trial_lr": best.lr,
        "confirm/best_trial_loss": best.loss,
        "confirm/sweep_lr": confirmation.sweep.lr,
    }


def result_tags(test: RangeTestResult) -> dict[str, str]:
    """Verdict, reason of the stop, and the first step whose loss was not finite."""
    verdict = str(test.suggestion.verdict)
    found = {
        tag_names.VERDICT: verdict,
        tag_names.SHORT_VERDICT: verdict,
        tag_names.STOP_REASON: str(test.stop.reason),
    }
    non_finite = [step.step for step in test.curve_steps if not step.is_finite]
    if non_finite:
        found[tag_names.FIRST_NONFINITE_STEP] = str(min(non_finite))
    return found


def _repeat_prefix(step: Step, sweep: SweepConfig) -> str:
    return f"repeat_{step.repeat}/" if sweep.repeats > 1 else ""
