"""MLflow runs of a supervisor: created before the ranks start, ended when they are gone."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

from lrrunner.config.schema import TrackingConfig
from lrrunner.reporting.run_summary import link_figure, unfinished_note
from lrrunner.results.artifacts import NOTE_FILE
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import JobResult, RunState, state_in
from lrrunner.results.status_file import read_status, write_status
from lrrunner.system.atomic_files import write_text
from lrrunner.system.bounded_call import done_within
from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.names.tag_names import PARENT, RUN_DIR, VERSION
from lrrunner.tracking.store.connection import Connection, connect_or_warn, warn_unreachable
from lrrunner.tracking.store.failures import upload_failure
from lrrunner.tracking.store.runs import create_or_join_run, create_run, delete_run, end_run, is_running
from lrrunner.tracking.upload.upload_run import NO_CAUSE, note_from_status, upload_run
from lrrunner.version import __version__

KEPT_IN = "run directory"

END_WITHIN_S = 5.0
"""How long a user who wants the end at once waits for the store to take it."""

logger = logging.getLogger(__name__)


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
            create = create_run if PARENT in (tags or {}) else create_or_join_run
            return create(
                connection,
                run_name=tracking.run_name or name,
                tags=own_tags | user_tags | dict(tags or {}),
            )
        except Exception as error:  # noqa: BLE001 - a store that fails now must not cost the sweep
            self._give_up(tracking.uri, upload_failure(error, redactor).reason)
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
        at_once: bool = False,
    ) -> str | None:
        """Record how a job has ended in its files and in MLflow, whatever its ranks could still record.

        Args:
            tracking: Its section ``tracking``.
            directory: Its run directory.
            result: What became of its ranks.
            run_id: Its run, as :meth:`create` has returned it.
            redactor: Masks secrets.
            at_once: Leave the upload to ``lrrunner-sync``, and do not wait for a slow store.

        Returns:
            The id of its run.
        """
        run_id = run_id or read_status(directory).get("mlflow_run_id")
        cause = redactor.text(result.cause or "") or None
        try:
            _record_end(directory, state=result.state, cause=cause)
        except OSError as error:  # rank 0 has reported that the directory cannot be written
            logger.info("%s: the end cannot be recorded (%s)", directory, error)
        if run_id is not None:
            end = functools.partial(self._end_run, tracking, directory, result, run_id=run_id, redactor=redactor)
            if not at_once:
                end(is_uploaded=True)
            elif not done_within(END_WITHIN_S, functools.partial(end, is_uploaded=False)):
                logger.warning("MLflow was not waited for; lrrunner-sync %s gives the run its end", directory)
        return run_id

    def _end_run(
        self,
        tracking: TrackingConfig,
        directory: Path,
        result: JobResult,
        *,
        run_id: str,
        redactor: Redactor,
        is_uploaded: bool,
    ) -> None:
        """End a run in MLflow, uploaded before if that is asked for and rank 0 could not do it."""
        connection = self._connect(tracking, redactor)
        if connection is None:
            return
        try:
            # a run that a killed rank 0 has reopened counts as abandoned, and was ended by connecting
            is_open = is_running(connection, run_id) or not result.is_reported
            if is_uploaded and is_open and (files := read_run(directory)).config:
                upload_run(connection, files, run_id=run_id)
            elif is_open:
                cause = redactor.text(result.cause or NO_CAUSE)
                is_recorded = bool(read_status(directory))
                note = note_from_status(directory) if is_recorded else unfinished_note(result.state, cause=cause)
                end_run(connection, run_id, result.state, note=link_figure(note, run_id=run_id))
        except Exception as error:  # noqa: BLE001 - as in create
            self._give_up(tracking.uri, upload_failure(error, redactor).reason)

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
