"""Sweeps through a network that fails: in the end, everything is in MLflow exactly once.

``LRRUNNER_SOAK_SWEEPS`` sets the number of sweeps, ``LRRUNNER_SOAK_SEED`` that of the faults.
"""

from __future__ import annotations

import csv
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.integration.faulty_proxy import FaultyProxy
from tests.integration.launching import environment, launch

NUM_SWEEPS = int(os.environ.get("LRRUNNER_SOAK_SWEEPS", "200"))
SEED = int(os.environ.get("LRRUNNER_SOAK_SEED", "0"))
NUM_RESTARTS = 3
FAULTS = {"delay": 0.05, "500": 0.03, "refuse": 0.03, "cut": 0.03, "lose": 0.02}
SWEEP = ("sweep.num_steps=12", "sweep.auto_range=false", "tracking.timeout_s=4")
START_WITHIN_S = 120.0
MAX_SYNCS = 10
"""On a busy machine, an answer may take longer than ``tracking.timeout_s``."""


class Server:
    """An MLflow server with a database of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


def recorded_losses(run: Path) -> list[tuple[int, int, float]]:
    """Step, time and loss of each row of records.csv."""
    with (run / "records.csv").open() as file:
        return [(int(row["step"]), int(row["timestamp_ms"]), float(row["loss"])) for row in csv.DictReader(file)]


def points(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, int, float]]:
    """The same from MLflow."""
    return sorted((point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, key))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_nothing_is_lost_or_stored_twice_by_a_network_that_fails(tmp_path: Path, server: Server) -> None:
    """Delays, answers of 500, lost and cut answers, and a server that is killed: lrrunner-sync completes all of it."""
    print(f"seed {SEED}, {NUM_SWEEPS} sweeps")
    rng = random.Random(SEED)
    restarts = set(rng.sample(range(NUM_SWEEPS), min(NUM_RESTARTS, NUM_SWEEPS // 4)))
    warned = 0
    with FaultyProxy(server.port, seed=SEED, faults=FAULTS, delay_s=2.0) as proxy:
        for number in range(NUM_SWEEPS):
            if number in restarts:
                server.kill()
            supervised = ("launch.num_processes=1",) if number % 5 == 4 else ()
            overrides = (*SWEEP, f"sweep.seed={number}", f"tracking.uri={proxy.uri}", f"run.dir=run{number:03d}")
            done = launch(tmp_path, *overrides, *supervised)
            assert done.code == 0, done.err
            assert not [text for text in ("Traceback", "HTTPConnectionPool", "Retrying") if text in done.err], done.err
            warned += "MLflow" in done.err
            if number in restarts:
                server.start()
        print(f"faults: {dict(proxy.counts)}; {warned} sweeps warned that MLflow misses something")
    runs = [tmp_path / f"run{number:03d}" for number in range(NUM_SWEEPS)]
    command = [sys.executable, "-m", "lrrunner.cli.sync", *map(str, runs), "--uri", server.uri]
    codes: list[int] = []
    while codes[-2:] != [0, 0] and len(codes) < MAX_SYNCS:  # once more than is needed, which changes nothing
        synced = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert "Traceback" not in synced.stderr, synced.stderr
        codes.append(synced.returncode)
    assert codes[-2:] == [0, 0], codes
    client = MlflowClient(tracking_uri=server.uri)
    by_directory = runs_by_directory(client)
    assert {len(found) for found in by_directory.values()} == {1}, "a run was created twice"
    assert by_directory.keys() == {str(run) for run in runs}
    for run in runs:
        (found,) = by_directory[str(run)]
        assert found.info.status == "FINISHED"
        rows = recorded_losses(run)
        assert points(client, found.info.run_id, "loss") == sorted(rows)
        for key in found.data.metrics:
            history = client.get_metric_history(found.info.run_id, key)
            assert len({(point.step, point.timestamp) for point in history}) == len(history), (run, key)
        assert {item.path for item in client.list_artifacts(found.info.run_id)} >= {"records.csv", "lr_sweep.png"}


def runs_by_directory(client: MlflowClient) -> dict[str, list[Any]]:
    """Every run of the store, whatever its state, by its run directory."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    found: dict[str, list[Any]] = {}
    for run in client.search_runs(experiments, max_results=10 * NUM_SWEEPS):
        found.setdefault(run.data.tags.get("lrrunner.run_dir", "?"), []).append(run)
    return found
