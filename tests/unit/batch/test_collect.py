"""How jobs ended, as their run directories and the ledger record it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrrunner.batch import ledger
from lrrunner.batch.collect import batch_state, entry_from_run, latest_entries
from lrrunner.batch.ledger import Entry
from lrrunner.batch.points import BatchJob
from lrrunner.config.command_line import parse_command_line
from lrrunner.launch.job import Job
from lrrunner.results.run_state import RunState
from tests.composing import composed


def batch_job(directory: Path, number: int, *overrides: str) -> BatchJob:
    config = composed(*overrides, world_size=None)
    job = Job(config=config, command_line=parse_command_line(overrides)).in_directory(directory / f"{number:03d}")
    return BatchJob(number=number, label="x", short_label="x", job=job, key=f"k{number}")


@pytest.mark.parametrize(("recorded", "state"), [("running", "killed"), ("failed", "failed")])
def test_a_run_that_never_reported_its_end_was_killed(tmp_path: Path, recorded: str, state: str) -> None:
    """Its ranks are gone when the directory is read."""
    job = batch_job(tmp_path, 3, "sweep.seed=3", "+model.token=canary")
    job.job.directory.mkdir()
    (job.job.directory / "status.json").write_text(
        json.dumps({"state": recorded, "mlflow_run_id": "abc", "cause": "rank 1: killed"})
    )
    assert entry_from_run(tmp_path, job) == Entry(
        job=3, overrides=("sweep.seed=3", "+model.token=***"), key="k3", state=RunState(state), run_id="abc",
        run_dir="003", cause="rank 1: killed",
    )  # fmt: skip


def test_a_job_without_a_run_directory_has_none_in_its_line(tmp_path: Path) -> None:
    """lrrunner-sync would look for it."""
    entry = entry_from_run(tmp_path, batch_job(tmp_path, 0, "sweep.seed=0"))
    assert (entry.state, entry.run_dir, entry.run_id) == ("failed", None, None)


def test_the_last_line_of_each_job_counts_under_todays_number_and_overrides(tmp_path: Path) -> None:
    """A resumed batch may spell its overrides otherwise."""
    for state in (RunState.FAILED, RunState.FINISHED):
        ledger.append(tmp_path, Entry(job=7, overrides=("+x=1",), key="k0", state=state))
    jobs = [batch_job(tmp_path, number, f"sweep.seed={number}") for number in range(2)]
    (entry,) = latest_entries(tmp_path, jobs)
    assert (entry.job, entry.overrides, entry.state) == (0, ("sweep.seed=0",), "finished")


def test_a_batch_is_finished_when_all_of_its_jobs_are() -> None:
    """A job without a line counts as one that did not finish."""
    finished = Entry(job=0, overrides=(), state=RunState.FINISHED)
    failed = Entry(job=1, overrides=(), state=RunState.FAILED)
    assert batch_state([finished], num_jobs=1, interrupted=False) == RunState.FINISHED
    assert batch_state([finished], num_jobs=2, interrupted=False) == RunState.FAILED
    assert batch_state([finished, failed], num_jobs=2, interrupted=False) == RunState.FAILED
    assert batch_state([finished], num_jobs=1, interrupted=True) == RunState.KILLED
