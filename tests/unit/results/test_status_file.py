"""What status.json says of a run has the last word, also about ranks that could not report."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.results.run_state import COULD_NOT_REPORT, JobResult, RunState
from lrrunner.results.status_file import as_recorded, close_abandoned, read_status, write_status

FAILED = JobResult(state=RunState.FAILED, exit_code=1, cause="rank 1: killed by SIGKILL", is_reported=False)
UNREPORTED = JobResult(state=RunState.FAILED, exit_code=1, cause=f"rank 0: {COULD_NOT_REPORT}", is_reported=False)
WRONG = JobResult(state=RunState.FAILED, exit_code=2, cause="run.dir must not hold a run yet")


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    """Its ranks died in the upload, which is then done again."""
    write_status(tmp_path, state="finished", cause=None)
    assert as_recorded(tmp_path, FAILED) == JobResult(state=RunState.FINISHED, exit_code=0, is_reported=False)
    assert as_recorded(tmp_path, WRONG) == WRONG


@pytest.mark.parametrize("state", ["running", "killed", "failed"])
def test_another_run_ended_as_its_supervisor_saw(tmp_path: Path, state: str) -> None:
    """Rank 0 may have recorded that it lost another one, which is not the cause."""
    write_status(tmp_path, state=state, cause="rank 0: another rank is gone")
    assert as_recorded(tmp_path, FAILED) == FAILED


def test_ranks_that_cannot_report_have_recorded_how_the_job_ended(tmp_path: Path) -> None:
    """TMPDIR is full, and the run directory is not in it."""
    assert as_recorded(tmp_path, UNREPORTED) == UNREPORTED
    write_status(tmp_path, state="failed", cause="rank 0: ValueError: x")
    assert as_recorded(tmp_path, UNREPORTED) == JobResult(
        state=RunState.FAILED, exit_code=1, cause="rank 0: ValueError: x", is_reported=False
    )


@pytest.mark.parametrize(
    ("recorded", "state"), [("running", "killed"), ("finished", "finished"), ("failed", "failed"), ("killed", "killed")]
)
def test_an_abandoned_run_is_killed_unless_it_has_ended(tmp_path: Path, recorded: str, state: str) -> None:
    """MLflow gets the same state."""
    write_status(tmp_path, state=recorded, cause="x")
    assert close_abandoned(tmp_path) == state
    assert read_status(tmp_path)["state"] == state
    assert close_abandoned(tmp_path / "nowhere") == RunState.KILLED
