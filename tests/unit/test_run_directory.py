"""The run directory is complete at every moment, and never overwritten."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.records import RangeTest, Step, Stop, StopReason, Suggestion, Verdict
from lrrunner.redaction import Redactor
from lrrunner.run_directory import RunDirectory


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
    for path in directory.files():
        assert "canary" not in path.read_text()
    assert json.loads((tmp_path / "status.json").read_text())["cause"] == "cannot log in with ***"


def test_no_suggestion_is_null_not_a_number(tmp_path: Path) -> None:
    """Scripts must not train with a placeholder."""
    none = Suggestion(
        lr=None, method="auto", verdict=Verdict.FLAT, reason="raise sweep.end_lr", candidates={"auto": None}
    )
    stop = Stop(reason=StopReason.END_OF_LADDER, step=99)
    with RunDirectory(tmp_path, Redactor()) as directory:
        directory.write_suggestion(
            RangeTest(steps=(), stops=(stop,), suggestion=none, world_size=2, global_batch_size=64)
        )
    content = json.loads((tmp_path / "suggestion.json").read_text())
    assert content["lr"] is None
    assert content["interval"] is None
    assert content["candidates"] == {"auto": None}
    assert content["verdict"] == "flat"
    assert (content["stop_reason"], content["stop_step"]) == ("end_of_ladder", 99)
