"""Kills at random points of every phase: the run goes on, nothing is lost, and files and MLflow tell the truth.

``LRRUNNER_SOAK_KILLS`` is the number of kills (100), ``LRRUNNER_SOAK_SEED`` repeats a soak.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.integration.launching import NO_TRACKING, Run, launch, start
from tests.integration.test_resume import JOB, outcome

TWO = (*JOB, "launch.num_processes=2", "run.checkpoint_every_s=0")
RESUME = ("run.dir=null", "run.resume=run")

VICTIMS = ("rank 0", "rank 1", "launcher", "supervisor", "group")
PHASES = ("start", "build", "sweep", "save", "after the sweep", "confirmation", "upload")

END_WITHIN_S = 60.0
POLL_S = 0.005


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        phase: When.
        victim: What.
        row: After how many records, in a phase that has some.
        delay_s: How long after that moment.
        save: Number of the save and its point, where rank 0 dies in one.
    """

    phase: str
    victim: str
    row: int
    delay_s: float
    save: str = ""

    @classmethod
    def drawn(cls, draw: random.Random, number: int) -> Kill:
        """The phases take turns, the rest is random."""
        phase = PHASES[number % len(PHASES)]
        row = draw.randint(1, 27) if phase == "sweep" else draw.randint(1, 40)
        if phase == "save":
            save = f"save:{draw.randint(1, 50)}:{draw.choice(['half', 'written', 'renamed'])}"
            return cls(phase, "rank 0", row, 0.0, save)
        longest = {"start": 4.0, "build": 0.5, "upload": 0.6}.get(phase, 0.2)
        return cls(phase, draw.choice(VICTIMS), row, draw.uniform(0.0, longest))


def has_begun(run: Path, kill: Kill) -> Callable[[], bool]:
    """Whether the moment of a kill has come."""
    tables = {"sweep": "records.csv", "confirmation": "trial_records.csv"}
    if kill.phase in tables:
        return lambda: num_lines(run / tables[kill.phase]) > kill.row
    if kill.phase == "upload":
        return lambda: '"finished"' in text_of(run / "status.json")
    files = {"build": run, "after the sweep": run / "suggestion.json"}
    return files[kill.phase].exists if kill.phase in files else lambda: True


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def shared_memory_files() -> set[str]:
    """Of torch and lrrunner; other programs of the machine may have some."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("torch_", "lrrunner"))}


def num_lines(path: Path) -> int:
    return text_of(path).count("\n")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that a supervisor has started: all of them have its TMPDIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(folder / "tmp") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def victims(kill: Kill, supervisor: Run, folder: Path) -> list[psutil.Process]:
    """What a kill meets, as far as it has started."""
    parent = psutil.Process(supervisor.pid)
    if kill.victim == "supervisor":
        return [parent]
    everything = processes_of(folder)
    if kill.victim == "group":
        return [parent, *everything]
    try:
        if kill.victim == "launcher":
            return [process for process in everything if process.ppid() == parent.pid]
        return [process for process in everything if process.environ().get("RANK") == kill.victim[-1]][:1]
    except psutil.Error:
        return []


def die(kill: Kill, folder: Path) -> float:
    """Start the job, kill it, and wait for the end of all its processes; seconds that took."""
    environ = {"TMPDIR": str(folder / "tmp"), "DIE": kill.save or "never::"}
    process = start(folder, *TWO, "+model.seconds=0.01", env=environ)
    begun = has_begun(folder / "run", kill)
    while process.poll() is None and not kill.save and not begun():
        time.sleep(POLL_S)
    time.sleep(kill.delay_s)
    found: list[psutil.Process] = []
    while process.poll() is None and not kill.save and not found:  # a rank may start a moment later
        found = victims(kill, process, folder)
    for victim in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    killed_at = time.monotonic()
    limit = 240.0 if kill.save else END_WITHIN_S  # a save that is never made kills nobody
    while process.poll() is None or processes_of(folder):
        if time.monotonic() - killed_at > limit:
            for left in processes_of(folder):
                left.kill()
            process.kill()
            process.communicate()
            raise TimeoutError
        time.sleep(0.2)
    process.communicate()
    return time.monotonic() - killed_at


def go_on(folder: Path) -> None:
    """The next start: a resume, or a new run where nothing was recorded."""
    resume = RESUME if (folder / "run/config.yaml").exists() else ()
    done = launch(folder, *TWO, "+model.seconds=0.01", *resume, env={"TMPDIR": str(folder / "tmp")})
    assert done.code == 0, (done.code, done.err[-2000:])


def check(folder: Path, undisturbed: dict[str, Any]) -> None:
    """Files and MLflow hold the whole run once, as of one that was left alone."""
    assert outcome(folder) == undisturbed, "other records"
    status = json.loads((folder / "run/status.json").read_text())
    assert (status["state"], status["cause"]) == ("finished", None)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert [run.info.run_id for run in finished] == [status["mlflow_run_id"]]
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}
    (run,) = finished
    suggestion = undisturbed["suggestion"]
    assert run.data.metrics.get("suggested_lr") == suggestion["lr"]
    assert run.data.tags["lrrunner.verdict"] == suggestion["verdict"]
    assert run.data.tags["mlflow.note.content"].startswith("**Suggested LR")
    for name in ("loss", "repeat_0/loss", "repeat_1/loss"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(steps) == list(range(14)), name
    assert not list((folder / "tmp").rglob("*")), "left in TMPDIR"
    parts = [path.name for path in (folder / "run").rglob("*") if path.name.endswith((".part", ".tmp"))]
    assert not parts, parts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same job, left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(folder, *TWO, *NO_TRACKING).code == 0
    return outcome(folder)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_kills_at_random_points_of_every_phase(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Rank 0, another rank, launcher, supervisor, and all of them at once."""
    seed = int(os.environ.get("LRRUNNER_SOAK_SEED") or random.SystemRandom().randrange(10**6))
    draw = random.Random(seed)
    print(f"\nseed {seed}", flush=True)
    shared_memory = shared_memory_files()
    counts: Counter[tuple[str, str]] = Counter()
    problems = []
    for number in range(int(os.environ.get("LRRUNNER_SOAK_KILLS", "100"))):
        kill = Kill.drawn(draw, number)
        folder = tmp_path / str(number)
        (folder / "tmp").mkdir(parents=True)
        result, took_s = "survived", 0.0
        try:
            took_s = die(kill, folder)
            go_on(folder)
            check(folder, undisturbed)
        except TimeoutError:
            result = "hung"
        except AssertionError as error:
            result = "lost"
            problems.append((number, kill, str(error)[:3000]))
            print(problems[-1])
        counts[kill.phase, result] += 1
        print(f"{number} {kill}: {result}, all ended after {took_s:.1f} s", flush=True)
    for phase in PHASES:
        print(f"{phase}: { ({result: counts[phase, result] for result in ('survived', 'lost', 'hung')}) }")
    assert not problems, problems
    assert not any(result == "hung" for _, result in counts)
    assert not shared_memory_files() - shared_memory
