"""A job's MLflow run gets everything once, whatever fails, and always ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from lrrunner.config.schema import Config, DataConfig, SweepConfig, TrackingConfig
from lrrunner.records import RangeTestResult, Step, Stop, StopReason, Suggestion, Verdict
from lrrunner.results.run_state import RunState
from lrrunner.tracking.upload.mlflow_run import MlflowRun, RunEnd, has_image, join_run, pin_image
from lrrunner.tracking.upload.summary_upload import Summary, upload_summary
from tests.unit.tracking.store.fake_store import FakeClient, connected

STEPS = tuple(Step(step=i, lr=0.1, loss=2.0 - i, timestamp_ms=1000 + i) for i in range(2))


def result() -> RangeTestResult:
    suggestion = Suggestion(lr=0.05, method="auto", verdict=Verdict.OK, reason="why", interval=(0.02, 0.1))
    stop = Stop(reason=StopReason.END_OF_SCHEDULE, step=1)
    return RangeTestResult(
        steps=STEPS, stops=(stop,), suggestion=suggestion, world_size=1, global_batch_size=64, curve_pass=0
    )


def joined(client: FakeClient, *, auto_range: bool = True, run_name: str | None = None) -> MlflowRun:
    job = Config(
        model={"_target_": "mine.Net"},
        objective={},
        optimizer={"_target_": "torch.optim.AdamW"},
        data=DataConfig(global_batch_size=64),
        sweep=SweepConfig(auto_range=auto_range),
        tracking=TrackingConfig(run_name=run_name),
    )
    params = {"sweep": {"start_lr": 1e-7, "end_lr": 10.0}, "odd(key)": "x"}
    return join_run(connected(client), "a1", job=job, params=params, tags={"stage": "try"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run directory with files and a figure."""
    (tmp_path / "ranks").mkdir()
    (tmp_path / "records.csv").write_text("step\n")
    (tmp_path / "ranks" / "0.log").write_text("")
    Image.new("RGB", (2, 2)).save(tmp_path / "lr_sweep.png")
    return tmp_path


def test_a_param_that_the_run_has_is_not_sent_again() -> None:
    """MLflow refuses to change one, also to the same value in another notation."""
    client = FakeClient(params={"sweep.start_lr": "1e-07"})
    run = joined(client)
    run.finish(RunEnd(state=RunState.FINISHED, note="", directory=Path("missing")))
    short = {"model": "Net", "optimizer": "AdamW", "global_batch_size": "64"}
    assert client.params == [short | {"sweep.end_lr": "10.0", "odd_key_": "x"}]
    assert client.tags.items() >= short.items()
    assert client.tags["stage"] == "try"


def test_a_finished_run_has_its_curve_result_note_figure_and_files(directory: Path) -> None:
    """The pass that counts is stored once, under the plain names."""
    client = FakeClient()
    run = joined(client)
    for step in STEPS:
        run.log_step(step)
    end = RunEnd(
        state=RunState.FINISHED,
        note="LR 0.05 ![LR sweep](lr_sweep.png) secret",
        directory=directory,
        test=result(),
        figure=directory / "lr_sweep.png",
    )
    assert run.finish(end) is None
    assert [item for item in client.metrics if item[0].endswith("loss")] == [
        ("loss", 2.0, 1000, 0),
        ("loss", 1.0, 1001, 1),
    ]
    assert ("suggested_lr", 0.05, 1001, 0) in client.metrics, "with the time of the last step"
    assert client.tags["lrrunner.verdict"] == "ok"
    note = "LR 0.05 ![LR sweep](get-artifact?path=lr_sweep.png&run_uuid=a1) ***"
    assert client.tags["mlflow.note.content"] == note
    assert client.images == [("lr_sweep", 0)]
    assert client.artifacts == [("lr_sweep.png", None), ("0.log", "ranks"), ("records.csv", None)]
    assert client.status == "FINISHED"


def test_a_running_sweep_shows_its_progress_and_holds_its_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end shows which pass has the plain names, and MLflow cannot take back a metric."""
    monkeypatch.setattr("lrrunner.tracking.upload.uploader.UPLOAD_INTERVAL_S", 0.01)
    client = FakeClient()
    run = joined(client)
    run.log_step(STEPS[0])
    while "lrrunner.progress" not in client.tags:  # the test's own timeout ends this
        time.sleep(0.01)
    assert client.tags["lrrunner.progress"] == "step 1 of 100, lr 1.0e-01, loss 2"
    assert client.metrics == []
    run.log_passes(curve_pass=0)
    while not client.metrics:
        time.sleep(0.01)
    assert ("loss", 2.0, 1000, 0) in client.metrics
    run.finish(RunEnd(state=RunState.FINISHED, note="", directory=Path("missing")))
    assert "lrrunner.progress" not in client.tags


def test_an_interrupted_sweep_keeps_the_names_of_its_passes(directory: Path) -> None:
    """Another attempt may need another range, whose curve then has the plain names."""
    client = FakeClient()
    run = joined(client)
    run.log_step(STEPS[0])
    run.finish(RunEnd(state=RunState.KILLED, note="", directory=directory))
    assert [name for name, *_ in client.metrics if name.endswith("loss")] == ["pass_0/loss"]


@pytest.mark.parametrize(("run_name", "shown"), [(None, "my run lr=5.0e-02"), ("mine", "my run")])
def test_a_name_that_is_not_the_users_gets_the_lr(directory: Path, run_name: str | None, shown: str) -> None:
    """The runs table answers by itself."""
    client = FakeClient()
    run = joined(client, run_name=run_name)
    run.log_step(STEPS[0])
    run.finish(RunEnd(state=RunState.FINISHED, note="", directory=directory, test=result()))
    assert client.name == shown


@pytest.mark.parametrize("method", ["log_metrics", "log_artifact", "set_terminated"])
def test_what_could_not_be_uploaded_is_reported_without_secrets(directory: Path, method: str) -> None:
    """The run directory holds it, and lrrunner-sync uploads it later."""
    client = FakeClient(failing=(method,))
    run = joined(client)
    run.log_step(STEPS[0])
    failure = run.finish(RunEnd(state=RunState.FAILED, note="why", directory=directory))
    assert failure is not None
    assert failure.reason == f"{method} failed for http://***@host"
    assert client.status == ("RUNNING" if method == "set_terminated" else "FAILED")


def test_an_upload_that_failed_during_the_sweep_is_no_failure_at_the_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning that MLflow lacks a part of the run would be wrong: the upload was repeated."""
    monkeypatch.setattr("lrrunner.tracking.upload.uploader.UPLOAD_INTERVAL_S", 0.01)
    client = FakeClient(failing=("log_metrics",))
    run = joined(client, auto_range=False)
    run.log_step(STEPS[0])
    while client.failing:  # the test's own timeout ends this
        time.sleep(0.01)
    assert run.finish(RunEnd(state=RunState.FINISHED, note="", directory=directory)) is None
    assert ("loss", 2.0, 1000, 0) in client.metrics


def test_an_image_is_found_by_its_key_and_step(directory: Path) -> None:
    """Pinned twice, it would be shown twice."""
    client = FakeClient()
    connection = connected(client)
    pin_image(connection, "a1", directory / "lr_sweep.png", key="lr_sweep", step=3)
    assert has_image(connection, "a1", key="lr_sweep", step=3)
    assert not has_image(connection, "a1", key="lr_sweep", step=30)
    assert not has_image(connection, "a1", key="sweep", step=3)


def test_a_summary_is_uploaded_once_and_ends_its_run_whatever_fails(directory: Path) -> None:
    """The figures of a batch are pinned for each number of jobs that it had."""
    client = FakeClient(failing=("log_artifact",))
    summary = Summary(
        note="2 jobs",
        table={"columns": ["lr"], "data": [[0.1]]},
        metrics={"jobs": 2},
        measured_ms=5,
        figures=[directory / "lr_sweep.png"],
        figure_step=2,
        files=[directory / "records.csv"],
        tags={"lrrunner.num_finished": "2"},
    )
    failure = upload_summary(connected(client), "a1", summary, state=RunState.FAILED)
    assert failure is not None
    assert failure.is_refusal
    assert client.status == "FAILED"
    for _ in range(2):
        assert upload_summary(connected(client), "a1", summary, state=RunState.FINISHED) is None
    assert client.images == [("lr_sweep", 2)]
    assert client.tags["lrrunner.num_finished"] == "2"
    assert client.tags["mlflow.note.content"] == "2 jobs"
    assert client.tags["mlflow.loggedArtifacts"] == '[{"path": "summary.json", "type": "table"}]'
    assert client.status == "FINISHED"
