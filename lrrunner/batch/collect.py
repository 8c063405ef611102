"""How the jobs of a batch ended, from the ledger and from their run directories. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrrunner.batch import ledger
from lrrunner.batch.ledger import Entry
from lrrunner.batch.points import BatchJob
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import RunState


def entry_from_run(directory: Path, job: BatchJob, *, state: RunState | None = None) -> Entry:
    """The ledger line of a job, as far as its run directory knows.

    Args:
        directory: The batch directory.
        job: The job; its run directory may be missing.
        state: How it ended; None: as status.json says, where a run that still counts as running was killed.
    """
    run = read_run(job.job.directory)
    recorded = run.state or RunState.FAILED
    ended = state or (RunState.KILLED if recorded == RunState.RUNNING else recorded)
    suggestion = run.test.suggestion if run.test and ended == RunState.FINISHED else None
    return Entry(
        job=job.number,
        overrides=job.overrides,
        key=job.key,
        state=ended,
        run_id=run.status.get("mlflow_run_id"),
        run_dir=os.path.relpath(job.job.directory, directory) if run.status else None,
        lr=suggestion.lr if suggestion else None,
        interval=suggestion.interval if suggestion else None,
        verdict=str(suggestion.verdict) if suggestion else None,
        best_loss=run.best_loss,
        seconds=round(run.records.steps[-1].elapsed_s, 3) if run.records.steps else 0.0,
        cause=run.status.get("cause"),
    )


def latest_entries(directory: Path, jobs: Sequence[BatchJob]) -> list[Entry]:
    """The last ledger line of each job that has one, in the order of the grid and with today's overrides."""
    known = ledger.latest(ledger.read(directory))
    found = [(job, known[job.key]) for job in jobs if job.key in known]
    return [replace(entry, job=job.number, overrides=job.overrides) for job, entry in found]


def batch_state(entries: Sequence[Entry], *, num_jobs: int, interrupted: bool) -> RunState:
    """How a batch that is over ended."""
    if interrupted:
        return RunState.KILLED
    all_finished = len(entries) == num_jobs and all(entry.state == RunState.FINISHED for entry in entries)
    return RunState.FINISHED if all_finished else RunState.FAILED
