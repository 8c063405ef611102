"""Upload to MLflow what a batch directory holds and MLflow misses, exactly once. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrrunner.batch import ledger
from lrrunner.batch.collect import batch_state
from lrrunner.batch.directory import batch_lock
from lrrunner.batch.ledger import Entry
from lrrunner.batch.state import read_state, update_state
from lrrunner.batch.summary.summary_files import write_summary
from lrrunner.batch.summary.summary_run import create_summary_run, find_summary_run, finish_summary_run
from lrrunner.batch.summary.summary_table import batch_name, entry_labels
from lrrunner.errors import ConfigError
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.runs import run_exists, run_location
from lrrunner.tracking.sync_run import connect_for, raise_failure, sync_run


def sync_batch(directory: Path, *, uri: str | None = None) -> list[str]:
    """Upload a batch and its runs.

    Args:
        directory: The batch directory.
        uri: Tracking URI; None: the one that the batch was given.

    Returns:
        What was uploaded, a line for each run.

    Raises:
        ConfigError: no job of the batch began, or the store refuses.
        ConnectionError: the store does not answer.
        BlockingIOError: the batch, or a run of it, has not ended.
    """
    with batch_lock(directory):
        return upload_batch(directory, uri=uri)


def upload_batch(directory: Path, *, uri: str | None = None) -> list[str]:
    """As :func:`sync_batch`, for a process that holds the directory's lock."""
    entries = sorted(ledger.latest(ledger.read(directory)).values(), key=lambda entry: entry.job)
    labelled = zip(entries, entry_labels(entries), strict=True)
    named = [(read_run(directory / entry.run_dir), label) for entry, label in labelled if entry.run_dir is not None]
    runs = [(files, label) for files, label in named if files.config]
    if not runs:
        raise ConfigError([f"the batch must have a job that began, got none in {directory}; nothing can be uploaded"])
    connection = connect_for(runs[0][0], uri=uri)
    parent = _known_or_new(connection, directory, name=batch_name([entry.overrides for entry in entries]))
    update_state(directory, mlflow_run_id=parent)
    lines = [sync_run(files, uri=uri, name=label, tags={tag_names.PARENT: parent}) for files, label in runs]
    entries = [replace(entry, run_id=_run_id(directory, entry)) for entry in entries]
    figures = write_summary(directory, entries)
    state = _final_state(directory, entries)
    raise_failure(finish_summary_run(connection, directory, entries, figures=figures, state=state))
    return [*lines, f"{directory}: {run_location(connection, parent)}"]


def _known_or_new(connection: Connection, directory: Path, *, name: str) -> str:
    """The id of the summary run: that of batch.json, one that was created without batch.json knowing, or a new one."""
    known: str | None = read_state(directory).get("mlflow_run_id")
    if known is not None and run_exists(connection, known):
        return known
    try:
        return find_summary_run(connection, directory) or create_summary_run(connection, directory, name=name)
    except Exception as error:  # noqa: BLE001 - a store that was reached and fails now
        raise ConnectionError(f"no summary run for the batch: {type(error).__name__}") from None


def _run_id(directory: Path, entry: Entry) -> str | None:
    if entry.run_dir is None:
        return None
    run_id: str | None = read_status(directory / entry.run_dir).get("mlflow_run_id")
    return run_id


def _final_state(directory: Path, entries: Sequence[Entry]) -> RunState:
    """How a batch that is over ended; one that counts as running was killed, since nobody holds its lock."""
    recorded = read_state(directory)
    killed = state_in(recorded) in (None, RunState.RUNNING, RunState.KILLED)
    if killed:
        update_state(directory, state=RunState.KILLED)
    return batch_state(entries, num_jobs=recorded.get("num_jobs", len(entries)), interrupted=killed)
