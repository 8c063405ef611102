"""What a team lead sees in the browser, without opening a file. Needs Chromium.

Screenshots are kept in the folder that LRRUNNER_SCREENSHOTS names, else in pytest's temporary folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.launching import launch, start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium"),
]


@dataclass(frozen=True)
class Pages:
    """MLflow's pages of an experiment with a batch of two jobs and a run of its own."""

    url: str
    experiment_id: str
    run_id: str
    batch_id: str
    screenshots: Path

    def content(self, path: str, *, name: str) -> str:
        """The DOM of a page, once it is drawn; a screenshot is kept under the name."""
        url = f"{self.url}/#/experiments/{self.experiment_id}/runs{path}"
        picture = self.screenshots / f"{name}.png"
        common = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1400"]
        common += ["--virtual-time-budget=20000", f"--user-data-dir={self.screenshots / 'profile'}"]
        subprocess.run([*common, f"--screenshot={picture}", url], capture_output=True, timeout=120, check=False)
        assert picture.stat().st_size > 10_000
        dumped = subprocess.run([*common, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=False)
        return dumped.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """A server over what two commands have logged."""
    folder = tmp_path_factory.mktemp("page")
    assert launch(folder, "sweep.num_steps=40", num_processes=1).code == 0
    process = start(folder, "-m", "launch.num_processes=1", "sweep.num_steps=40", "optimizer=adamw,sgd", "run.dir=grid")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    store = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("lrrunner")
    assert experiment is not None
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    run_id = next(run_id for name, run_id in runs.items() if name.startswith("Mlp-AdamW-b64 lr="))
    screenshots = Path(os.environ.get("LRRUNNER_SCREENSHOTS") or folder / "screenshots")
    screenshots.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        store,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield Pages(
            f"http://127.0.0.1:{port}", experiment.experiment_id, run_id, runs["2 jobs: optimizer"], screenshots
        )
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("MLflow's server did not answer")


def test_the_runs_table_answers_by_itself(pages: Pages) -> None:
    """Names say what was swept and its LR."""
    content = pages.content("", name="runs")
    assert "Mlp-AdamW-b64 lr=" in content
    assert "2 jobs: optimizer" in content
    assert "digits" in content, "the data set has a column of its own"


def test_the_page_of_a_run_begins_with_the_answer(pages: Pages) -> None:
    """Description first, then the metrics that matter, then the curve's."""
    content = pages.content(f"/{pages.run_id}", name="run")
    assert content.index("Suggested LR") < content.index("path=lr_sweep.png") < content.index("Metrics (")
    metrics = content[content.index("Metrics (") :]
    assert metrics.index("suggested_lr") < metrics.index("smoothed_loss")
    assert "pass_0/" not in content


def test_the_page_of_a_batch_says_which_job_is_best_and_leads_there(pages: Pages) -> None:
    """The best job in the first line, each row a link."""
    content = pages.content(f"/{pages.batch_id}", name="batch")
    assert "2 jobs: 2 finished" in content
    assert "lowest loss" in content
    assert content.count(f"#/experiments/{pages.experiment_id}/runs/") >= 2
    assert "jobs_failed" in content
