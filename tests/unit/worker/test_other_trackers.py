"""Trackers beside MLflow get the same numbers, and cost nothing when they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from lrrunner.records import RangeTestResult, Step, Stop, StopReason, Suggestion, Verdict
from lrrunner.system.output.redaction import Redactor
from lrrunner.worker.other_trackers import OtherTrackers, tracker_errors

calls: list[tuple[str, Any]] = []


class Tracker:
    """What Accelerate's wrappers have; it notes what it is called with."""

    requires_logging_directory = True

    def __init__(self, project: str, folder: Path) -> None:
        calls.append(("made", (project, folder.name)))

    def start(self) -> None:
        calls.append(("start", None))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        calls.append(("config", values))

    def log(self, values: dict[str, Any], *, step: int) -> None:
        calls.append(("log", (step, values)))

    def finish(self) -> None:
        calls.append(("finish", None))


class Failing(Tracker):
    """One whose server is gone after the start."""

    def log(self, values: dict[str, Any], *, step: int) -> None:
        raise ConnectionError("no secret server")


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherTrackers:
    """Two trackers, of which one fails."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Failing)
    calls.clear()
    return OtherTrackers(
        ["wandb", "tensorboard"], project="lrrunner", directory=tmp_path, redactor=Redactor(["secret"])
    )


def test_steps_trials_and_result_are_logged_and_a_failing_tracker_is_left_alone(
    trackers: OtherTrackers, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps are numbered through: trackers take no step twice."""
    trackers.start({"sweep": {"num_steps": 2}, "token": "secret"})
    step = Step(step=0, lr=0.1, loss=2.0, smoothed_loss=2.0)
    trackers.log_step(step)
    trackers.log_step(step, prefix="trial_0/")
    suggestion = Suggestion(lr=0.01, method="auto", verdict=Verdict.OK, reason="", interval=(0.005, 0.02))
    stops = (Stop(reason=StopReason.DIVERGED, step=0),)
    trackers.finish(
        RangeTestResult(steps=(step,), stops=stops, suggestion=suggestion, world_size=1, global_batch_size=64)
    )
    assert ("made", ("lrrunner", "trackers")) in calls
    assert ("config", {"sweep.num_steps": "2", "token": "***"}) in calls
    logged = [values for name, values in calls if name == "log"]
    assert [number for number, _ in logged] == [0, 1, 2]
    assert logged[0][1].items() >= {"lr": 0.1, "loss": 2.0, "repeat": 0, "sweep_pass": 0}.items()
    assert logged[1][1]["trial_0/loss"] == 2.0
    assert logged[2][1].items() >= {"suggested_lr": 0.01, "verdict": "ok"}.items()
    assert [name for name, _ in calls].count("finish") == 1
    assert "tracking.also: wandb failed (ConnectionError: no *** server)" in caplog.text


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, with the command that installs it."""
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    assert tracker_errors(["tensorboard"]) == []
    assert tracker_errors(["wandb"]) == [
        "tracking.also must name installed trackers, got wandb; pip install wandb, or leave it out"
    ]
