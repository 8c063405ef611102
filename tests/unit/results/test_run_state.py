"""One table gives a state's exit code, its status in MLflow and its text."""

from __future__ import annotations

import pytest

from lrrunner.results.run_state import RunState, state_in


@pytest.mark.parametrize(
    ("state", "exit_code", "mlflow_status", "text"),
    [
        (RunState.RUNNING, None, "RUNNING", "Running"),
        (RunState.FINISHED, 0, "FINISHED", "Finished"),
        (RunState.FAILED, 1, "FAILED", "Failed"),
        (RunState.KILLED, 143, "KILLED", "Killed"),
    ],
)
def test_each_state_has_its_exit_code_mlflow_status_and_text(
    state: RunState, exit_code: int | None, mlflow_status: str, text: str
) -> None:
    """Scripts, dashboards and people read the same end."""
    assert (state.exit_code, state.mlflow_status, state.text) == (exit_code, mlflow_status, text)


def test_a_state_is_read_from_a_file_that_may_hold_none() -> None:
    """status.json is missing after an early crash, and may be that of a later version."""
    assert state_in({"state": "killed"}) is RunState.KILLED
    assert state_in({}) is None
    assert state_in({"state": "paused"}) is None
    assert state_in({"state": None}) is None
