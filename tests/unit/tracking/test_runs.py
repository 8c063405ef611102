"""A run is found, shown and ended by what MLflow knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrrunner.results.run_state import RunState
from lrrunner.tracking.runs import end_run, find_run, is_running, run_location
from tests.unit.tracking.fake_store import FakeClient, connected


def test_a_run_is_found_by_tags_that_hold_a_quote() -> None:
    """MLflow's search knows no escapes; a directory may well be called so."""
    client = FakeClient()
    assert find_run(connected(client), {"lrrunner.run_dir": "/Ann's", "lrrunner.batch": "true"}) is None
    assert client.filter_string == "tags.`lrrunner.run_dir` = \"/Ann's\" and tags.`lrrunner.batch` = 'true'"


def test_a_server_has_a_page_for_the_run_and_a_database_a_command(tmp_path: Path, monkeypatch: Any) -> None:
    """Passwords in the URI are not shown."""
    server = connected(FakeClient(), uri="https://ann:secret@host:5000/")
    assert run_location(server, "a1") == "https://***@host:5000/#/experiments/7/runs/a1"
    database = connected(FakeClient(), uri="sqlite:////data/my runs/a.db")
    assert run_location(database, "a1") == "mlflow ui --backend-store-uri 'sqlite:////data/my runs/a.db'"
    monkeypatch.chdir(tmp_path)
    here = connected(FakeClient(), uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert run_location(here, "a1") == "mlflow ui --backend-store-uri sqlite:///mlflow.db"


def test_a_run_that_cannot_be_ended_is_reported_not_raised() -> None:
    """It is called where another error is on its way already."""
    client = FakeClient(failing=("set_terminated",))
    connection = connected(client)
    failure = end_run(connection, "a1", RunState.KILLED, note="stopped")
    assert failure is not None
    assert is_running(connection, "a1")
    assert end_run(connection, "a1", RunState.KILLED) is None
    assert client.status == "KILLED"
    assert client.tags["mlflow.note.content"] == "stopped"
