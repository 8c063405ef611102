"""The supervisor's hold on MLflow runs: made before the ranks start, ended after they are gone. No torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lrrunner.config.schema import TrackingConfig
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import JobResult, RunState, state_in
from lrrunner.results.status_file import read_status, write_status
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.mlflow_run import MlflowRun, configure_mlflow
from lrrunner.tracking.upload_run import upload_run
from lrrunner.version import __version__

logger = logging.getLogger(__name__)


class SupervisedRun:
    """Makes and ends MLflow runs on behalf of ranks.

    A store that does not answer is asked once; what it misses stays in the run directories.
    """

    def __init__(self) -> None:
        self._unreachable: set[str] = set()

    def open(
        self,
        tracking: TrackingConfig,
        directory: Path,
        *,
        redactor: Redactor,
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        """Make the run of a job.

        Returns:
            Its id; None where tracking is off or the store does not answer.

        Raises:
            ConfigError: the store refuses.
        """
        run = self._connected(tracking, redactor)
        if run is None:
            return None
        own_tags = {"lrrunner.version": __version__, "lrrunner.run_dir": str(directory.resolve())}
        all_tags = own_tags | {key: str(value) for key, value in tracking.tags.items()} | dict(tags or {})
        try:
            return run.create(run_name=tracking.run_name or directory.name, tags=all_tags)
        except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the sweep
            self._give_up(tracking.uri, redactor.text(str(error)))
            return None

    def discard(self, tracking: TrackingConfig, run_id: str, *, redactor: Redactor) -> None:
        """Take back the run of a job that turned out to be a mistake."""
        run = self._connected(tracking, redactor)
        if run is not None:
            run.delete(run_id)

    def close(
        self,
        tracking: TrackingConfig,
        directory: Path,
        result: JobResult,
        *,
        run_id: str | None,
        redactor: Redactor,
    ) -> str | None:
        """See to it that files and MLflow say how a job ended, whatever its ranks could still record.

        Returns:
            The id of its run.
        """
        status = read_status(directory)
        run_id = run_id or status.get("mlflow_run_id")
        cause = redactor.text(result.cause or "") or None
        recorded = state_in(status) == result.state
        if result.state == RunState.FAILED:
            recorded = recorded and status.get("cause") == cause
        if status and not recorded:
            write_status(directory, state=str(result.state), cause=cause)
        run = self._connected(tracking, redactor) if run_id else None
        if run is None or run_id is None:
            return run_id
        try:
            ended = run.status(run_id) != RunState.RUNNING.mlflow_status
            if not (result.is_reported and ended) and (files := read_run(directory)).config:
                upload_run(run, files, run_id=run_id)
            elif not ended:
                run.run_id = run_id
                run.finish_empty(result.state.mlflow_status, note=f"**{result.state.text}**: {cause}")
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(tracking.uri, redactor.text(str(error)))
        return run_id

    def _connected(self, tracking: TrackingConfig, redactor: Redactor) -> MlflowRun | None:
        uri = tracking.uri
        if not tracking.enabled or uri in self._unreachable:
            return None
        configure_mlflow(tracking.timeout_s)
        try:
            return MlflowRun(uri=uri, experiment=tracking.experiment, redactor=redactor)
        except ConnectionError as error:
            self._give_up(uri, str(error))
            return None

    def _give_up(self, uri: str, reason: str) -> None:
        self._unreachable.add(uri)
        logger.warning(
            "MLflow does not answer (%s); the run directory keeps everything, lrrunner-sync brings it later",
            (reason.splitlines() or ["no reason"])[0],
        )
