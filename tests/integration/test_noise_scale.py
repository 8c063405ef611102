"""The critical batch size, from the command line to MLflow."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.launching import launch


def test_the_critical_batch_size_is_told_everywhere(tmp_path: Path) -> None:
    """Standard output, suggestion.json, note and metrics say the same; records.csv keeps what it was computed from."""
    done = launch(tmp_path, "sweep.noise_scale=true", "train.accumulation_steps=2")
    assert done.code == 0, done.err
    noise = done.read("suggestion.json")["noise_scale"]
    assert 20 < noise["low"] < noise["critical_batch_size"] < noise["high"] < 500
    told = " ".join(done.out.split())
    found = re.search(
        r"noise: (critical batch size: [\d.]+ \[[\d.]+, [\d.]+\] "
        r"\(global batch 64: (about critical|a larger one pays)\))",
        told,
    )
    assert found is not None
    note = " ".join((done.run / "note.md").read_text().split())
    assert found[1].removeprefix("c") in note, "where a sentence begins with a capital"
    with (done.run / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["timestamp_ms", "gradient_variance"]
    assert sum(float(row["lr"]) <= noise["last_lr"] for row in rows) == noise["num_steps"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = client.get_run(done.read("status.json")["mlflow_run_id"]).data.metrics
    for key, name in {"critical_batch_size": "", "low": "_low", "high": "_high"}.items():
        assert metrics[f"critical_batch_size{name}"] == pytest.approx(noise[key])
