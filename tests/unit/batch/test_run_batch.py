"""What a batch refuses, and what it leaves whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lrrunner.batch import ledger
from lrrunner.batch.ledger import Entry
from lrrunner.batch.run_batch import _Summary, run_batch
from lrrunner.batch.summary.summary_run import finish_summary_run
from lrrunner.config.command_line import parse_command_line
from lrrunner.errors import ConfigError
from lrrunner.results.run_state import RunState
from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.store.connection import connect_or_warn
from lrrunner.tracking.store.failures import UploadFailure
from lrrunner.tracking.store.runs import is_running
from tests.composing import composed
from tests.unit.tracking.store.fake_store import FakeClient, connected


def isolate_mlflow(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A new store in ``folder``; the environment that lrrunner sets for MLflow is restored after the test."""
    for name in ("REQUEST_TIMEOUT", "REQUEST_MAX_RETRIES", "REQUEST_BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_{name}", "1")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.chdir(folder)


def test_keys_of_hydras_own_multirun_are_refused() -> None:
    """A batch directory that Hydra puts elsewhere, or another launcher, would have no ledger."""
    overrides = ["hydra/launcher=basic", "hydra.sweep.dir=x", "+hydra/sweeper=optuna", "hydra.sweeper.max_batch_size=2"]
    with pytest.raises(ConfigError) as caught:
        run_batch(parse_command_line(overrides))
    assert caught.value.errors == (
        "hydra.launcher must be left to lrrunner in a batch, got hydra/launcher=basic; leave it out, "
        "or choose submitit_slurm",
        "hydra.sweep.dir must be left to lrrunner in a batch, got hydra.sweep.dir=x; give run.dir=...",
        "hydra.sweeper must be left to lrrunner in a batch, got +hydra/sweeper=optuna; leave it out",
        "hydra.sweeper.max_batch_size must be left to lrrunner in a batch, got hydra.sweeper.max_batch_size=2; "
        "leave it out",
    )


@pytest.mark.parametrize(
    "broken", ["lrrunner.batch.run_batch.write_summary", "lrrunner.batch.run_batch.finish_summary_run"]
)
def test_a_summary_run_ends_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A figure that cannot be drawn once left the summary run RUNNING."""
    isolate_mlflow(monkeypatch, tmp_path)
    tracking = composed(world_size=None).tracking
    summary = _Summary(tmp_path, tracking=tracking, redactor=Redactor())
    run_id = summary.start("2 jobs: lr", "lrrunner -m")
    connection = connect_or_warn(tracking, Redactor(), kept_in="batch directory")
    assert run_id is not None
    assert connection is not None
    assert is_running(connection, run_id)

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(broken, fail)
    entry = Entry(job=0, overrides=("sweep.seed=1",), key="a", state=RunState.FINISHED, verdict="flat")
    monkeypatch.setattr("lrrunner.batch.run_batch.latest_entries", lambda directory, jobs: [entry])
    assert summary.finish([object()], interrupted=False) == RunState.FINISHED  # type: ignore[list-item]
    assert connection.client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("enabled", "shown"), [(True, 1), (False, 0)])
def test_a_batch_that_mlflow_does_not_know_names_the_command_that_uploads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], enabled: bool, shown: int
) -> None:
    """Where it would say how to open MLflow."""
    tracking = composed(f"tracking.enabled={str(enabled).lower()}", world_size=None).tracking
    _Summary(tmp_path, tracking=tracking, redactor=Redactor()).finish([], interrupted=True)
    line = f"mlflow:       not reached; later: lrrunner-sync {tmp_path}"
    assert capsys.readouterr().out.splitlines().count(line) == shown


def test_a_summary_that_mlflow_misses_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store answered at first, and failed in the middle of the upload."""
    isolate_mlflow(monkeypatch, tmp_path)
    summary = _Summary(tmp_path, tracking=composed(world_size=None).tracking, redactor=Redactor())
    summary.start("2 jobs: lr", "lrrunner -m")
    failure = UploadFailure(reason="database is locked", is_refusal=False)
    monkeypatch.setattr("lrrunner.batch.run_batch.finish_summary_run", lambda *arguments, **settings: failure)
    summary.finish([], interrupted=True)
    assert "MLflow misses a part of the summary (database is locked)" in caplog.text


def test_a_summary_shows_the_figures_of_its_last_attempt(tmp_path: Path) -> None:
    """A job that failed and is run again leaves as many jobs as before: their number is no step that grows."""
    client = FakeClient()
    (tmp_path / "batch.json").write_text('{"mlflow_run_id": "a1"}')
    figure = tmp_path / "summary.png"
    Image.new("RGB", (2, 2)).save(figure)
    for state, repeated in ((RunState.FAILED, 1), (RunState.FINISHED, 2)):
        entry = Entry(job=0, overrides=("sweep.seed=1",), key="a", state=state, verdict="flat")
        ledger.append(tmp_path, entry)
        for _ in range(repeated):  # a second upload changes nothing
            finish_summary_run(connected(client), tmp_path, [entry], figures=[figure], state=state)
    assert client.images == [("summary", 1), ("summary", 2)]
