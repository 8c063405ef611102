"""Upload a run that is over to the store that its configuration names. No torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from lrrunner.errors import ConfigError
from lrrunner.results.artifacts import RECORDS_FILE, STATUS_FILE, TRIAL_RECORDS_FILE
from lrrunner.results.reader import RunFiles, read_run
from lrrunner.results.run_state import ENDED_WITHOUT_REPORT, RunState
from lrrunner.results.status_file import write_status
from lrrunner.system.output.redaction import MASK, Redactor
from lrrunner.system.processes.process_identity import is_alive, is_gone
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.names.run_names import default_run_name
from lrrunner.tracking.store.connection import Connection, connect
from lrrunner.tracking.store.failures import UploadFailure
from lrrunner.tracking.store.runs import create_run, delete_doubles, find_run, run_exists, run_location
from lrrunner.tracking.upload.upload_run import upload_run
from lrrunner.version import __version__

CREDENTIALS = (
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"),
)
"""What MLflow sends, or signs with, to whichever server it talks to."""

CREDENTIALS_FILE = Path("~/.mlflow/credentials")


def sync_run(
    files: RunFiles, *, uri: str | None = None, name: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """As :func:`synced_location`; returns the run directory and where the run is in MLflow."""
    return f"{files.path}: {synced_location(files, uri=uri, name=name, tags=tags)}"


def synced_location(
    files: RunFiles, *, uri: str | None = None, name: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Upload what a run directory holds and MLflow misses, exactly once.

    Args:
        files: The run directory.
        uri: Tracking URI; None: the one that the run was given.
        name: Name of the run if it is created, and its configuration gives it none; None: what is swept.
        tags: Further tags, if the run is created.

    Returns:
        Where the run is in MLflow.

    Raises:
        ConfigError: the store refuses.
        ConnectionError: the store does not answer.
        BlockingIOError: the run has not ended.
    """
    files = _closed(files)
    connection = connect_for(files, uri=uri)
    run_id: str | None = files.status.get("mlflow_run_id")
    if run_id is None or not run_exists(connection, run_id):
        run_id = _found_or_created(connection, files, name or default_run_name(files.job), tags or {})
        write_status(files.path, mlflow_run_id=run_id)
        files = read_run(files.path)
    raise_failure(upload_run(connection, files, run_id=run_id))
    delete_doubles(connection, run_id)
    return run_location(connection, run_id)


def connect_for(files: RunFiles, *, uri: str | None) -> Connection:
    """Connect to the store that a run was given, or to another one.

    Args:
        files: The run directory.
        uri: Tracking URI; None: the one that the run was given.

    Raises:
        ConfigError: the URI is masked, or the store cannot be used.
        ConnectionError: the store does not answer.
    """
    tracking = files.job.tracking
    if uri is None:
        uri = tracking.uri
        if MASK in uri:
            raise ConfigError(
                [f"--uri must be given, got {uri} from {files.path}, where secrets are masked; name the store"]
            )
        check_credentials(uri, files.path, os.environ)
    redactor = Redactor.for_run(files.config, os.environ)
    return connect(uri=uri, experiment=tracking.experiment, redactor=redactor, timeout_s=tracking.timeout_s)


def check_credentials(uri: str, directory: Path, environ: Mapping[str, str]) -> None:
    """Refuse to send the user's credentials to a server that only a run directory names: anybody may have written it.

    Raises:
        ConfigError: there are some, and ``MLFLOW_TRACKING_URI`` names another server.
    """
    given = [name for name in CREDENTIALS if environ.get(name)]
    if CREDENTIALS_FILE.expanduser().exists():
        given.append(str(CREDENTIALS_FILE))
    server = urlsplit(uri)
    known = urlsplit(environ.get("MLFLOW_TRACKING_URI", ""))
    if given and server.scheme in ("http", "https") and server[:2] != known[:2]:
        raise ConfigError(
            [
                f"--uri must be given to send {', '.join(given)} to {uri}, which {directory} names and "
                f"MLFLOW_TRACKING_URI does not; if you trust it, add --uri {uri}"
            ]
        )


def raise_failure(failure: UploadFailure | None) -> None:
    """Raise why something is missing in MLflow: a store that refuses it will not take it later either."""
    if failure is None:
        return
    if failure.is_refusal:
        raise ConfigError([f"tracking.uri must take what is sent, got a refusal ({failure.reason}); see the store"])
    raise ConnectionError(failure.reason)


def _found_or_created(connection: Connection, files: RunFiles, name: str, tags: Mapping[str, str]) -> str:
    tracking = files.job.tracking
    identity = {tag_names.RUN_DIR: str(files.path.resolve())}
    own_tags = {tag_names.VERSION: files.status.get("version", __version__), **identity}
    if files.test is not None:
        own_tags[tag_names.WORLD_SIZE] = str(files.test.world_size)
    user_tags = {key: str(value) for key, value in tracking.tags.items()}
    return find_run(connection, identity) or create_run(
        connection, run_name=tracking.run_name or name, tags=own_tags | user_tags | dict(tags)
    )


def _closed(files: RunFiles) -> RunFiles:
    """A run that is over; one whose process is gone without a report is closed here."""
    if files.state != RunState.RUNNING:
        return files
    identity = files.status.get("process")
    if not is_gone(identity) and (_may_run(identity, files.status.get("host")) or not _is_silent(files)):
        raise BlockingIOError(f"{files.path} is still running, or runs on another machine; wait for its end")
    write_status(files.path, state=RunState.KILLED, cause=ENDED_WITHOUT_REPORT)
    return read_run(files.path)


def _may_run(identity: object, host: object) -> bool:
    """Whether a process may be running, as far as its identity and the name of its machine show."""
    return identity is None or host != socket.gethostname() or is_alive(identity)


def _is_silent(files: RunFiles) -> bool:
    """Whether a run has written nothing for so long that a supervisor would have ended it.

    Two machines of one name cannot be told apart otherwise: one of them may have started again, or be another one.
    """
    names = (STATUS_FILE, RECORDS_FILE, TRIAL_RECORDS_FILE)
    written_at = max(path.stat().st_mtime for name in names if (path := files.path / name).exists())
    return time.time() - written_at > files.job.launch.timeout_s
