"""Runs that are killed and go on: their records are those of a run that was left alone."""

from __future__ import annotations

import csv
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lrrunner.reporting.run_summary import link_figure
from tests.integration.launching import NO_TRACKING, Finished, finish, launch, start, wait_for_rows

TIMES = ("elapsed_s", "timestamp_ms")

JOB = (
    "model=custom",
    "model._target_=parts.Mortal",
    "sweep.num_steps=14",
    "sweep.repeats=2",
    "sweep.start_lr=1e-4",
    "sweep.end_lr=3",
    "sweep.auto_range=false",
    "confirm.enabled=true",
    "confirm.budget_steps=84",
    "suggestion.method=minimum",
    "sweep.noise_scale=true",
    "train.accumulation_steps=2",
)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run has recorded, times aside."""
    found: dict[str, Any] = {"suggestion": json.loads((folder / "run/suggestion.json").read_text())}
    for name in ("records.csv", "trial_records.csv", "trials.csv"):
        with (folder / "run" / name).open() as file:
            rows = list(csv.DictReader(file))
        assert rows
        found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return found


def resumed(folder: Path, *overrides: str, num_processes: int = 2) -> Finished:
    """Go on with the run in ``folder``."""
    return launch(folder, *JOB, "run.dir=null", "run.resume=run", *overrides, num_processes=num_processes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The job on two ranks, left alone; it never saves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = launch(folder, *JOB, *NO_TRACKING, num_processes=2)
    assert run.code == 0, run.err
    assert len(outcome(folder)["trials.csv"]) > 2
    return outcome(folder)


def check_death(folder: Path, die: str, undisturbed: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    every = "run.checkpoint_every_s=0"
    assert launch(folder, *JOB, *NO_TRACKING, every, num_processes=2, env={"DIE": die}).code == 1
    run = resumed(folder, *NO_TRACKING, every)
    assert run.code == 0, f"DIE={die}\n{run.err}"
    assert outcome(folder) == undisturbed, f"DIE={die}"
    assert run.read("status.json")["state"] == "finished"
    assert not (folder / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "die",
    [
        "step:1:1",  # before the first record
        pytest.param("step:9:0", marks=pytest.mark.long),
        pytest.param("step:20:1", marks=pytest.mark.long),  # in the second repeat
        "step:45:0",  # in a confirmation run
        pytest.param("save:1:half", marks=pytest.mark.long),
        "save:12:half",
        pytest.param("save:12:written", marks=pytest.mark.long),
        "save:30:renamed",
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(die: str, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """SIGKILL of one rank at a fixed point, also in the middle of a save and before the first one."""
    check_death(tmp_path, die, undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_thirty_random_deaths(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Half of them during a save."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(30):
        at = draw.randint(1, 50)
        where = draw.choice(["half", "written", "renamed"]) if number % 2 else str(draw.randint(0, 1))
        check_death(tmp_path / str(number), f"{'save' if number % 2 else 'step'}:{at}:{where}", undisturbed)


def test_a_stopped_run_reopens_its_mlflow_run_and_shows_no_point_twice(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """SIGTERM saves behind the step it finds, whenever the next save is due."""
    slow = "+model.seconds=0.03"
    process = start(tmp_path, *JOB, slow, num_processes=2)
    wait_for_rows(tmp_path, 5, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, tmp_path).code == 1  # what accelerate makes of 143
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "killed"
    before = (tmp_path / "run/records.csv").read_text()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(status["mlflow_run_id"]).info.status == "KILLED"
    run = resumed(tmp_path, slow)
    assert run.code == 0, run.err
    assert (tmp_path / "run/records.csv").read_text().startswith(before), "what was recorded stays, times included"
    assert outcome(tmp_path) == undisturbed
    experiment = client.get_experiment_by_name("lrrunner")
    assert experiment is not None
    (page,) = client.search_runs([experiment.experiment_id])
    assert page.info.run_id == status["mlflow_run_id"]
    assert page.info.status == "FINISHED"
    history = client.get_metric_history(page.info.run_id, "repeat_0/loss")
    assert sorted(point.step for point in history) == list(range(14))


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_mlflow_shows_the_final_suggestion_and_no_interim_one(tmp_path: Path, num_processes: int) -> None:
    """Killed among the confirmation runs, when the sweep alone has suggested another LR.

    An interim value that MLflow has taken under the final name stays what it shows if it is the larger one.
    """
    job = [*JOB, f"launch.num_processes={num_processes}", "run.checkpoint_every_s=0"]
    assert launch(tmp_path, *job, env={"DIE": "step:140:0"}).code == 1
    assert (tmp_path / "run/trials.csv").exists()
    status = json.loads((tmp_path / "run/status.json").read_text())
    interim = json.loads((tmp_path / "run/suggestion.json").read_text())
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    page = client.get_run(status["mlflow_run_id"])
    assert page.info.status == "FAILED"
    assert not {name for name in page.data.metrics if name.startswith(("suggested_", "critical_")) or name == "loss"}
    assert not {"lrrunner.verdict", "lrrunner.stop_reason"} & page.data.tags.keys()
    assert not client.list_artifacts(page.info.run_id, "images")
    assert "run.resume=" in page.data.tags["mlflow.note.content"]
    assert page.data.tags["mlflow.note.content"] == (tmp_path / "run/note.md").read_text()
    run = launch(tmp_path, *job, "run.dir=null", "run.resume=run")
    assert run.code == 0, run.err
    final = run.read("suggestion.json")
    assert final["lr"] != interim["lr"]
    page = client.get_run(status["mlflow_run_id"])
    assert page.data.metrics["suggested_lr"] == final["lr"]
    assert [page.data.metrics["suggested_lr_low"], page.data.metrics["suggested_lr_high"]] == final["interval"]
    assert page.data.tags["lrrunner.verdict"] == final["verdict"]
    assert len(client.get_metric_history(page.info.run_id, "suggested_lr")) == 1
    assert sorted(point.step for point in client.get_metric_history(page.info.run_id, "loss")) == list(range(14))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    assert launch(folder, *JOB, *NO_TRACKING, "run.checkpoint_every_s=0", env={"DIE": "step:9:0"}).code == -9
    return folder


@pytest.mark.parametrize(
    ("changes", "num_processes", "words"),
    [
        (["sweep.seed=5"], 1, "sweep.seed must be 0 to resume run, got 5"),
        ([], 2, "run.resume must continue with 1 rank, as the run began, got 2"),
    ],
)
def test_another_world_or_configuration_is_refused_by_name(
    killed: Path, changes: list[str], num_processes: int, words: str
) -> None:
    """What differs is said, and the run stays as it is."""
    before = {path.name: path.read_bytes() for path in (killed / "run").rglob("*") if path.is_file()}
    run = resumed(killed, *NO_TRACKING, *changes, num_processes=num_processes)
    assert run.code == (2 if num_processes == 1 else 1)
    assert words in run.err
    assert "Traceback" not in run.err.partition("ChildFailedError")[0].partition("Traceback (most recent call")[0]
    after = {path.name: path.read_bytes() for path in (killed / "run").rglob("*") if path.is_file()}
    assert {name: after.get(name) for name in before} == before


def test_other_code_is_refused_by_name(killed: Path) -> None:
    """Another version may round otherwise."""
    status = killed / "run/status.json"
    text = status.read_text()
    status.write_text(json.dumps(json.loads(text) | {"torch_version": "1.0"}))
    run = resumed(killed, *NO_TRACKING, num_processes=1)
    status.write_text(text)
    assert run.code == 2
    assert "run.resume must continue with torch 1.0, as the run began, got" in run.err


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    """Before anything is started."""
    run = resumed(tmp_path, *NO_TRACKING, num_processes=1)
    assert run.code == 2
    assert "run.resume must name a run directory, got run; leave it out to begin a new run" in run.err


def test_a_supervised_run_goes_on(tmp_path: Path) -> None:
    """The parent reopens nothing by itself, and a run that has finished is not measured again."""
    job = ["model=custom", "model._target_=parts.Mortal", "sweep.num_steps=14", "sweep.auto_range=false"]
    job += ["launch.num_processes=2", "run.checkpoint_every_s=0"]
    assert launch(tmp_path, *job, env={"DIE": "step:9:1"}).code == 1
    first = json.loads((tmp_path / "run/status.json").read_text())
    assert first["state"] == "failed"
    run = launch(tmp_path, *job, "run.dir=null", "run.resume=run")
    assert run.code == 0, run.err
    last = run.read("status.json")
    assert (last["state"], last["mlflow_run_id"]) == ("finished", first["mlflow_run_id"])
    again = launch(tmp_path, *job, "run.dir=null", "run.resume=run")
    assert again.code == 0, again.err
    assert again.out == run.out.partition("step\n")[2], "the closing lines once more"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(first["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize("launcher", [(), pytest.param(("launch.num_processes=2",), marks=pytest.mark.long)])
def test_a_second_interrupt_of_a_resumed_run_leaves_files_that_agree(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """note.md was that of the first attempt, and contradicted status.json."""
    job = (*JOB, *launcher, "sweep.num_steps=40")
    process = start(tmp_path, *job, "+model.seconds=0.05")
    wait_for_rows(tmp_path, 5, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, tmp_path).code == 143
    first = (tmp_path / "run/note.md").read_text()
    process = start(tmp_path, *job, "+model.seconds=0.05", "run.dir=null", "run.resume=run")
    wait_for_rows(tmp_path, 9, process)
    assert not (tmp_path / "run/note.md").exists()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1.2)
    done = finish(process, tmp_path, timeout_s=30)
    assert done.code == 130, done.err
    status = done.read("status.json")
    assert status["state"] == "killed"
    note = (tmp_path / "run/note.md").read_text()
    assert note.startswith(f"**Killed**: {status['cause']}\n")
    assert note != first
    assert "go on with:   lrrunner" in done.out
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    page = client.get_run(status["mlflow_run_id"])
    assert page.info.status == "KILLED"
    assert page.data.tags["mlflow.note.content"] == link_figure(note, run_id=page.info.run_id)
    assert "lrrunner.verdict" not in page.data.tags
