"""From the command line to the MLflow page, on two real ranks."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from tests.integration.launching import Finished, launch, launch_command, start

URI_PASSWORD = "canary-uri-8c1f"
OVERRIDE_SECRET = "canary-override-77aa"
ENVIRONMENT_SECRET = "canary-environment-90be"
CANARIES = (URI_PASSWORD, OVERRIDE_SECRET, ENVIRONMENT_SECRET)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The default job on two ranks, with a secret at every entrance."""
    folder = tmp_path_factory.mktemp("main_job")
    return launch_command(
        folder,
        "sweep.num_steps=100",
        f"+tracking.tags.hub_token={OVERRIDE_SECRET}",
        f"+tracking.tags.source=https://ann:{URI_PASSWORD}@example.org/data",
        "+tracking.tags.greeting=${oc.env:MY_SERVICE_PASSWORD}",
        "+tracking.tags.num_keys=88",
        "tracking.run_name=run-${oc.env:MY_SERVICE_PASSWORD}",
        num_processes=2,
        fresh_database=True,
        env={"MY_SERVICE_PASSWORD": ENVIRONMENT_SECRET},
    )


@pytest.fixture(scope="module")
def client(finished: Finished) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{finished.folder}/mlflow.db")


@pytest.fixture(scope="module")
def run(finished: Finished, client: MlflowClient) -> Any:
    return client.get_run(finished.read("status.json")["mlflow_run_id"])


def rows(finished: Finished) -> list[dict[str, str]]:
    with (finished.run / "records.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_closing_lines_are_the_contracts(finished: Finished) -> None:
    """What people read, and scripts parse; nothing but rank 0 speaks."""
    assert finished.code == 0, finished.err
    lines = finished.out.strip().splitlines()
    batch = "2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step"
    number = r"\d\.\de[+-]\d\d"
    assert lines[0] == batch
    assert re.fullmatch(rf"suggested lr: {number}   \[{number}, {number}\]   verdict: ok", lines[1])
    assert re.fullmatch(r"train with:   optimizer\.lr=[\d.e-]+", lines[2])
    assert lines[3:] == [
        "may lose:     4% of the possible gain; 3% with confirm.enabled=true (500 steps)",
        "picture:      run/lr_sweep.png",
        "mlflow:       mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "training:     about 400 steps, constant; set train.num_steps for another length",
        f"batch:        {batch}",
    ]


def test_standard_error_is_quiet_when_not_a_terminal(finished: Finished) -> None:
    """No progress bar in log files."""
    assert "LR sweep" not in finished.err
    assert "Traceback" not in finished.err


def test_the_run_directory_holds_the_contracts_files(finished: Finished) -> None:
    """The truth about a run, as plain files."""
    names = {path.relative_to(finished.run).as_posix() for path in finished.run.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml",
        "overrides.yaml",
        "records.csv",
        "suggestion.json",
        "lr_sweep.png",
        "status.json",
        "note.md",
        "ranks/0.log",
    }
    status = finished.read("status.json")
    assert status["state"] == "finished"
    assert status["cause"] is None
    config = yaml.safe_load((finished.run / "config.yaml").read_text())
    assert config["train"]["mixed_precision"] == "fp32"
    assert config["train"]["compile"] is False
    assert config["sweep"]["end_lr"] == 10.0
    assert "sweep.num_steps=100" in yaml.safe_load((finished.run / "overrides.yaml").read_text())
    with Image.open(finished.run / "lr_sweep.png") as image:
        assert image.width == 900


def test_records_are_one_row_a_step(finished: Finished) -> None:
    """Columns and ladder of the contract."""
    table = rows(finished)
    assert list(table[0]) == (
        [
            "sweep_pass",
            "repeat",
            "step",
            "lr",
            "loss",
            "smoothed_loss",
            "grad_norm",
            "num_items",
            "skipped",
            "elapsed_s",
            "timestamp_ms",
        ]
    )
    assert [int(row["step"]) for row in table] == list(range(len(table)))
    for i, row in enumerate(table):
        assert float(row["lr"]) == pytest.approx(1e-7 * 1e8 ** (i / 99), rel=1e-12)
        assert float(row["num_items"]) == 64
    assert finished.read("status.json")["last_step"] == len(table) - 1


def test_the_suggestion_has_the_contracts_keys(finished: Finished) -> None:
    """Scripts read it."""
    suggestion = finished.read("suggestion.json")
    assert suggestion["method"] == "auto"
    assert suggestion["verdict"] == "ok"
    low, high = suggestion["interval"]
    assert 1e-4 < low < suggestion["lr"] < high < 1
    assert list(suggestion["candidates"]) == ["auto", "steepest", "minimum", "valley", "slide", "largest_drop"]
    assert suggestion["candidates"]["auto"] == suggestion["lr"]
    assert suggestion["group_lrs"] == [suggestion["lr"]]
    assert suggestion["stop_reason"] == "diverged"
    assert (suggestion["world_size"], suggestion["global_batch_size"]) == (2, 64)


@pytest.mark.parametrize("key", ["lr", "log10_lr", "loss", "smoothed_loss", "grad_norm"])
def test_mlflow_has_every_step_with_its_own_time(finished: Finished, client: MlflowClient, run: Any, key: str) -> None:
    """The curve in the UI is the curve on disk; log10_lr is the x axis that the UI cannot make."""
    history = client.get_metric_history(run.info.run_id, key)
    table = rows(finished)
    expected = [math.log10(float(r["lr"])) if key == "log10_lr" else float(r[key]) for r in table]
    assert [m.step for m in history] == list(range(len(table)))
    assert [m.value for m in history] == pytest.approx(expected)
    assert [m.timestamp for m in history] == [int(r["timestamp_ms"]) for r in table]


def test_mlflow_has_suggestion_params_tags_and_status(finished: Finished, run: Any) -> None:
    """What people sort and filter by."""
    suggestion = finished.read("suggestion.json")
    assert run.data.metrics["suggested_lr"] == suggestion["lr"]
    assert [run.data.metrics["suggested_lr_low"], run.data.metrics["suggested_lr_high"]] == suggestion["interval"]
    assert run.data.params["sweep.num_steps"] == "100"
    assert run.data.params["optimizer._target_"] == "torch.optim.AdamW"
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["lrrunner.verdict"] == "ok"
    assert tags["lrrunner.stop_reason"] == "diverged"
    assert tags["lrrunner.world_size"] == "2"
    assert tags["lrrunner.version"] == "0.1.0"
    assert tags["num_keys"] == "88"
    assert not [key for key in run.data.metrics if "/" in key]  # one short pass is shown once
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)
    note = tags["mlflow.note.content"]
    assert f"{suggestion['lr']:.2e}" in note
    assert f"get-artifact?path=lr_sweep.png&run_uuid={run.info.run_id}" in note
    assert "accelerate launch --multi_gpu --num_processes 2 -m lrrunner" in note


def test_mlflow_has_the_files_and_the_pinned_picture(finished: Finished, client: MlflowClient, run: Any) -> None:
    """Everything of the run directory can be had from the UI."""
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "overrides.yaml", "records.csv", "suggestion.json", "lr_sweep.png", "status.json"} <= top
    assert [item.path for item in client.list_artifacts(run.info.run_id, "ranks")] == ["ranks/0.log"]
    assert any("lr_sweep" in item.path for item in client.list_artifacts(run.info.run_id, "images"))
    assert (finished.folder / "mlartifacts").is_dir()
    assert not (finished.folder / "mlruns").exists()


def test_no_secret_is_found_anywhere(finished: Finished) -> None:
    """One canary at each entrance, searched in every byte of the files, the database and the output."""
    for path in finished.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for canary in CANARIES:
                assert canary.encode() not in content, f"{canary} in {path}"
    for canary in CANARIES:
        assert canary not in finished.out + finished.err
    assert (finished.folder / "mlflow.db").stat().st_size > 100_000


def test_hydra_writes_nothing(finished: Finished) -> None:
    """Ranks that let Hydra write split their directories."""
    assert {path.name for path in finished.folder.iterdir()} == {
        "mlflow.db",
        ".mlflow.db.lock",
        "mlartifacts",
        "run",
        "parts.py",
    } | {"__pycache__"} & {path.name for path in finished.folder.iterdir()}


def readme_blocks(language: str) -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_readmes_own_model_runs_as_written(tmp_path: Path, num_processes: int) -> None:
    """The first thing a newcomer tries with a model of their own."""
    (experiment,), (module, *_) = readme_blocks("yaml"), readme_blocks("python")
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(experiment)
    (tmp_path / "mine.py").write_text(module)
    words = ["--config-dir", "my_conf", "experiment=mine", "model.width=128", "tracking.enabled=false"]
    done = launch(tmp_path, *words, num_processes=num_processes)
    assert done.code == 0, done.err
    assert re.search(r"suggested lr: \d.*verdict: ok", done.out)


def test_a_users_own_parts_work_without_a_database(tmp_path: Path) -> None:
    """Repeats, another optimizer, tracking off."""
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(
        """# @package _global_
defaults: [override /model: custom, override /optimizer: custom]
model: {_target_: parts.Net, width: 32}
optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1, momentum: 0.9}
sweep: {num_steps: 30, repeats: 2, start_lr: 1.0e-5}
tracking: {enabled: false}
"""
    )
    done = launch(tmp_path, "--config-dir", "my_conf", "experiment=mine", fresh_database=True)
    assert done.code == 0, done.err
    assert "suggested lr: " in done.out
    assert yaml.safe_load((done.run / "config.yaml").read_text())["model"] == {"_target_": "parts.Net", "width": 32}
    assert {row["repeat"] for row in rows(done)} == {"0", "1"}
    assert not (tmp_path / "mlflow.db").exists()


def test_repeats_are_pooled_in_mlflow(tmp_path: Path) -> None:
    """The pooled curve stands under the plain names, each repeat under its own."""
    done = launch(
        tmp_path,
        "sweep.repeats=2",
        "sweep.auto_range=false",
        "sweep.num_steps=20",
        "sweep.end_lr=1e-2",
        "train.mixed_precision=bf16",
    )
    assert done.code == 0, done.err
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run_id = done.read("status.json")["mlflow_run_id"]
    by_repeat = [client.get_metric_history(run_id, f"repeat_{k}/loss") for k in (0, 1)]
    pooled = client.get_metric_history(run_id, "loss")
    assert len(by_repeat[0]) == len(by_repeat[1]) == len(pooled) == 20
    for first, second, both in zip(*by_repeat, pooled, strict=True):
        assert both.value == pytest.approx((first.value + second.value) / 2)
    assert yaml.safe_load((done.run / "config.yaml").read_text())["train"]["mixed_precision"] == "bf16"


def test_char_gpt_sweeps_the_text_that_python_carries(tmp_path: Path) -> None:
    """The default text is always there; any other file by data.root."""
    done = launch(
        tmp_path, "experiment=char_gpt", "sweep.num_steps=40", "sweep.start_lr=1e-5", "tracking.enabled=false"
    )
    assert done.code == 0, done.err
    assert 1e-4 < done.read("suggestion.json")["lr"] < 1e-1


def test_metrics_show_up_while_the_sweep_runs(tmp_path: Path) -> None:
    """A sweep of an hour is watched while it runs, not afterwards."""
    process = start(
        tmp_path, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.15", "sweep.auto_range=false"
    )
    client = None
    try:
        deadline = time.monotonic() + 90
        seen: list[Any] = []
        while not seen:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
            status = tmp_path / "run" / "status.json"
            if status.exists():
                client = client or MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
                run_id = json.loads(status.read_text())["mlflow_run_id"]
                seen = client.get_metric_history(run_id, "loss")
        assert process.poll() is None
        assert [metric.step for metric in seen] == list(range(len(seen)))
    finally:
        process.terminate()
        process.communicate(timeout=60)
