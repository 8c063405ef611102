"""A long batch with bad jobs of every kind, whose supervisor is killed: no good job notices anything of it."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.launching import NO_TRACKING, finish, launch, start, wait_until

CAUSES = {
    "build": "bad build",
    "forward": "rank 1: RuntimeError: bad forward",
    "backward": "rank 1: RuntimeError: bad backward",
    "optimizer": "rank 1: RuntimeError: bad optimizer",
    "worker": "rank 1: RuntimeError: Caught RuntimeError in DataLoader worker process 0.",
    "exit": "rank 1: ended with exit code 3 without reporting a cause",
    "kill": "rank 1: killed by SIGKILL",
    "stop": "rank 1: stopped by a signal (SIGSTOP), no step for 20 s",
    "hang": "rank 1: no step for 20 s, at ",
}
"""How a job of each kind fails."""

HARMLESS = ("hog", "spoil")
"""Kinds that finish, but leave 2 GiB, or the process's global settings in disorder."""

NUM_GOOD = 45
MAX_GROWTH_MIB = 60

JOB = (
    *NO_TRACKING,
    "sweep.num_steps=12",
    "sweep.auto_range=false",
    "data=custom",
    "data.train._target_=parts.SoakData",
    "+data.train.mood=${model.mood}",
    "data.global_batch_size=64",
    "data.dataloader.num_workers=1",
    "model=custom",
    "model._target_=parts.SoakNet",
)
BATCH = ("-m", *JOB, "launch.num_processes=2", "launch.concurrent=2", "launch.timeout_s=20")


def moods() -> list[str]:
    """Sixty jobs, a bad one after every third good one."""
    bad = [*CAUSES, *(f"{kind}_{number}" for number in range(3) for kind in HARMLESS)]
    good = [f"good_{number}" for number in range(NUM_GOOD)]
    found = []
    for number, mood in enumerate(bad):
        found += [*good[3 * number : 3 * number + 3], mood]
    return found


def ledger(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run/ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mood_of(entry: dict[str, Any]) -> str:
    """What tells a job from the others; the last line of a job counts."""
    (mood,) = [override.partition("=")[2] for override in entry["overrides"] if override.startswith("+model.mood=")]
    return str(mood)


def losses(run: Path) -> list[dict[str, str]]:
    """The records, times aside."""
    with (run / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in ("elapsed_s", "timestamp_ms")} for row in rows]


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_sixty_jobs_of_which_a_quarter_is_bad(tmp_path: Path) -> None:
    """Each good job's records are those of a fresh process, and memory does not grow with the jobs."""
    grid = f"+model.mood={','.join(moods())}"
    process = start(tmp_path, *BATCH, grid)
    wait_until(lambda: len(ledger(tmp_path)) >= 20, process, timeout_s=1800)
    process.kill()
    process.communicate()
    resumed = start(tmp_path, *BATCH, grid, "run.dir=null", "run.resume=run")
    memory: list[int] = []
    while resumed.poll() is None:
        with contextlib.suppress(psutil.Error):
            memory.append(psutil.Process(resumed.pid).memory_info().rss >> 20)
        time.sleep(1)
    done = finish(resumed, tmp_path)
    assert done.code == 1, done.err
    by_mood = {mood_of(entry): entry for entry in ledger(tmp_path)}
    assert set(by_mood) == set(moods())
    for mood, entry in by_mood.items():
        kind = mood.partition("_")[0]
        if kind in CAUSES:
            assert entry["state"] == "failed", mood
            assert CAUSES[kind] in str(entry["cause"]), mood
        else:
            assert (entry["state"], entry["cause"]) == ("finished", None), mood
    assert max(memory) - memory[len(memory) // 3] < MAX_GROWTH_MIB, memory
    assert_no_growth(tmp_path)
    for number in range(NUM_GOOD):
        fresh = tmp_path / f"fresh_{number}"
        fresh.mkdir()
        alone = launch(fresh, *JOB, f"+model.mood=good_{number}", num_processes=2)
        assert alone.code == 0, alone.err
        assert losses(fresh / "run") == losses(tmp_path / "run" / str(by_mood[f"good_{number}"]["run_dir"])), number
    assert not list((tmp_path / "run").glob(".lrrunner*"))


def assert_no_growth(folder: Path) -> None:
    """Each rank's memory at the start of its jobs, from the third one on: the first ones load what they need.

    A spoilt job may import more of torch once (70 MiB for deterministic algorithms), which is no growth with the jobs.
    """
    for path in folder.glob("rss-*"):
        found = [int(line) for line in path.read_text().split()][2:]
        steps = [later - earlier for earlier, later in itertools.pairwise(found)]
        assert not steps or statistics.median(steps) <= 1, (path.name, found)
        assert not steps or sum(steps) < 3 * MAX_GROWTH_MIB, (path.name, found)
