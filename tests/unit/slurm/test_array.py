"""A grid split among the tasks of an array, and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from lrrunner.batch import ledger
from lrrunner.batch.directory import batch_lock
from lrrunner.config.command_line import parse_command_line
from lrrunner.errors import ConfigError
from lrrunner.slurm.array import summarize, task_arguments
from lrrunner.system.plain_values import to_plain
from tests.composing import composed


def test_tasks_split_the_points_and_each_point_has_a_directory() -> None:
    """Every point once, in fields that no shell takes apart."""
    odd = '+tracking.tags.odd="a b; $(touch x)"'
    arguments = ["optimizer=sgd,adamw", "sweep.seed=1,2", odd]
    first, second = (list(task_arguments("runs/a", index, 3, arguments)) for index in (0, 1))
    last = "tracking.enabled=false"
    assert first == [
        *("runs/a/000", "4", "optimizer=sgd", "sweep.seed=1", odd, last),
        *("runs/a/003", "4", "optimizer=adamw", "sweep.seed=2", odd, last),
    ]
    assert second == ["runs/a/001", "4", "optimizer=sgd", "sweep.seed=2", odd, last]


def test_a_task_that_never_began_is_a_line_of_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the number of its point, and the second summary adds nothing."""
    command_line = parse_command_line(["sweep.seed=1,2", "tracking.enabled=false"])
    (tmp_path / "001").mkdir()
    (tmp_path / "001" / "status.json").write_text('{"state": "killed", "cause": "interrupted"}')
    for _ in range(2):
        assert summarize(tmp_path, command_line) == 1
    first, second = ledger.read(tmp_path)
    assert (first.key, first.state, first.cause) == ("000", "failed", "it never began; see its task's output")
    assert (second.key, second.state, second.cause, second.run_dir) == ("001", "killed", "interrupted", "001")
    assert json.loads((tmp_path / "batch.json").read_text()) == {"num_jobs": 2, "state": "failed"}
    assert "killed: interrupted" in capsys.readouterr().out


def test_a_summary_reads_the_arrays_own_primary_configuration(tmp_path: Path) -> None:
    """With the default one it would not notice that tracking is off, say."""
    with pytest.raises(ConfigError, match="nowhere"):
        summarize(tmp_path, parse_command_line(["--config-name", "nowhere", "sweep.seed=1,2"]))


def test_a_summary_is_uploaded_by_the_process_that_holds_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the one that waits for submitit's jobs does; a second lock would find the batch at work."""
    for name in ("REQUEST_TIMEOUT", "REQUEST_MAX_RETRIES", "REQUEST_BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_{name}", "1")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "batch" / "000"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(to_plain(composed("sweep.seed=1"))))
    (run / "status.json").write_text('{"state": "failed", "cause": "rank 0: no luck"}')
    with batch_lock(run.parent):
        assert summarize(run.parent, parse_command_line(["sweep.seed=1"])) == 1
    assert "lrrunner-sync" not in capsys.readouterr().err, "nothing is left to upload by hand"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {found.info.run_name: found.info.status for found in runs} == {"1 job": "FAILED", "sweep.seed=1": "FAILED"}
