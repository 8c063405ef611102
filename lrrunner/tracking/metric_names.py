"""Which steps go to MLflow under which names: while a sweep runs, and once it is known which of its passes counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrrunner.config.schema import SweepConfig
from lrrunner.core.curve import pooled_steps
from lrrunner.records import RangeTestResult, Step
from lrrunner.tracking.mlflow_run import MetricPoint


def live_prefix(step: Step, sweep: SweepConfig) -> str:
    """What goes before the metrics of a step that a later pass may supersede: what MLflow has, it keeps."""
    of_pass = f"pass_{step.sweep_pass}/" if sweep.auto_range else ""
    return of_pass + (f"repeat_{step.repeat}/" if sweep.repeats > 1 else "")


def final_points(test: RangeTestResult, sweep: SweepConfig) -> Iterator[MetricPoint]:
    """The curve under its plain names, and its repeats under theirs."""
    if sweep.auto_range:
        for step in test.curve_steps:
            yield MetricPoint(step, f"repeat_{step.repeat}/" if sweep.repeats > 1 else "")
    if sweep.repeats > 1:
        for step in pooled_steps(test.curve_steps, beta=sweep.smoothing):
            yield MetricPoint(step)


def superseded(test: RangeTestResult) -> Callable[[str], bool]:
    """Which prefixes of live steps the final points make superfluous."""
    return lambda prefix: prefix.startswith(f"pass_{test.curve_pass}/")
