"""Runs whose process is gone are ended; what others wrote is data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrrunner.system.processes.process_identity import process_identity
from lrrunner.tracking.store.abandoned_runs import end_abandoned_runs


def dead_identity() -> str:
    """The identity of a process of this user that has ended."""
    fields = process_identity().split(":")
    fields[2] = "1"
    return ":".join(fields)


class Store:
    """The part of MLflow's client that ends abandoned runs."""

    def __init__(self, *tags: dict[str, str], refusing: tuple[str, ...] = ()) -> None:
        self.tags, self.refusing = tags, refusing
        self.ended: dict[str, str] = {}

    def search_runs(self, experiment_ids: list[str], filter_string: str, *, max_results: int) -> list[Any]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=f"run{number}"), data=SimpleNamespace(tags=tags))
            for number, tags in enumerate(self.tags)
        ]

    def set_terminated(self, run_id: str, status: str) -> None:
        if run_id in self.refusing:
            raise PermissionError(run_id)
        self.ended[run_id] = status


def end(store: Any) -> dict[str, str]:
    end_abandoned_runs(store, "1")
    ended: dict[str, str] = store.ended
    return ended


@pytest.mark.parametrize("odd", ["", "x", "a:b:c:d", "?:?:?:?", "1" * 5000])
def test_an_odd_tag_is_ignored(odd: str) -> None:
    """One run with such a tag made every later sweep of that host exit with 2."""
    store = Store({"lrrunner.process": odd}, {"lrrunner.process": dead_identity()}, {}, {"lrrunner.process": "y:z"})
    assert end(store) == {"run1": "KILLED"}


def test_a_run_that_the_store_does_not_let_us_end_costs_nothing() -> None:
    """It may belong to somebody else; the sweep that starts now has nothing to do with it."""
    tags = {"lrrunner.process": dead_identity()}
    assert end(Store(tags, tags, refusing=("run0",))) == {"run1": "KILLED"}


def test_a_running_process_keeps_its_run() -> None:
    """It ends it itself."""
    assert end(Store({"lrrunner.process": process_identity()})) == {}


@pytest.mark.parametrize(
    ("status", "ended_as", "state"),
    [
        ({"state": "running", "process": "dead"}, "KILLED", "killed"),
        ({"state": "finished", "process": "dead"}, "FINISHED", "finished"),
        ({"state": "running", "process": "alive"}, "KILLED", "running"),
        ({"state": "running", "process": "odd"}, "KILLED", "running"),
        ({"state": 7}, "KILLED", 7),
    ],
)
def test_a_run_directory_is_closed_only_where_its_own_process_is_gone(
    tmp_path: Path, status: dict[str, Any], ended_as: str, state: object
) -> None:
    """The tag that names it can be written by anybody."""
    known = {"dead": dead_identity(), "alive": process_identity()}
    content = status | {"process": known.get(status.get("process", ""), "odd")}
    (tmp_path / "status.json").write_text(json.dumps(content))
    tags = {"lrrunner.process": dead_identity(), "lrrunner.run_dir": str(tmp_path)}
    assert end(Store(tags)) == {"run0": ended_as}
    assert json.loads((tmp_path / "status.json").read_text())["state"] == state


def test_a_tag_that_names_no_directory_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one would name the working directory."""
    monkeypatch.chdir(tmp_path)
    content = json.dumps({"state": "running", "process": dead_identity()})
    (tmp_path / "status.json").write_text(content)
    names = ("", ".", "x" * 5000, "/dev/null", "\0")
    end(Store(*({"lrrunner.process": dead_identity(), "lrrunner.run_dir": name} for name in names)))
    assert (tmp_path / "status.json").read_text() == content
