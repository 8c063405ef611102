"""The run directory is complete at every moment, and never overwritten."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.records import (
    Confirmation,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    SweepPass,
    Training,
    Trial,
    TrialOutcome,
    Verdict,
)
from lrrunner.results.artifacts import artifacts
from lrrunner.results.status_file import close_abandoned
from lrrunner.results.writer import RunDirectory
from lrrunner.system.output.redaction import Redactor


def test_records_are_readable_after_each_step(tmp_path: Path) -> None:
    """Whatever ends the process, the last step is on disk; numbers come back to the last bit."""
    with RunDirectory(tmp_path / "run", Redactor()) as directory:
        directory.record(Step(step=0, lr=0.1 + 0.2, loss=2.5, smoothed_loss=2.5, grad_norm=1.0, num_items=64.0))
        directory.record(Step(step=1, lr=1.0, loss=math.inf, skipped=True))
        header, first, second = (tmp_path / "run" / "records.csv").read_text().splitlines()
    assert header.startswith("sweep_pass,repeat,step,lr,loss,")
    assert first == "0,0,0,0.30000000000000004,2.5,2.5,1.0,64.0,0,0.0,0"
    assert second == "0,0,1,1.0,inf,nan,nan,nan,1,0.0,0"


def test_a_directory_with_a_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Nothing recorded is lost."""
    with RunDirectory(tmp_path, Redactor()) as directory:
        directory.record(Step(step=0, lr=1.0, loss=2.0))
        directory.update_status(state="finished")
    before = (tmp_path / "records.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"run\.dir must not hold a run yet"):
        RunDirectory(tmp_path, Redactor())
    assert (tmp_path / "records.csv").read_bytes() == before


def test_a_run_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    """Neither in a new directory nor in the user's own."""
    directory = RunDirectory(tmp_path / "new", Redactor())
    directory.write_inputs({"a": 1}, ["a=1"])
    directory.discard()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("keep")
    RunDirectory(tmp_path, Redactor()).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_secrets_are_masked_in_every_file(tmp_path: Path) -> None:
    """By key in the configuration, by value anywhere else."""
    redactor = Redactor.for_run({"hub": {"token": "canary-1234"}}, {})
    with RunDirectory(tmp_path, redactor) as directory:
        directory.write_inputs({"hub": {"token": "canary-1234"}, "n": "canary-1234!"}, ["hub.token=canary-1234"])
        directory.update_status(state="failed", cause="cannot log in with canary-1234")
    for path in artifacts(tmp_path):
        assert "canary" not in path.read_text()
    assert json.loads((tmp_path / "status.json").read_text())["cause"] == "cannot log in with ***"


def test_no_suggestion_is_null_not_a_number(tmp_path: Path) -> None:
    """Scripts must not train with a placeholder."""
    none = Suggestion(
        lr=None, method="auto", verdict=Verdict.FLAT, reason="raise sweep.end_lr", candidates={"auto": None}
    )
    stop = Stop(reason=StopReason.END_OF_SCHEDULE, step=99)
    with RunDirectory(tmp_path, Redactor()) as directory:
        directory.write_suggestion(
            RangeTestResult(steps=(), stops=(stop,), suggestion=none, world_size=2, global_batch_size=64)
        )
    content = json.loads((tmp_path / "suggestion.json").read_text())
    assert content["lr"] is None
    assert content["interval"] is None
    assert content["candidates"] == {"auto": None}
    assert content["verdict"] == "flat"
    assert (content["stop_reason"], content["stop_step"]) == ("end_of_ladder", 99)


def test_trials_are_readable_after_each_and_absent_without_any(tmp_path: Path) -> None:
    """A row a trial, and the steps of all trials beside them."""
    with RunDirectory(tmp_path / "run", Redactor()) as directory:
        assert not (tmp_path / "run" / "trials.csv").exists()
        directory.record_trial_step(0, Step(step=0, lr=0.5, loss=2.0, num_items=64.0, timestamp_ms=7))
        directory.record_trial(
            Trial(
                trial=0,
                lr=0.5,
                num_steps=9,
                num_steps_run=9,
                loss=1.5,
                elapsed_s=2.0,
                batch_losses=(1.25, 1.75),
            ),
            schedule="cosine",
        )
        outcome = TrialOutcome.DIVERGED
        directory.record_trial(
            Trial(trial=1, lr=5.0, num_steps=9, num_steps_run=3, loss=math.inf, outcome=outcome), schedule="cosine"
        )
        rows = (tmp_path / "run" / "trials.csv").read_text().splitlines()
        steps = (tmp_path / "run" / "trial_records.csv").read_text().splitlines()
    assert rows == [
        "trial,schedule,lr,num_steps,num_steps_run,loss,outcome,elapsed_s,batch_losses",
        "0,cosine,0.5,9,9,1.5,finished,2.0,1.25 1.75",
        "1,cosine,5.0,9,3,inf,diverged,0.0,",
    ]
    assert steps == [
        "trial,step,lr,loss,smoothed_loss,grad_norm,num_items,skipped,elapsed_s,timestamp_ms",
        "0,0,0.5,2.0,nan,nan,64.0,0,0.0,7",
    ]


def test_the_suggestion_keeps_what_the_sweep_suggested_and_what_was_only_extrapolated(tmp_path: Path) -> None:
    """A reader must be able to distinguish a measurement from a guess."""
    sweep = Suggestion(lr=1e-3, method="auto", verdict=Verdict.OK, reason="", interval=(5e-4, 2e-3))
    found = Suggestion(lr=2e-3, method="auto", verdict=Verdict.OK, reason="", interval=(1e-3, 4e-3))
    test = RangeTestResult(
        steps=(),
        stops=(Stop(reason=StopReason.END_OF_SCHEDULE, step=9), Stop(reason=StopReason.DIVERGED, step=8, sweep_pass=1)),
        suggestion=found,
        world_size=2,
        global_batch_size=64,
        passes=(
            SweepPass(start_lr=1e-7, end_lr=1e-4, suggestion=sweep, extension="too low"),
            SweepPass(start_lr=1e-7, end_lr=1e-2, suggestion=sweep),
        ),
        curve_pass=1,
        trials=(Trial(trial=0, lr=2e-3, num_steps=100, num_steps_run=100, loss=1.0),),
        confirmation=Confirmation(
            schedule="cosine",
            monitored="validation loss",
            horizon=5000,
            budget_steps=500,
            sweep=sweep,
            measured_steps=80,
        ),
        training=Training(num_steps=5000, schedule="cosine", warmup_steps=20),
    )
    with RunDirectory(tmp_path, Redactor()) as directory:
        directory.write_suggestion(test)
    content = json.loads((tmp_path / "suggestion.json").read_text())
    assert (content["lr"], content["stop_reason"]) == (2e-3, "diverged")
    assert content["training"] == {"num_steps": 5000, "schedule": "cosine", "warmup_steps": 20, "is_assumed": False}
    assert content["confirmation"] == {
        "schedule": "cosine",
        "monitored": "validation loss",
        "budget_steps": 500,
        "horizon": 5000,
        "num_trials": 1,
        "trials": [
            {
                "lr": 2e-3,
                "num_steps": 100,
                "outcome": "finished",
                "loss": 1.0,
                "above_best": 0.0,
                "above_best_error": None,
            }
        ],
        "measured_steps": 80,
        "extrapolated_to_steps": 5000,
        "best_trial_lr": None,
        "best_trial_loss": None,
        "is_outside_trials": False,
        "trouble": None,
        "sweep_lr": 1e-3,
        "sweep_interval": [5e-4, 2e-3],
    }
    assert [(p["end_lr"], p["extension"], p["is_curve"]) for p in content["passes"]] == [
        (1e-4, "too low", False),
        (1e-2, None, True),
    ]


def test_a_half_written_file_is_no_artifact(tmp_path: Path) -> None:
    """A process that dies while it draws leaves one, which must not reach MLflow."""
    with RunDirectory(tmp_path, Redactor()) as directory:
        directory.write_note("done")
        (tmp_path / ".lr_sweep.png.part").write_bytes(b"half a picture")
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "00000001.pt").write_bytes(b"weights")
        assert [path.name for path in artifacts(tmp_path)] == ["note.md", "records.csv"]


def test_an_abandoned_run_is_closed_in_one_piece(tmp_path: Path) -> None:
    """Another process may read status.json at that moment."""
    file = tmp_path / "status.json"
    file.write_text('{"state": "running", "last_step": 3}')
    with file.open() as reader:
        close_abandoned(tmp_path)
        assert json.load(reader) == {"state": "running", "last_step": 3}
    assert json.loads(file.read_text())["state"] == "killed"
