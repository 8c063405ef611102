"""A store that fails costs seconds and no record, and its libraries say nothing on the terminal."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.launching import Finished, finish, launch, start

SHORT = ("sweep.num_steps=12", "sweep.auto_range=false")
CHATTER = ("HTTPConnectionPool", "urllib3", "Retrying", "Traceback", "sqlalche.me", "Operation will be retried")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that lets clients connect, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def assert_only_told_once(done: Finished, reason: str) -> None:
    assert done.err.count("MLflow does not answer") == 1, done.err
    assert f"MLflow does not answer ({reason}); the run directory keeps everything" in done.err
    assert not [text for text in CHATTER if text in done.err + done.out]
    assert done.read("status.json")["state"] == "finished"
    assert done.read("status.json")["mlflow_run_id"] is None


@pytest.mark.parametrize("supervised", [(), ("launch.num_processes=1",)], ids=["one process", "supervised"])
def test_a_server_that_never_answers_costs_one_call(
    tmp_path: Path, silent_server: str, supervised: tuple[str, ...]
) -> None:
    """Each of MLflow's own attempts would wait for the whole time again."""
    done = launch(tmp_path, *SHORT, f"tracking.uri={silent_server}", "tracking.timeout_s=0.5", *supervised)
    assert done.code == 0, done.err
    assert_only_told_once(done, "no answer within 0.5 s")


def test_a_server_that_is_not_there_is_said_in_plain_text(tmp_path: Path) -> None:
    """HTTP libraries name their own classes and objects."""
    done = launch(tmp_path, *SHORT, "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=30")
    assert done.code == 0, done.err
    assert_only_told_once(done, "connection refused")


def test_a_locked_database_costs_the_time_of_a_call(tmp_path: Path) -> None:
    """SQLite waits for twenty seconds each time; the run goes on without the store."""
    launch(tmp_path, *SHORT, "run.dir=first")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        done = launch(tmp_path, *SHORT, "tracking.timeout_s=0.5", "run.dir=run")
    assert done.code == 0, done.err
    assert "MLflow does not answer" in done.err
    assert not [text for text in CHATTER if text in done.err]
    assert done.read("status.json")["state"] == "finished"


def test_two_processes_with_their_own_temporary_folders_make_one_database(tmp_path: Path) -> None:
    """Two users, or two jobs of Slurm: both failed, with "duplicate column name" (2 of 2)."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        (folder / "tmp").mkdir(parents=True)
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    runs = [start(folder, *SHORT, uri, env={"TMPDIR": str(folder / "tmp")}) for folder in folders]
    for run, folder in zip(runs, folders, strict=True):
        done = finish(run, folder)
        assert done.code == 0, done.err
        assert "MLflow" not in done.err
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
