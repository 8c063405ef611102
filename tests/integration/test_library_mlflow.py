"""A range test of a script in the script's own MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from tests.unit.library.guide import blocks
from tests.unit.library.script import swept


def test_a_range_test_is_a_run_below_the_scripts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's metrics keep their names, its run stays open, and the sweep's run is complete and finished."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_ID", "_MLFLOW_TELEMETRY_SESSION_ID"):
        monkeypatch.setenv(name, "")  # MLflow sets them and leaves them set
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        mlflow.set_experiment("mine")
        result = swept(repeats=2, confirm=60)
        with mlflow.start_run() as script:
            mlflow.log_metric("loss", 3.0)
            run_id = result.log_to_mlflow(tags={"stage": "try"})
            active = mlflow.active_run()
            assert active is not None
            assert active.info.status == "RUNNING"
        exec(blocks("The result")[1], {"result": result})
        alone = result.log_to_mlflow(experiment="other", run_name="alone")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert run_id is not None
    assert alone is not None
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run, other = client.get_run(run_id), client.get_run(alone)
    assert run.info.experiment_id == script.info.experiment_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == script.info.run_id
    assert run.data.tags["stage"] == "try"
    assert run.data.tags["lrrunner.verdict"] == result.suggestion.verdict
    assert run.data.metrics["suggested_lr"] == result.suggestion.lr
    assert run.data.params["sweep.start_lr"] == "1e-06"
    steps = {step.step for step in result.curve_steps}
    assert {metric.step for metric in client.get_metric_history(run_id, "loss")} == steps
    assert {metric.step for metric in client.get_metric_history(run_id, "repeat_1/loss")} <= steps
    trial = result.trials[0]
    assert len(client.get_metric_history(run_id, "trial_0/loss")) == trial.num_steps_run
    assert client.get_metric_history(run_id, "confirm/loss")[0].value == trial.loss
    files = {item.path for item in client.list_artifacts(run_id)}
    assert {"records.csv", "trials.csv", "trial_records.csv", "suggestion.json", "lr_sweep.png", "note.md"} <= files
    assert client.get_run(script.info.run_id).data.metrics == {"loss": 3.0}
    assert client.get_experiment(other.info.experiment_id).name == "other"
    assert other.info.run_name == "alone"
    assert "mlflow.parentRunId" not in other.data.tags
    (guide,) = client.search_runs([script.info.experiment_id], filter_string="tags.model = 'small'")
    assert client.get_run(guide.data.tags["mlflow.parentRunId"]).data.metrics == {}
    with pytest.raises(ValueError, match=r"uri must name a usable store, got file:"):
        result.log_to_mlflow(uri=f"file://{tmp_path}/none")
