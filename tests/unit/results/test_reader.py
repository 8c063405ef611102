"""A run directory, read back as it was written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from lrrunner.config.schema import Monitor, SweepConfig
from lrrunner.core.curve import curve_from_steps
from lrrunner.records import (
    NoiseScale,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    Trial,
    TrialOutcome,
    Verdict,
)
from lrrunner.results.codec import optional_step_columns
from lrrunner.results.reader import read_run
from lrrunner.results.recorder import RunRecords
from lrrunner.results.status_file import write_status
from lrrunner.results.writer import RunDirectory
from lrrunner.system.output.redaction import Redactor

STEPS = tuple(
    Step(step=i, lr=10.0 ** (i - 5), loss=2.5 - 0.1 * i, smoothed_loss=2.5 - 0.05 * i, grad_norm=0.5, num_items=64.0,
         elapsed_s=0.25 * i, timestamp_ms=1000 + i, skipped=i == 1, gradient_variance=0.1 + 0.2 * i)
    for i in range(3)
)  # fmt: skip
TEST = RangeTestResult(
    steps=STEPS,
    stops=(Stop(reason=StopReason.NON_FINITE, step=2, ranks=(1,)),),
    suggestion=Suggestion(
        lr=1e-3, method="auto", verdict=Verdict.OK, reason="it falls", interval=(5e-4, 2e-3), candidates={"auto": 1e-3}
    ),
    world_size=2,
    global_batch_size=64,
    noise_scale=NoiseScale(critical_batch_size=108.5, low=77.0, high=None, num_steps=3, last_lr=1e-3),
)


def written(path: Path) -> None:
    with RunDirectory(path, Redactor(), optional_columns=["gradient_variance"]) as directory:
        directory.write_inputs({"sweep": {"smoothing": 0.9}}, ["model=mlp"])
        directory.update_status(state="finished", cause=None)
        for step in STEPS:
            directory.record(step)
        directory.write_suggestion(TEST)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Numbers to the last bit: MLflow recognises a point that it has by them."""
    written(tmp_path / "run")
    files = read_run(tmp_path / "run")
    assert files.records.steps == list(STEPS)
    assert files.test == TEST
    assert files.overrides == ["model=mlp"]
    assert files.config == {"sweep": {"smoothing": 0.9}}
    assert files.status["state"] == "finished"
    assert files.best_loss == 2.4


def test_validation_losses_have_a_column_where_they_are_monitored(tmp_path: Path) -> None:
    """Empty after a step that was not evaluated, which is then no point of the curve."""
    steps = [Step(step=0, lr=0.5, loss=2.0, val_loss=3.0), Step(step=1, lr=1.0, loss=1.5, is_monitored=False)]
    with RunDirectory(tmp_path / "run", Redactor(), optional_columns=["val_loss"]) as directory:
        for step in steps:
            directory.record(step)
    lines = (tmp_path / "run" / "records.csv").read_text().splitlines()
    assert [line.rpartition(",")[2] for line in lines] == ["val_loss", "3.0", ""]
    read = read_run(tmp_path / "run").records.steps
    assert [(step.loss, step.val_loss, step.monitored_loss) for step in read] == [(2.0, 3.0, 3.0), (1.5, None, None)]


def test_an_incomplete_row_is_no_row(tmp_path: Path) -> None:
    """The machine died while it was written."""
    written(tmp_path / "run")
    path = tmp_path / "run" / "records.csv"
    path.write_text(path.read_text()[:-40])
    assert read_run(tmp_path / "run").records.steps == list(STEPS[:2])


def test_nothing_is_an_empty_run(tmp_path: Path) -> None:
    """A job that failed before it began."""
    files = read_run(tmp_path / "nowhere")
    assert (files.status, files.config, files.records, files.test) == ({}, {}, RunRecords(), None)
    write_status(tmp_path / "nowhere", state="failed")
    assert not (tmp_path / "nowhere").exists()


def test_status_can_be_corrected_from_outside(tmp_path: Path) -> None:
    """A killed rank 0 cannot; what it wrote stays."""
    written(tmp_path / "run")
    write_status(tmp_path / "run", state="failed", cause="rank 0: killed by SIGKILL")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status == {"state": "failed", "cause": "rank 0: killed by SIGKILL"}


def test_a_validation_curve_is_the_one_it_was_live(tmp_path: Path) -> None:
    """A batch draws its summary from the files, each job its picture from memory."""
    steps = [
        Step(step=i, lr=10.0 ** (i / 4 - 5), loss=2.0 + 0.1 * (-1) ** i, num_items=64.0,
             val_loss=2.0 - 0.03 * i, val_items=640.0)
        for i in range(12)
    ]  # fmt: skip
    columns = optional_step_columns(SweepConfig(monitor=Monitor.val))
    with RunDirectory(tmp_path / "run", Redactor(), optional_columns=columns) as directory:
        for step in steps:
            directory.record(step)
    live, read = (curve_from_steps(found, beta=0.9) for found in (steps, read_run(tmp_path / "run").records.steps))
    assert live is not None
    assert read is not None
    assert read.noise == live.noise > 0.06
    for name in ("lr", "raw", "loss", "smoothed", "slope", "causal", "error"):
        assert np.array_equal(getattr(read, name), getattr(live, name))


def test_a_confirmation_run_is_read_as_one(tmp_path: Path) -> None:
    """With its steps, whose last time is when it ended."""
    trial = Trial(trial=0, lr=0.5, num_steps=9, num_steps_run=1, loss=math.inf, outcome=TrialOutcome.DIVERGED)
    with RunDirectory(tmp_path / "run", Redactor()) as directory:
        directory.record_trial_step(0, Step(step=0, lr=0.5, loss=2.0, timestamp_ms=7))
        directory.record_trial(trial, schedule="cosine")
    records = read_run(tmp_path / "run").records
    assert records.trials == [trial]
    assert records.trial_end_ms(0) == 7
