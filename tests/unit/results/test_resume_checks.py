"""Which directory a run can be resumed from, and what must be as it was."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrrunner.config.schema import RunConfig
from lrrunner.results.resume_checks import (
    code_versions,
    differences,
    directory_errors,
    finished_differences,
    is_finished,
)
from lrrunner.system.processes.process_identity import process_identity

CONFIG = {"model": {"width": 3}, "run": {"dir": "x", "resume": None}, "launch": {"num_processes": 2}}


def run_in(path: Path, **status: Any) -> Path:
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (path / "status.json").write_text(json.dumps({"state": "killed"} | status))
    return path


def errors_of(path: Path, directory: str | None = None) -> list[str]:
    return directory_errors(RunConfig(dir=directory, resume=str(path)))


def test_a_killed_or_failed_run_and_one_whose_process_is_gone_can_be_resumed(tmp_path: Path) -> None:
    """Also one that died before it wrote its status."""
    assert errors_of(run_in(tmp_path)) == []
    assert errors_of(run_in(tmp_path, state="failed")) == []
    gone = process_identity(2**22 - 1)
    assert errors_of(run_in(tmp_path, state="running", host=socket.gethostname(), process=gone)) == []
    (tmp_path / "status.json").unlink()
    assert errors_of(tmp_path) == []


def test_a_run_that_is_running_is_refused(tmp_path: Path) -> None:
    """Two processes in one directory would spoil both."""
    run_in(tmp_path, state="running", host=socket.gethostname(), process=process_identity())
    (message,) = errors_of(tmp_path)
    assert "must name a run that is not running" in message


def test_a_finished_run_is_known_as_such(tmp_path: Path) -> None:
    """Its resume completes what is missing, and measures nothing."""
    assert not is_finished(RunConfig(resume=None))
    assert not is_finished(RunConfig(resume=str(run_in(tmp_path))))
    assert is_finished(RunConfig(resume=str(run_in(tmp_path, state="finished"))))
    assert errors_of(tmp_path) == []


def test_a_finished_run_is_compared_with_a_configuration_that_no_rank_has_resolved(tmp_path: Path) -> None:
    """What that leaves to the launcher is null in it, and a value in the run's own."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"mixed_precision": "fp32"}, "sweep": {"seed": 0}}))
    assert finished_differences(tmp_path, {"train": {"mixed_precision": None}, "sweep": {"seed": 0}}) == []
    (message,) = finished_differences(tmp_path, {"train": {"mixed_precision": None}, "sweep": {"seed": 5}})
    assert message.startswith("sweep.seed must be 0 to resume")


def test_run_dir_beside_resume_is_a_contradiction_unless_it_is_the_same(tmp_path: Path) -> None:
    """Which of the two is meant is the user's decision."""
    run_in(tmp_path)
    assert errors_of(tmp_path, str(tmp_path)) == []
    assert "run.dir must be left out" in errors_of(tmp_path, "elsewhere")[0]


@pytest.mark.parametrize("name", ["ledger.jsonl", "batch.json"])
def test_a_batch_is_named_as_one(tmp_path: Path, name: str) -> None:
    """Its own command resumes it, also before its first job has ended."""
    (tmp_path / name).touch()
    assert "must name a single run, got the batch" in errors_of(tmp_path)[0]


def test_what_does_not_change_the_records_may_differ(tmp_path: Path) -> None:
    """The run group and how ranks are started."""
    run_in(tmp_path, world_size=2, **code_versions())
    config = CONFIG | {"run": {"dir": None, "resume": str(tmp_path)}, "launch": {"num_processes": None}}
    assert differences(tmp_path, config, world_size=2) == []


def test_every_difference_is_named(tmp_path: Path) -> None:
    """With the command that began it."""
    run_in(
        tmp_path, world_size=2, version="0.0", torch_version=code_versions()["torch_version"], command="lrrunner a=1"
    )
    messages = differences(tmp_path, CONFIG | {"model": {"width": 4, "depth": 1}}, world_size=3)
    assert [message.partition(",")[0] for message in messages] == [
        "run.resume must continue with 2 ranks",
        "run.resume must continue with lrrunner 0.0",
        f"model.depth must be absent to resume {tmp_path}",
        f"model.width must be 3 to resume {tmp_path}",
        f"the run began with: lrrunner a=1; repeat that with run.resume={tmp_path}",
    ]
