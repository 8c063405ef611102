"""Connecting to an MLflow store. Rank 0, the supervisor and ``lrrunner-sync`` do, and import MLflow only then."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lrrunner.config.schema import TrackingConfig
from lrrunner.errors import ConfigError
from lrrunner.system.garbage_collection import collection_paused
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.processes.interrupt_counter import num_interrupts
from lrrunner.tracking.store.abandoned_runs import end_abandoned_runs
from lrrunner.tracking.store.bounded_client import BoundedClient, keep_attempts_off_the_terminal, within
from lrrunner.tracking.store.failures import failure_reason, first_line, is_unreachable
from lrrunner.tracking.store.sqlite_database import (
    SCHEME as SQLITE,
)
from lrrunner.tracking.store.sqlite_database import (
    check_database,
    database_lock,
    database_path,
    warn_of_migration,
    warn_of_network,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")

OPEN_WITHIN_S = 120.0
"""MLflow makes the tables of a new database in five seconds, on a busy machine in many; half of them are of no use."""

METRICS_FIRST = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of an experiment whose page shows metrics and charts first, not traces and prompts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An experiment in a store that answers.

    Attributes:
        client: MLflow's client of the store.
        uri: Tracking URI; a relative path in it is made absolute.
        experiment: Name of the experiment.
        experiment_id: Its id.
        redactor: Masks secrets in everything sent and shown.
    """

    client: MlflowClient
    uri: str
    experiment: str
    experiment_id: str
    redactor: Redactor


def connect(*, uri: str, experiment: str, redactor: Redactor, timeout_s: float | None = None) -> Connection:
    """Connect to a store, create the experiment if it is missing, and end runs whose process is gone.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment.
        redactor: Masks secrets.
        timeout_s: Seconds that a call may take; None does not limit them, and keeps what the environment sets for
            requests.

    Raises:
        ConfigError: the store answers, but cannot be used.
        ConnectionError: the store does not answer.
    """
    uri = anchored_uri(uri)
    if uri.startswith(SQLITE):
        check_database(database_path(uri))
    known = num_interrupts()
    try:
        import_mlflow(uri, timeout_s=timeout_s)
        if num_interrupts() > known:
            raise InterruptedError("interrupted")
        client = _opened_client(uri, timeout_s=timeout_s)
        experiment_id = _experiment_id(client, experiment, uri)
        end_abandoned_runs(client, experiment_id)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - SQLAlchemy, its drivers and MLflow raise what they like
        logger.info("MLflow: %s", redactor.text(first_line(error)))
        reason = failure_reason(error, redactor)
        if is_unreachable(error):
            raise ConnectionError(reason) from None
        message = f"tracking.uri must name a usable store, got {redactor.text(uri)} ({reason})"
        missing = f"install {error.name}, " if isinstance(error, ModuleNotFoundError) else "correct it, "
        raise ConfigError([f"{message}; {missing}or set tracking.enabled=false"]) from None
    return Connection(client=client, uri=uri, experiment=experiment, experiment_id=experiment_id, redactor=redactor)


def _opened_client(uri: str, *, timeout_s: float | None) -> MlflowClient:
    """MLflow's client; its first use of a database makes the tables, which takes seconds."""
    from mlflow import MlflowClient

    def open_store() -> MlflowClient:
        if not uri.startswith(SQLITE):
            return MlflowClient(tracking_uri=uri)
        path = database_path(uri)
        warn_of_network(path)
        with database_lock(path, timeout_s=OPEN_WITHIN_S):
            warn_of_migration(path, _newest_revision())
            return MlflowClient(tracking_uri=uri)

    if timeout_s is None:
        return open_store()
    keep_attempts_off_the_terminal()
    client = within(OPEN_WITHIN_S if _is_database(uri) else timeout_s, open_store)
    return cast("MlflowClient", BoundedClient(client, timeout_s))


def _newest_revision() -> str:
    """The schema of MLflow's tables in this version."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def import_mlflow(uri: str, *, timeout_s: float | None) -> None:
    """Import MLflow's client and the store of a database, which its first use would import.

    Args:
        uri: Tracking URI.
        timeout_s: Timeout of a request to a server; None keeps what the environment sets.
    """
    if timeout_s is not None:
        limit_requests(timeout_s)
    with collection_paused():
        importlib.import_module("mlflow")
        if _is_database(uri):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def connect_or_warn(tracking: TrackingConfig, redactor: Redactor, *, kept_in: str) -> Connection | None:
    """Connect to the store of a job.

    Args:
        tracking: The section ``tracking``.
        redactor: Masks secrets.
        kept_in: What holds everything that MLflow misses, for the warning.

    Returns:
        The connection; None if the store does not answer, with a warning unless a signal has ended the attempt.

    Raises:
        ConfigError: the store answers, but cannot be used.
    """
    known = num_interrupts()
    try:
        return connect(
            uri=tracking.uri, experiment=tracking.experiment, redactor=redactor, timeout_s=tracking.timeout_s
        )
    except ConnectionError as error:
        if num_interrupts() == known:
            warn_unreachable(str(error), kept_in=kept_in)
        return None


def warn_unreachable(reason: str, *, kept_in: str) -> None:
    """Warn that MLflow misses something that ``lrrunner-sync`` can upload later."""
    logger.warning(
        "MLflow does not answer (%s); the %s keeps everything, lrrunner-sync uploads it later", reason, kept_in
    )


def limit_requests(timeout_s: float) -> None:
    """Set a timeout and few retries for MLflow's requests: by default, one to a dead server blocks for minutes.

    MLflow reads them from the environment, where the user's own values take precedence.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(timeout_s))))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def anchored_uri(uri: str) -> str:
    """A SQLite URI with an absolute path, which stays valid after a change of directory; other URIs as they are.

    >>> anchored_uri("sqlite:////data/a.db"), anchored_uri("http://host:5000")
    ('sqlite:////data/a.db', 'http://host:5000')
    """
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri


class ScriptTracking(NamedTuple):
    """Where the calling script logs.

    Attributes:
        uri: Tracking URI.
        experiment: Name of its experiment; None if it has not chosen one.
        run_id: Its active run, if there is one.
    """

    uri: str
    experiment: str | None
    run_id: str | None


def script_tracking() -> ScriptTracking:
    """What MLflow's fluent API would use in this process."""
    import mlflow

    uri, active = mlflow.get_tracking_uri(), mlflow.active_run()
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if active is None else active.info.experiment_id
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if experiment_id:
        experiment = mlflow.MlflowClient(tracking_uri=uri).get_experiment(experiment_id).name
    return ScriptTracking(uri, experiment, None if active is None else active.info.run_id)


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, which is created if it is missing.

    Raises:
        ConfigError: it has been deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri), tags=METRICS_FIRST))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process may have created it
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            [f"tracking.experiment must not be a deleted one, got {name}; restore it or choose another name"]
        )
    return str(experiment.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Where a store without a server keeps artifacts; None leaves it to the server."""
    return Path("mlartifacts").resolve().as_uri() if _is_database(uri) else None


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in DATABASE_SCHEMES
