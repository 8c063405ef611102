"""Finished is finished: what happens after the last step cannot undo a run, and a resume completes what is missing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.integration.launching import NO_TRACKING, finish, launch, start

JOB = ("model=custom", "model._target_=parts.Mortal", "sweep.num_steps=14", "sweep.auto_range=false")
RESUME = ("run.dir=null", "run.resume=run")


def mlflow_run(folder: Path) -> Any:
    """The only run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def assert_complete(folder: Path) -> None:
    """The run directory and MLflow hold the finished run, each part once."""
    status = json.loads((folder / "run/status.json").read_text())
    assert (status["state"], status["cause"]) == ("finished", None)
    assert not (folder / "run/checkpoints").exists()
    suggestion = json.loads((folder / "run/suggestion.json").read_text())
    run = mlflow_run(folder)
    assert run.info.run_id == status["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["lrrunner.verdict"] == suggestion["verdict"]
    assert run.data.metrics.get("suggested_lr") == suggestion["lr"]
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    assert {"lr_sweep.png", "records.csv", "note.md"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 1, "MLflow adds a compressed copy to each"
    steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(len(steps)))


def test_a_launcher_killed_in_the_upload_leaves_a_finished_run(tmp_path: Path) -> None:
    """After the closing lines: the ranks had done all that was asked for, and the supervisor uploads the rest."""
    done = launch(tmp_path, *JOB, "launch.num_processes=2", env={"DIE": "upload::launcher"})
    assert done.code == 0, done.err
    assert "failed" not in done.err
    assert_complete(tmp_path)


def test_a_group_killed_in_its_upload_is_completed_by_a_resume(tmp_path: Path) -> None:
    """Rank and supervisor are gone: MLflow says RUNNING, and nobody is left to correct it."""
    (tmp_path / "tmp").mkdir()
    environ = {"DIE": "upload::all", "TMPDIR": str(tmp_path / "tmp")}
    process = start(tmp_path, *JOB, "launch.num_processes=1", env=environ)
    assert finish(process, tmp_path).code == -signal.SIGKILL
    assert mlflow_run(tmp_path).info.status == "RUNNING"
    assert list((tmp_path / "tmp").iterdir()), "the mailbox of a supervisor that could not remove it"
    before = (tmp_path / "run/records.csv").read_bytes()
    (tmp_path / "run/checkpoints").mkdir(exist_ok=True)
    done = launch(tmp_path, *JOB, *RESUME, "launch.num_processes=1", env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.code == 0, done.err
    assert not list((tmp_path / "tmp").iterdir())
    assert "suggested lr: " in done.out
    assert (tmp_path / "run/records.csv").read_bytes() == before
    assert_complete(tmp_path)


def test_the_next_start_gives_a_finished_run_its_status(tmp_path: Path) -> None:
    """It was set to KILLED, against what its directory records."""
    process = start(tmp_path, *JOB, "launch.num_processes=1", env={"DIE": "upload::all"})
    assert finish(process, tmp_path).code == -signal.SIGKILL
    first = mlflow_run(tmp_path).info.run_id
    assert launch(tmp_path, "run.dir=other", "sweep.num_steps=12").code == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(first).info.status == "FINISHED"


def test_a_finished_run_gets_its_picture_and_is_told_how_to_upload(tmp_path: Path) -> None:
    """MLflow does not answer: the resume is a success all the same, and names what uploads the run later."""
    unreachable = ("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1", "sweep.num_steps=12")
    assert launch(tmp_path, *unreachable).code == 0
    (tmp_path / "run/lr_sweep.png").unlink()
    for overrides in ((), ("launch.num_processes=2",)):
        done = launch(tmp_path, *unreachable, *RESUME, *overrides)
        assert done.code == 0, done.err
        assert "upload the run later with: lrrunner-sync run" in done.err
        assert (tmp_path / "run/lr_sweep.png").exists()


def test_ranks_complete_a_finished_run_together(tmp_path: Path) -> None:
    """Under accelerate launch, rank 0 alone does it, and no rank waits for another."""
    assert launch(tmp_path, *NO_TRACKING, *JOB, num_processes=2).code == 0
    (tmp_path / "run/lr_sweep.png").unlink()
    done = launch(tmp_path, *NO_TRACKING, *JOB, *RESUME, num_processes=2)
    assert done.code == 0, done.err
    assert done.out.count("suggested lr: ") == 1
    assert (tmp_path / "run/lr_sweep.png").exists()


def test_a_finished_run_is_not_taken_for_another_one(tmp_path: Path) -> None:
    """Another configuration would have given another result."""
    assert launch(tmp_path, *NO_TRACKING, *JOB).code == 0
    done = launch(tmp_path, *NO_TRACKING, *JOB, *RESUME, "sweep.seed=5")
    assert done.code == 2
    assert "sweep.seed must be 0 to resume" in done.err
