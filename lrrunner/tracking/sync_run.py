"""Upload a run that is over to the store that its configuration names. No torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace

from lrrunner.config.schema import TrackingConfig
from lrrunner.errors import ConfigError
from lrrunner.results.reader import RunFiles, read_run
from lrrunner.results.run_state import ENDED_WITHOUT_REPORT, RunState
from lrrunner.results.status_file import write_status
from lrrunner.system.process_identity import is_alive
from lrrunner.system.redaction import MASK, Redactor
from lrrunner.tracking.mlflow_run import MlflowRun, configure_mlflow
from lrrunner.tracking.upload_run import upload_run
from lrrunner.version import __version__


def sync_run(files: RunFiles, *, uri: str | None = None, tags: Mapping[str, str] | None = None) -> str:
    """Upload what a run directory holds and MLflow misses, exactly once.

    Args:
        files: The run directory.
        uri: Tracking URI; None: the one that the run was given.
        tags: Further tags, if the run is created.

    Returns:
        The run directory and where the run is in MLflow.

    Raises:
        ConfigError: the store refuses.
        ConnectionError: the store does not answer.
        BlockingIOError: the run has not ended.
    """
    files = _closed(files)
    tracking = tracking_of(files, uri=uri)
    redactor = Redactor.for_run(files.config, os.environ)
    run = MlflowRun(uri=tracking.uri, experiment=tracking.experiment, redactor=redactor)
    run_id: str | None = files.status.get("mlflow_run_id")
    if run_id is None or not run.exists(run_id):
        run_id = _found_or_created(run, files, tracking, tags or {})
        write_status(files.path, mlflow_run_id=run_id)
        files = read_run(files.path)
    upload_run(run, files, run_id=run_id)
    raise_upload_error(run)
    return f"{files.path}: {run.location()}"


def tracking_of(files: RunFiles, *, uri: str | None) -> TrackingConfig:
    """Where a run goes; MLflow's time-outs are set accordingly.

    Raises:
        ConfigError: the URI is masked.
    """
    recorded = files.job.tracking
    tracking = replace(recorded, enabled=True, uri=uri or recorded.uri)
    if MASK in tracking.uri:
        raise ConfigError(
            [f"--uri must be given, got {tracking.uri} from {files.path}, where secrets are masked; name the store"]
        )
    configure_mlflow(tracking.timeout_s)
    return tracking


def raise_upload_error(run: MlflowRun) -> None:
    """Raise what went wrong: a store that refuses will not take it later either."""
    if run.error and run.refused:
        raise ConfigError([f"tracking.uri must take what is sent, got a refusal ({run.error}); see the store"])
    if run.error:
        raise ConnectionError(run.error)


def _found_or_created(run: MlflowRun, files: RunFiles, tracking: TrackingConfig, tags: Mapping[str, str]) -> str:
    identity = {"lrrunner.run_dir": str(files.path.resolve())}
    own = {"lrrunner.version": files.status.get("version", __version__), **identity}
    if files.test is not None:
        own["lrrunner.world_size"] = str(files.test.world_size)
    users = {key: str(value) for key, value in tracking.tags.items()}
    name = tracking.run_name or files.path.resolve().name
    return run.find(identity) or run.create(run_name=name, tags=own | users | dict(tags))


def _closed(files: RunFiles) -> RunFiles:
    """A run that is over; one whose process is gone without a report is closed here."""
    if files.state != RunState.RUNNING:
        return files
    identity = files.status.get("process")
    if identity is None or files.status.get("host") != socket.gethostname() or is_alive(identity):
        raise BlockingIOError(f"{files.path} is still running, or runs on another machine; wait for its end")
    write_status(files.path, state=RunState.KILLED, cause=ENDED_WITHOUT_REPORT)
    return read_run(files.path)
