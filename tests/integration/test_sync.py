"""`lrrunner-sync` uploads what an unreachable server missed, exactly once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from lrrunner.batch.directory import batch_lock
from lrrunner.batch.state import update_state
from tests.integration.launching import NO_TRACKING, environment, launch, start, start_command, wait_for_rows

UNREACHABLE = ("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1", "sweep.num_steps=12")


def sync(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lrrunner.cli.sync", *arguments],
        cwd=folder, capture_output=True, text=True, env=environment(), timeout=120,
    )  # fmt: skip


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def everything(folder: Path) -> dict[str, Any]:
    """What MLflow holds, by run name: status, points, artifacts, images, parent."""
    store = client(folder)
    found = {}
    for run in store.search_runs([e.experiment_id for e in store.search_experiments()]):
        run_id = run.info.run_id
        keys = run.data.metrics
        found[run.info.run_name] = {
            "status": run.info.status,
            "points": {
                key: [(m.step, m.value, m.timestamp) for m in store.get_metric_history(run_id, key)] for key in keys
            },
            "artifacts": sorted(item.path for item in store.list_artifacts(run_id)),
            "images": len(store.list_artifacts(run_id, "images")),
            "parent": run.data.tags.get("mlflow.parentRunId"),
            "id": run_id,
            "note": run.data.tags["mlflow.note.content"],
        }
    return found


def test_a_run_is_uploaded_once_however_often_it_is_synced(tmp_path: Path) -> None:
    """The server was down; sending twice changes nothing."""
    done = launch(tmp_path, *UNREACHABLE, timeout_s=90)
    assert done.code == 0, done.err
    first = sync(tmp_path, "run", "--uri", "sqlite:///mlflow.db")
    assert first.returncode == 0, first.stderr
    before = everything(tmp_path)
    (run,) = before.values()
    assert run["status"] == "FINISHED"
    assert [step for step, _, _ in run["points"]["loss"]] == list(range(len(run["points"]["loss"])))
    assert {"records.csv", "lr_sweep.png", "suggestion.json", "images"} <= set(run["artifacts"])
    assert "Suggested LR" in run["note"] or "No suggested LR" in run["note"]
    assert done.read("status.json")["mlflow_run_id"] == run["id"]
    assert sync(tmp_path, "run", "--uri", "sqlite:///mlflow.db").returncode == 0
    assert everything(tmp_path) == before


def test_a_run_that_mlflow_has_stays_as_it_is(tmp_path: Path) -> None:
    """The same points, the same image, one run."""
    done = launch(tmp_path, "sweep.num_steps=30", "sweep.repeats=2", timeout_s=90)
    assert done.code == 0, done.err
    before = everything(tmp_path)
    again = sync(tmp_path, "run")
    assert again.returncode == 0, again.stderr
    assert everything(tmp_path) == before


def test_a_killed_run_is_closed_and_uploaded(tmp_path: Path) -> None:
    """SIGKILL and no server: the records are on disk, and that is enough."""
    process = start(tmp_path, *NO_TRACKING, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.2")
    wait_for_rows(tmp_path, 3, process)
    running = sync(tmp_path, "run")
    assert running.returncode == 1
    assert "is still running" in running.stderr
    process.kill()
    process.communicate()
    done = sync(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    (run,) = everything(tmp_path).values()
    assert run["status"] == "KILLED"
    assert len(run["points"]["pass_0/loss"]) >= 3


def test_a_batch_is_uploaded_with_its_summary_run(tmp_path: Path) -> None:
    """Runs below one parent, the table on it; twice is once."""
    process = start(tmp_path, "-m", "launch.num_processes=1", *UNREACHABLE, "sweep.seed=1,2")
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("MLflow does not answer") == 2, "the summary run and the first job try; no rank does"
    for log in (tmp_path / "run").glob("*/ranks/0.*"):
        assert "MLflow does not answer" not in log.read_text()
    first = sync(tmp_path, "run", "--uri", "sqlite:///mlflow.db")
    assert first.returncode == 0, first.stderr
    before = everything(tmp_path)
    summary = before.pop("2 jobs: seed")
    assert len(before) == 2
    assert all(
        re.fullmatch(rf"sweep.seed={seed} lr=\S+", name) for seed, name in zip((1, 2), sorted(before), strict=True)
    )
    assert {run["parent"] for run in before.values()} == {summary["id"]}
    assert {"summary.csv", "summary.png", "summary.json", "ledger.jsonl"} <= set(summary["artifacts"])
    assert summary["status"] == "FINISHED"
    assert "sweep.seed=1" in summary["note"]
    assert sync(tmp_path, "run", "--uri", "sqlite:///mlflow.db").returncode == 0
    after = everything(tmp_path)
    assert after.pop("2 jobs: seed") == summary
    assert after == before
    statuses = [tmp_path / "run" / name / "status.json" for name in ("000", "001")]
    ids = {json.loads(path.read_text())["mlflow_run_id"] for path in statuses}
    assert ids == {run["id"] for run in before.values()}


def test_what_cannot_be_uploaded_is_reported(tmp_path: Path) -> None:
    """A directory of something else; a server that still does not answer."""
    (tmp_path / "empty").mkdir()
    wrong = sync(tmp_path, "empty")
    assert wrong.returncode == 2
    assert "the directory must hold a run or a batch, got empty" in wrong.stderr
    assert launch(tmp_path, *UNREACHABLE, timeout_s=90).code == 0
    down = sync(tmp_path, "run")
    assert down.returncode == 1
    assert "MLflow does not answer" in down.stderr
    assert "Traceback" not in down.stderr


def test_a_batch_is_uploaded_from_anywhere_and_after_a_crash(tmp_path: Path) -> None:
    """The store is where the batch was, not where the command is; a batch that was killed did not finish."""
    (tmp_path / "elsewhere").mkdir()
    process = start_command(tmp_path, "-m", "launch.num_processes=1", "sweep.num_steps=12", "sweep.seed=1,2")
    process.stdout.close()  # type: ignore[union-attr]
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    before = everything(tmp_path)
    assert [run["status"] for run in before.values()] == ["FINISHED"] * 3
    store = client(tmp_path)
    done = sync(tmp_path / "elsewhere", "../run")
    assert done.returncode == 0, done.stderr
    assert {run["id"] for run in everything(tmp_path).values()} == {run["id"] for run in before.values()}
    assert not list((tmp_path / "elsewhere").iterdir())

    update_state(tmp_path / "run", state="running", num_jobs=3)
    store.delete_run(before["2 jobs: seed"]["id"])
    done = sync(tmp_path / "elsewhere", "../run")
    assert done.returncode == 0, done.stderr
    after = everything(tmp_path)
    assert (after["2 jobs: seed"]["status"], len(after)) == ("KILLED", 3)
    assert after["2 jobs: seed"]["id"] != before["2 jobs: seed"]["id"]
    with batch_lock(tmp_path / "run"):
        busy = sync(tmp_path / "elsewhere", "../run")
    assert busy.returncode == 1
    assert "run is still running; wait for its end" in busy.stderr
