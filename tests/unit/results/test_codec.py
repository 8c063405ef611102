"""What is written of a step or a trial is what is read."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lrrunner.config.schema import Monitor, SweepConfig
from lrrunner.records import Step, Trial, TrialOutcome
from lrrunner.results.codec import (
    STEP_COLUMNS,
    TRIAL_COLUMNS,
    TRIAL_STEP_COLUMNS,
    cells,
    optional_step_columns,
    step_from,
    trial_from,
)

STEP = Step(
    sweep_pass=1, repeat=2, step=3, lr=0.1 + 0.2, loss=2.5, smoothed_loss=2.25, grad_norm=0.5, num_items=64.0,
    skipped=True, elapsed_s=1.5, timestamp_ms=1000, val_loss=3.0, val_items=640.0, gradient_variance=0.1,
)  # fmt: skip


def test_columns_are_those_of_the_contract() -> None:
    """Scripts read them by name, spreadsheets by position."""
    assert (
        *("sweep_pass", "repeat", "step", "lr", "loss", "smoothed_loss", "grad_norm", "num_items", "skipped"),
        *("elapsed_s", "timestamp_ms"),
    ) == STEP_COLUMNS
    assert ("trial", *STEP_COLUMNS[2:]) == TRIAL_STEP_COLUMNS
    assert (
        *("trial", "schedule", "lr", "num_steps", "num_steps_run", "loss", "outcome", "elapsed_s", "batch_losses"),
    ) == TRIAL_COLUMNS


def test_optional_columns_are_there_where_they_are_measured() -> None:
    """A column that is empty in every sweep would only be noise."""
    assert optional_step_columns(SweepConfig()) == ()
    assert optional_step_columns(SweepConfig(monitor=Monitor.val, noise_scale=True)) == (
        *("val_loss", "val_items", "gradient_variance"),
    )


def test_a_step_comes_back_to_the_last_bit() -> None:
    """All of it, but the losses of single ranks, which no column holds."""
    columns = (*STEP_COLUMNS, "val_loss", "val_items", "gradient_variance")
    row = cells(STEP, columns)
    assert row == ["1", "2", "3", "0.30000000000000004", "2.5", "2.25", "0.5", "64.0", "1", "1.5", "1000", "3.0",
                   "640.0", "0.1"]  # fmt: skip
    assert step_from(dict(zip(columns, row, strict=True))) == STEP


def test_a_step_that_was_not_evaluated_is_no_point_of_the_curve() -> None:
    """Its cell is empty; a sweep that monitors the training loss has no such column."""
    step = Step(step=0, lr=0.5, loss=2.0, smoothed_loss=2.0, grad_norm=1.0, num_items=8.0, is_monitored=False)
    columns = (*STEP_COLUMNS, "val_loss", "val_items")
    row = cells(step, columns)
    assert row[-2:] == ["", ""]
    assert step_from(dict(zip(columns, row, strict=True))) == step
    without = step_from(dict(zip(STEP_COLUMNS, cells(step, STEP_COLUMNS), strict=True)))
    assert without == dataclasses.replace(step, is_monitored=True)


def test_losses_that_are_no_numbers_are_read() -> None:
    """A divergence is recorded as it was."""
    step = step_from(dict(zip(STEP_COLUMNS, cells(Step(step=0, lr=1.0, loss=math.inf), STEP_COLUMNS), strict=True)))
    assert step.loss == math.inf
    assert math.isnan(step.grad_norm)


@pytest.mark.parametrize("outcome", list(TrialOutcome))
def test_a_trial_comes_back(outcome: TrialOutcome) -> None:
    """As a trial, with what only its table knows beside it."""
    trial = Trial(trial=1, lr=0.5, num_steps=9, num_steps_run=3, loss=math.inf, outcome=outcome, elapsed_s=2.0)
    columns = [name for name in TRIAL_COLUMNS if name != "schedule"]
    row = dict(zip(columns, cells(trial, columns), strict=True)) | {"schedule": "cosine"}
    assert row["outcome"] == outcome.value
    assert trial_from(row) == trial
