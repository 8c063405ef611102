"""``data.sampler`` on the command line: sharded over ranks, and resumed by a step number."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.integration.launching import NO_TRACKING, Finished, launch

SAMPLERS = {
    "a sampler": "{_target_: parts.rare_digits}",
    "weights": "{_target_: lrrunner.tasks.samplers.class_balanced, power: 0.5}",
}
JOB = ("sweep.num_steps=40", "sweep.auto_range=false", "sweep.start_lr=1e-4", *NO_TRACKING)
TIMES = ("elapsed_s", "timestamp_ms")


def records(done: Finished) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    rows = csv.DictReader((done.run / "records.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def losses(folder: Path, *overrides: str, num_processes: int = 1) -> list[float]:
    folder.mkdir()
    return [float(row["loss"]) for row in records(launch(folder, *JOB, *overrides, num_processes=num_processes))]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_the_same_global_batch_gives_the_same_curve_on_one_and_two_ranks(tmp_path: Path, sampler: str) -> None:
    """Law 8, over more than one epoch of the sampler, and with accumulation."""
    alone = losses(tmp_path / "1", f"data.sampler={sampler}")
    together = losses(tmp_path / "2", f"data.sampler={sampler}", "train.accumulation_steps=2", num_processes=2)
    assert len(alone) > 25
    assert together[:25] == pytest.approx(alone[:25], rel=1e-4)
    shuffled = losses(tmp_path / "none")
    assert shuffled[0] != pytest.approx(alone[0], rel=1e-4)


def test_a_killed_run_continues_with_the_samples_that_come_next(tmp_path: Path) -> None:
    """The position is a step number, also for drawn samples, in the second epoch."""
    job = (*JOB, "model=custom", "model._target_=parts.Mortal", f"data.sampler={SAMPLERS['a sampler']}")
    (tmp_path / "whole").mkdir()
    whole = records(launch(tmp_path / "whole", *job, num_processes=2))
    every = "run.checkpoint_every_s=0"
    assert launch(tmp_path, *job, every, num_processes=2, env={"DIE": "step:17:1"}).code == 1
    assert records(launch(tmp_path, *job, every, "run.dir=null", "run.resume=run", num_processes=2)) == whole


def test_a_sampler_that_splits_by_rank_is_refused(tmp_path: Path) -> None:
    """Before anything is trained, in one message."""
    done = launch(tmp_path, *JOB, "data.sampler={_target_: parts.rank_share}", num_processes=2)
    assert done.code == 1  # torchrun's, for the 2 of a rank
    assert "data.sampler must give the same indices in the same order on every rank, got others on rank 1" in done.err
    assert "Traceback" not in done.err
