"""Which numbers go to MLflow under which names: while a sweep runs, and once it is known which of its passes counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from lrrunner.config.schema import SweepConfig
from lrrunner.core.curve import pooled_steps
from lrrunner.records import RangeTestResult, Step, Trial

STEP_METRICS = ("lr", "log10_lr", "loss", "val_loss", "smoothed_loss", "grad_norm")


class MetricPoint(NamedTuple):
    """Metrics of one step.

    Attributes:
        values: By name, without the prefix; empty where the step is no point of a curve.
        step: Its number.
        timestamp_ms: Its own time, so that a point that is sent twice is stored once.
        prefix: Goes before the names.
    """

    values: Mapping[str, float]
    step: int
    timestamp_ms: int
    prefix: str = ""


def step_point(step: Step, prefix: str = "") -> MetricPoint:
    """A step of a sweep."""
    values = {} if step.skipped or not math.isfinite(step.loss) else _finite(_values(step))
    return MetricPoint(values, step.step, step.timestamp_ms, prefix)


def trial_step_point(number: int, step: Step) -> MetricPoint:
    """A step of a confirmation run."""
    point = step_point(step, f"trial_{number}/")
    return point._replace(values={name: point.values[name] for name in ("lr", "loss") if name in point.values})


def trial_point(trial: Trial, *, timestamp_ms: int) -> MetricPoint:
    """The end of a confirmation run: its LR and its loss, by its number.

    Args:
        trial: The confirmation run.
        timestamp_ms: Time of its last step.
    """
    values = {"lr": trial.lr, "loss": trial.loss} if math.isfinite(trial.loss) else {}
    return MetricPoint(values, trial.trial, timestamp_ms, "confirm/")


def _values(step: Step) -> dict[str, float | None]:
    return {name: math.log10(step.lr) if name == "log10_lr" else getattr(step, name) for name in STEP_METRICS}


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def live_prefix(step: Step, sweep: SweepConfig) -> str:
    """What goes before the metrics of a step that a later pass may supersede: what MLflow has, it keeps."""
    of_pass = f"pass_{step.sweep_pass}/" if sweep.auto_range else ""
    return of_pass + (f"repeat_{step.repeat}/" if sweep.repeats > 1 else "")


def final_points(test: RangeTestResult, sweep: SweepConfig) -> Iterator[MetricPoint]:
    """The curve under its plain names, and its repeats under theirs."""
    if sweep.auto_range:
        for step in test.curve_steps:
            yield step_point(step, f"repeat_{step.repeat}/" if sweep.repeats > 1 else "")
    if sweep.repeats > 1:
        for step in pooled_steps(test.curve_steps, beta=sweep.smoothing):
            yield step_point(step)


def superseded(test: RangeTestResult) -> Callable[[str], bool]:
    """Which prefixes of live steps the final points make superfluous."""
    return lambda prefix: prefix.startswith(f"pass_{test.curve_pass}/")
