"""MLflow runs of a supervisor: created before the ranks start, ended when they are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lrrunner.config.schema import TrackingConfig
from lrrunner.reporting.run_summary import unfinished_note
from lrrunner.results.artifacts import NOTE_FILE
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import JobResult, RunState, state_in
from lrrunner.results.status_file import read_status, write_status
from lrrunner.system.atomic_files import write_text
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.connection import Connection, connect_or_warn, first_line, warn_unreachable
from lrrunner.tracking.runs import create_run, delete_run, end_run, is_running
from lrrunner.tracking.tag_names import RUN_DIR, VERSION
from lrrunner.tracking.upload_run import NO_CAUSE, note_from_status, upload_run
from lrrunner.version import __version__

KEPT_IN = "run directory"


class SupervisedRuns:
    """Creates and ends the runs of jobs on behalf of their ranks.

    A store that does not answer is not asked again; what it misses stays in the run directories.
    """

    def __init__(self) -> None:
        self._unreachable: set[str] = set()

    def create(
        self,
        tracking: TrackingConfig,
        directory: Path,
        *,
        name: str,
        redactor: Redactor,
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        """Create the run of a job, with this name unless ``tracking.run_name`` is set.

        Returns:
            Its id; None if tracking is off or the store does not answer.

        Raises:
            ConfigError: the store answers, but cannot be used.
        """
        connection = self._connect(tracking, redactor)
        if connection is None:
            return None
        own_tags = {VERSION: __version__, RUN_DIR: str(directory.resolve())}
        user_tags = {key: str(value) for key, value in tracking.tags.items()}
        try:
            return create_run(
                connection,
                run_name=tracking.run_name or name,
                tags=own_tags | user_tags | dict(tags or {}),
            )
        except Exception as error:  # noqa: BLE001 - a store that fails now must not cost the sweep
            self._give_up(tracking.uri, redactor.text(first_line(error)))
            return None

    def delete(self, tracking: TrackingConfig, run_id: str, *, redactor: Redactor) -> None:
        """Delete the run of a job whose configuration turned out to be wrong."""
        connection = self._connect(tracking, redactor)
        if connection is not None:
            delete_run(connection, run_id)

    def end(
        self,
        tracking: TrackingConfig,
        directory: Path,
        result: JobResult,
        *,
        run_id: str | None,
        redactor: Redactor,
    ) -> str | None:
        """Record how a job has ended in its files and in MLflow, whatever its ranks could still record.

        Returns:
            The id of its run.
        """
        run_id = run_id or read_status(directory).get("mlflow_run_id")
        cause = redactor.text(result.cause or "") or None
        _record_end(directory, state=result.state, cause=cause)
        connection = self._connect(tracking, redactor) if run_id else None
        if connection is None or run_id is None:
            return run_id
        try:
            running = is_running(connection, run_id)
            if (running or not result.is_reported) and (files := read_run(directory)).config:
                upload_run(connection, files, run_id=run_id)
            elif running:
                note = unfinished_note(result.state, cause=cause or NO_CAUSE, resume=None)
                end_run(connection, run_id, result.state, note=note)
        except Exception as error:  # noqa: BLE001 - as in create
            self._give_up(tracking.uri, redactor.text(first_line(error)))
        return run_id

    def _connect(self, tracking: TrackingConfig, redactor: Redactor) -> Connection | None:
        if not tracking.enabled or tracking.uri in self._unreachable:
            return None
        connection = connect_or_warn(tracking, redactor, kept_in=KEPT_IN)
        if connection is None:
            self._unreachable.add(tracking.uri)
        return connection

    def _give_up(self, uri: str, reason: str) -> None:
        self._unreachable.add(uri)
        warn_unreachable(reason, kept_in=KEPT_IN)


def _record_end(directory: Path, *, state: RunState, cause: str | None) -> None:
    """Record how a job has ended in its status.json and note.md, unless rank 0 has recorded the same."""
    status = read_status(directory)
    is_recorded = state_in(status) == state and (state != RunState.FAILED or status.get("cause") == cause)
    if status and not is_recorded:
        write_status(directory, state=str(state), cause=cause)
        if state != RunState.FINISHED:
            write_text(directory / NOTE_FILE, note_from_status(directory), durable=True)
