"""`lrrunner-sync` and confirmation runs: their points too are sent once."""

from __future__ import annotations

from pathlib import Path

from tests.integration.launching import launch
from tests.integration.test_sync import everything, sync


def test_confirmation_runs_that_mlflow_has_stay_as_they_are(tmp_path: Path) -> None:
    """Each step and each end of a trial carries the time at which it was recorded."""
    done = launch(
        tmp_path, "launch.num_processes=2", "sweep.num_steps=40", "confirm.enabled=true", "confirm.budget_steps=60"
    )
    assert done.code == 0, done.err
    before = everything(tmp_path)
    (run,) = before.values()
    assert any(key.startswith("trial_0/") for key in run["points"])
    again = sync(tmp_path, "run")
    assert again.returncode == 0, again.stderr
    assert everything(tmp_path) == before
