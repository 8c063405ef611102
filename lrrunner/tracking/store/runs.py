"""Runs of an experiment in MLflow: create, find, reopen, end, delete."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lrrunner.results.run_state import RunState
from lrrunner.tracking.names.environment_tags import RUN_ID_VARIABLE, environment_tags, git_tags
from lrrunner.tracking.names.tag_names import HOST, NOTE, RUN_DIR
from lrrunner.tracking.store.abandoned_runs import owner_tags
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.failures import UploadFailure, upload_failure

if TYPE_CHECKING:
    from mlflow.entities import Run

MAX_NOTE_LENGTH = 8000
MAX_DOUBLES = 10


def create_run(connection: Connection, *, run_name: str, tags: Mapping[str, str]) -> str:
    """Create a run that this process will end.

    Args:
        connection: The experiment.
        run_name: Shown name.
        tags: Its tags, beside those of its owner and those that MLflow's fluent API sets (user, source, commit).

    Returns:
        The run's id.
    """
    from mlflow.tracking.context.registry import resolve_tags

    redact = connection.redactor.text
    all_tags = {**resolve_tags(), **git_tags(), **owner_tags(), **environment_tags(os.environ), **tags}
    run = connection.client.create_run(
        connection.experiment_id,
        run_name=redact(run_name),
        tags={key: redact(str(value)) for key, value in all_tags.items()},
    )
    return str(run.info.run_id)


def create_or_join_run(connection: Connection, *, run_name: str, tags: Mapping[str, str]) -> str:
    """As :func:`create_run`, but a run that MLFLOW_RUN_ID names is continued, inside of ``mlflow run`` for example."""
    run_id = os.environ.get(RUN_ID_VARIABLE)
    if not run_id or not run_exists(connection, run_id):
        return create_run(connection, run_name=run_name, tags=tags)
    reopen_run(connection, run_id)
    for key, value in {**environment_tags(os.environ), **tags}.items():
        connection.client.set_tag(run_id, key, connection.redactor.text(str(value)))
    return run_id


def reopen_run(connection: Connection, run_id: str) -> None:
    """Continue a run that has ended; this process will end it again."""
    connection.client.update_run(run_id, status=RunState.RUNNING.mlflow_status)
    for key, value in owner_tags().items():
        connection.client.set_tag(run_id, key, value)


def end_run(connection: Connection, run_id: str, state: RunState, *, note: str | None = None) -> UploadFailure | None:
    """End a run with an explicit status. Never raises.

    Args:
        connection: The experiment.
        run_id: The run.
        state: How it ended.
        note: Markdown for its description; None leaves that as it is.

    Returns:
        What failed, if anything did.
    """
    try:
        if note is not None:
            set_note(connection, run_id, note)
        connection.client.set_terminated(run_id, state.mlflow_status)
    except Exception as error:  # noqa: BLE001 - SQLAlchemy, its drivers and MLflow raise what they like
        return upload_failure(error, connection.redactor)
    return None


def set_note(connection: Connection, run_id: str, note: str) -> None:
    """Set a run's description, in Markdown."""
    connection.client.set_tag(run_id, NOTE, connection.redactor.text(note)[:MAX_NOTE_LENGTH])


def delete_tag(connection: Connection, run_id: str, name: str) -> None:
    """Delete a tag, if the run has it."""
    if name in connection.client.get_run(run_id).data.tags:
        connection.client.delete_tag(run_id, name)


def delete_run(connection: Connection, run_id: str) -> None:
    """Delete a run whose configuration turned out to be wrong, unless others have created it. Never raises."""
    if run_id == os.environ.get(RUN_ID_VARIABLE):
        return
    try:
        connection.client.delete_run(run_id)
    except Exception as error:  # noqa: BLE001 - as in end_run
        upload_failure(error, connection.redactor)


def is_running(connection: Connection, run_id: str) -> bool:
    """Whether a run has not been ended."""
    return str(connection.client.get_run(run_id).info.status) == RunState.RUNNING.mlflow_status


def run_exists(connection: Connection, run_id: str) -> bool:
    """Whether the store has a run that nobody has deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return str(connection.client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def delete_doubles(connection: Connection, run_id: str) -> None:
    """Delete the runs that requests to create this one have left, whose answers were lost on the way. Never raises.

    HTTP libraries repeat such a request. What is left has the same directory and host, and nobody has joined it: it has
    neither params nor metrics.
    """
    try:
        tags = connection.client.get_run(run_id).data.tags
        identity = {key: tags[key] for key in (RUN_DIR, HOST) if key in tags}
        if len(identity) == 2:
            for run in _runs_with(connection, identity, limit=MAX_DOUBLES):
                if run.info.run_id != run_id and not run.data.params and not run.data.metrics:
                    connection.client.delete_run(run.info.run_id)
    except Exception as error:  # noqa: BLE001 - as in end_run
        upload_failure(error, connection.redactor)


def find_run(connection: Connection, tags: Mapping[str, str]) -> str | None:
    """Id of a run of the experiment with these tags; None if there is none."""
    runs = _runs_with(connection, tags, limit=MAX_DOUBLES)
    joined = [run for run in runs if run.data.params] or runs
    return str(joined[0].info.run_id) if joined else None


def _runs_with(connection: Connection, tags: Mapping[str, str], *, limit: int) -> list[Run]:
    """Runs of the experiment with these tags."""
    filter_string = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
    return list(connection.client.search_runs([connection.experiment_id], filter_string, max_results=limit))


def run_location(connection: Connection, run_id: str) -> str:
    """Where to look at a run: its URL if a server has it, else the command that opens its store."""
    uri = connection.redactor.text(connection.uri)
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/#/experiments/{connection.experiment_id}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {shlex.quote(_relative(uri))}"


def _relative(uri: str) -> str:
    """A store in the working directory by its relative path, which is short."""
    scheme, separator, path = uri.partition(":///")
    with contextlib.suppress(ValueError):
        return f"{scheme}{separator}{Path(path).relative_to(Path.cwd())}"
    return uri


def _quoted(value: str) -> str:
    """A literal of MLflow's search, which knows no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"
