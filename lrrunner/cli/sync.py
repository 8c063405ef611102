"""``lrrunner-sync``: bring to MLflow what an unreachable server missed, exactly once. No torch."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from lrrunner.batch import ledger
from lrrunner.batch.state import STATE_FILE, batch_lock, read_state, update_state
from lrrunner.batch.summary_run import batch_state, finish_summary_run, start_summary_run, write_summary
from lrrunner.config.schema import TrackingConfig
from lrrunner.errors import ConfigError
from lrrunner.results.reader import RunFiles, read_run
from lrrunner.results.run_state import ENDED_WITHOUT_REPORT, RunState, state_in
from lrrunner.results.status_file import write_status
from lrrunner.system import exit_codes
from lrrunner.system.process_identity import is_alive
from lrrunner.system.redaction import MASK, Redactor
from lrrunner.tracking.mlflow_run import MlflowRun, configure_mlflow
from lrrunner.tracking.upload_run import upload_run
from lrrunner.version import __version__


def main() -> NoReturn:
    """Console script ``lrrunner-sync``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Bring run and batch directories to MLflow.

    Returns:
        Exit code: 0 all of it is there, 1 a store does not answer or a run still works, 2 a directory is none of ours.
    """
    parser = argparse.ArgumentParser(prog="lrrunner-sync", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="directory", help="a run or batch directory")
    parser.add_argument("--uri", help="tracking URI, instead of the one that the run was given")
    words = parser.parse_args(arguments)
    code = exit_codes.OK
    for directory in words.directories:
        try:
            for line in brought(directory, uri=words.uri):
                print(line, flush=True)
        except ConfigError as error:
            print(error, file=sys.stderr)
            code = max(code, exit_codes.CONFIG_ERROR)
        except ConnectionError as error:
            print(f"lrrunner-sync: {directory}: MLflow does not answer ({error}); try again later", file=sys.stderr)
            code = max(code, exit_codes.FAILED)
        except BlockingIOError as error:
            print(f"lrrunner-sync: {error}", file=sys.stderr)
            code = max(code, exit_codes.FAILED)
    return code


def brought(directory: Path, *, uri: str | None = None) -> list[str]:
    """Bring one run, or a batch and its runs.

    Returns:
        What was brought, a line a run.

    Raises:
        ConfigError: no run or batch lives there, or its store refuses.
        ConnectionError: the store does not answer.
        BlockingIOError: the run still works.
    """
    if (directory / ledger.FILE_NAME).exists() or (directory / STATE_FILE).exists():
        with batch_lock(directory):
            return _batch_brought(directory, uri)
    files = read_run(directory)
    if not files.status or not files.config:
        raise ConfigError([f"the directory must hold a run or a batch, got {directory}; name one below runs/"])
    return [_run_brought(files, uri, tags={})]


def _batch_brought(directory: Path, uri: str | None) -> list[str]:
    entries = sorted(ledger.latest(ledger.read(directory)).values(), key=lambda entry: entry.job)
    runs = [read_run(directory / entry.run_dir) for entry in entries if entry.run_dir is not None]
    first = next((files for files in runs if files.config), None)
    if first is None:
        raise ConfigError([f"the batch must have a job that began, got none in {directory}; there is nothing to bring"])
    tracking = _tracking(first, uri)
    redactor = Redactor.for_run(first.config, os.environ)
    state = read_state(directory)
    page = MlflowRun(uri=tracking.uri, experiment=tracking.experiment, redactor=redactor)
    ended = state_in(state) or RunState.RUNNING
    if ended == RunState.RUNNING:  # nobody holds its lock
        ended = RunState.KILLED
        update_state(directory, state=ended)
    page_id = state.get("mlflow_run_id")
    if page_id is None or not page.exists(page_id):
        page_id = page.find({"lrrunner.run_dir": str(directory.resolve()), "lrrunner.batch": "true"})
        if page_id is None:
            page_id = start_summary_run(directory, tracking, command=state.get("command", ""), redactor=redactor)
    if page_id is None:
        raise ConnectionError("it took no page for the batch")
    lines = [_run_brought(files, uri, tags={"mlflow.parentRunId": page_id}) for files in runs if files.config]
    finish_summary_run(
        directory,
        [replace(entry, run_id=_known_id(read_run(directory / (entry.run_dir or "")))) for entry in entries],
        write_summary(directory, entries),
        run=page,
        run_id=page_id,
        state=batch_state(entries, num_jobs=state.get("num_jobs", len(entries)), interrupted=ended == RunState.KILLED),
        command=state.get("command", ""),
    )
    _check_sent(page)
    return [*lines, f"{directory}: {page.location()}"]


def _known_id(files: RunFiles) -> str | None:
    run_id: str | None = files.status.get("mlflow_run_id")
    return run_id


def _run_brought(files: RunFiles, uri: str | None, *, tags: Mapping[str, str]) -> str:
    files = _closed(files)
    tracking = _tracking(files, uri)
    redactor = Redactor.for_run(files.config, os.environ)
    run = MlflowRun(uri=tracking.uri, experiment=tracking.experiment, redactor=redactor)
    run_id = _known_id(files)
    if run_id is None or not run.exists(run_id):
        where = {"lrrunner.run_dir": str(files.path.resolve())}
        own = {"lrrunner.version": files.status.get("version", __version__), **where}
        if files.test is not None:
            own["lrrunner.world_size"] = str(files.test.world_size)
        users = {key: str(value) for key, value in tracking.tags.items()}
        name = tracking.run_name or files.path.resolve().name
        run_id = run.find(where) or run.create(run_name=name, tags=own | users | dict(tags))
        write_status(files.path, mlflow_run_id=run_id)
        files = read_run(files.path)
    upload_run(run, files, run_id=run_id)
    _check_sent(run)
    return f"{files.path}: {run.location()}"


def _check_sent(run: MlflowRun) -> None:
    """Raise what went wrong: a store that refuses will not take it later either."""
    if run.error and run.refused:
        raise ConfigError([f"tracking.uri must take what is sent, got a refusal ({run.error}); see the store"])
    if run.error:
        raise ConnectionError(run.error)


def _closed(files: RunFiles) -> RunFiles:
    """A run that is over; one whose process has gone without a word is closed here."""
    if files.state != RunState.RUNNING:
        return files
    identity = files.status.get("process")
    if identity is None or files.status.get("host") != socket.gethostname() or is_alive(identity):
        raise BlockingIOError(f"{files.path} still works, or works on another machine; wait for its end")
    write_status(files.path, state=RunState.KILLED, cause=ENDED_WITHOUT_REPORT)
    return read_run(files.path)


def _tracking(files: RunFiles, uri: str | None) -> TrackingConfig:
    """Where the run goes, with the store configured."""
    recorded = files.job.tracking
    tracking = replace(recorded, enabled=True, uri=uri or recorded.uri)
    if MASK in tracking.uri:
        raise ConfigError(
            [f"--uri must be given, got {tracking.uri} from {files.path}, where secrets are masked; name the store"]
        )
    configure_mlflow(tracking.timeout_s)
    return tracking


if __name__ == "__main__":
    main()
