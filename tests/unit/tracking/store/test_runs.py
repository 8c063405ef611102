"""A run is found, shown and ended by what MLflow knows of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lrrunner.results.run_state import RunState
from lrrunner.tracking.store.runs import delete_doubles, end_run, find_run, is_running, run_location
from tests.unit.tracking.store.fake_store import FakeClient, connected


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


def _run(run_id: str, data: dict[str, dict[str, str]]) -> Any:
    own = SimpleNamespace(**({"params": {}, "metrics": {}} | data))
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=own)


class Doubles(FakeClient):
    """A store with several runs of one directory."""

    def __init__(self, **runs: dict[str, dict[str, str]]) -> None:
        super().__init__()
        tags = {"lrrunner.run_dir": "/r", "lrrunner.host": "h"}
        self.runs = {run_id: _run(run_id, {"tags": tags} | data) for run_id, data in runs.items()}

    def get_run(self, run_id: str) -> Any:
        return self.runs[run_id]

    def search_runs(self, experiment_ids: list[str], filter_string: str, *, max_results: int) -> list[Any]:
        self.filter_string = filter_string
        return list(self.runs.values())

    def delete_run(self, run_id: str) -> None:
        del self.runs[run_id]


JOINED = {"params": {"model": "mlp"}}


def test_runs_that_repeated_requests_have_left_are_deleted() -> None:
    """The answer to a request to create a run was lost, and the HTTP library sent it again: one ran for ever."""
    client = Doubles(a={}, b=JOINED, c={"metrics": {"loss": "1"}}, d={})
    delete_doubles(connected(client), "b")
    assert client.filter_string == "tags.`lrrunner.run_dir` = '/r' and tags.`lrrunner.host` = 'h'"
    assert list(client.runs) == ["b", "c"], "one with metrics is another attempt in the same directory"


def test_the_run_that_was_joined_is_the_one_that_is_found() -> None:
    """A double of it may be the newer one."""
    assert find_run(connected(Doubles(a={}, b=JOINED)), {"lrrunner.run_dir": "/r"}) == "b"
    assert find_run(connected(Doubles(a={})), {"lrrunner.run_dir": "/r"}) == "a"


def test_a_run_without_a_directory_has_no_doubles() -> None:
    """A search without tags would find every run."""
    client = Doubles(a={"tags": {}}, b={})
    delete_doubles(connected(client), "a")
    assert list(client.runs) == ["a", "b"]
