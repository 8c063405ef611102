"""Rank 0's MLflow run, as far as a store answers: MLflow must not cost the sweep."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from lrrunner.config.command_line import sync_command
from lrrunner.records import Step, Trial
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.system.bounded_call import done_within
from lrrunner.system.output.terminal import shown_path
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.names.run_names import default_run_name
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.failures import failure_reason
from lrrunner.tracking.store.runs import create_or_join_run, end_run, find_run, reopen_run, run_exists
from lrrunner.tracking.upload.mlflow_run import MlflowRun, RunEnd, join_run
from lrrunner.tracking.upload.training_set import TrainingSet
from lrrunner.version import __version__
from lrrunner.worker.run_context import RunContext

END_WITHIN_S = 5.0
"""How long a process that is about to be killed waits for the store to take the status."""

logger = logging.getLogger(__name__)


class TrackedRun:
    """Logs a run to MLflow. Without a connection, or after a start that failed, its methods do nothing.

    Args:
        context: The run.
        connection: The experiment; None logs nothing.
        run_id: A run that a supervisor has created; None creates one, or reopens that of a resumed run.
    """

    def __init__(self, context: RunContext, connection: Connection | None, *, run_id: str | None) -> None:
        self._context, self._connection, self._given_run_id = context, connection, run_id
        self._run: MlflowRun | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the run; None if nothing is logged."""
        return None if self._run is None else self._run.run_id

    @property
    def location(self) -> str | None:
        """Where to look at the run; None if nothing is logged."""
        return None if self._run is None else self._run.location

    def start(self, directory: RunDirectory, training_set: TrainingSet) -> None:
        """Create the run, or join the one that exists already, and log the configuration."""
        if self._connection is None:
            return
        run_id, tags = self._given_run_id, self._tags(directory.path)
        job = self._context.job
        run_name = job.tracking.run_name or default_run_name(job)
        try:
            run_id = (
                run_id or self._reopen(directory) or create_or_join_run(self._connection, run_name=run_name, tags=tags)
            )
            self._run = join_run(
                self._connection, run_id, job=job, params=self._context.values, tags=tags, dataset=training_set
            )
        except Exception as error:  # noqa: BLE001 - a store that fails now must not cost the sweep
            reason = failure_reason(error, self._context.redactor)
            logger.warning("MLflow failed (%s); the run directory keeps everything", reason)
            if run_id is not None:
                end_run(self._connection, run_id, RunState.FAILED)

    def log_step(self, step: Step) -> None:
        """Queue a step of the sweep."""
        if self._run is not None:
            self._run.log_step(step)

    def log_passes(self, *, curve_pass: int | None) -> None:
        """Queue the metrics of the sweep, which is over."""
        if self._run is not None:
            self._run.log_passes(curve_pass=curve_pass)

    def log_trial_step(self, number: int, step: Step) -> None:
        """Queue a step of a confirmation run."""
        if self._run is not None:
            self._run.log_trial_step(number, step)

    def log_trial(self, trial: Trial, *, timestamp_ms: int) -> None:
        """Queue what a confirmation run has measured."""
        if self._run is not None:
            self._run.log_trial(trial, timestamp_ms=timestamp_ms)

    def finish(self, end: RunEnd) -> None:
        """Upload everything else and end the run."""
        failure = None if self._run is None else self._run.finish(end)
        if failure is not None:
            sync = sync_command(shown_path(end.directory))
            logger.warning("MLflow lacks a part of the run (%s); upload it with %s", failure.reason, sync)

    def end(self, state: RunState, *, note: str | None = None) -> None:
        """End the run and upload nothing but a description, if there is one.

        May be called from another thread. A slow store is not waited for.
        """
        if self._run is not None:
            done_within(END_WITHIN_S, functools.partial(self._run.end, state, note=note))

    def _reopen(self, directory: RunDirectory) -> str | None:
        """Reopen the run of a previous attempt; None if there is none."""
        if self._connection is None or self._context.job.run.resume is None:
            return None
        run_id = directory.mlflow_run_id
        if run_id is None or not run_exists(self._connection, run_id):
            run_id = find_run(self._connection, {tag_names.RUN_DIR: str(directory.path)})
        if run_id is not None:
            reopen_run(self._connection, run_id)
        return run_id

    def _tags(self, directory: Path) -> dict[str, str]:
        own_tags = {
            tag_names.WORLD_SIZE: str(self._context.world_size),
            tag_names.VERSION: __version__,
            tag_names.RUN_DIR: str(directory),
        }
        return own_tags | {key: str(value) for key, value in self._context.job.tracking.tags.items()}
