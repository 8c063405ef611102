"""Tags that a team sets in the environment, and the commit that was swept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lrrunner.tracking.names.environment_tags import environment_tags, git_tags
from lrrunner.tracking.store.runs import create_or_join_run, delete_run
from tests.unit.tracking.store.fake_store import FakeClient, connected


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_tags_that_are_no_json_object_are_ignored_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep must not fail on them."""
    assert environment_tags({"MLFLOW_TAGS": text}) == {}
    assert "MLFLOW_TAGS must be a JSON object" in caplog.text


def test_commit_and_branch_are_those_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a repository there are none."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_tags() == {}
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q", "-b", "try"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *arguments], check=True)
    tags = git_tags()
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.branch"] == "try"


def test_the_run_that_the_environment_names_is_continued_and_never_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of ``mlflow run``, another run would be a second one for the same work."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "a1")
    monkeypatch.setenv("MLFLOW_TAGS", '{"team": "vision", "stage": "old"}')
    client = FakeClient()
    connection = connected(client)
    assert create_or_join_run(connection, run_name="mine", tags={"stage": "try"}) == "a1"
    assert (client.tags["team"], client.tags["stage"]) == ("vision", "try")
    delete_run(connection, "a1")
    assert client.status == "RUNNING"
