"""Iterable data sets on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.launching import NO_TRACKING, launch
from tests.integration.test_sampler import JOB, losses, records

STREAM = (
    "data=custom",
    "data.train._target_=parts.DigitStream",
    "+data.train.split=train",
    "data.val={_target_: parts.DigitStream, split: val}",
    "data.global_batch_size=64",
)


def test_one_and_two_ranks_with_loader_workers_give_the_same_curve(tmp_path: Path) -> None:
    """No sample is seen twice, and ranks begin the second pass together: 22 global batches are one."""
    alone = losses(tmp_path / "1", *STREAM)
    two_workers = ("data.dataloader.num_workers=2", "data.dataloader.pin_memory=false")
    together = losses(tmp_path / "2", *STREAM, *two_workers, num_processes=2)
    assert len(alone) > 25
    assert together[:25] == pytest.approx(alone[:25], rel=1e-4)


def test_monitoring_and_confirmation_read_an_iterable_validation_set(tmp_path: Path) -> None:
    """On two ranks, with a training set of unknown length."""
    done = launch(
        tmp_path,
        *STREAM,
        *NO_TRACKING,
        "sweep.monitor=val",
        "confirm.enabled=true",
        "confirm.budget_steps=100",
        num_processes=2,
    )
    assert done.code == 0, done.err
    assert done.read("suggestion.json")["verdict"] == "ok"
    assert len((done.run / "trials.csv").read_text().splitlines()) > 2
    assert "data.train is iterable" in (done.run / "ranks" / "0.log").read_text()
    assert "iterable" not in done.err


def test_a_killed_run_reads_the_stream_again_up_to_its_position(tmp_path: Path) -> None:
    """A stream that repeats itself gives the records of an undisturbed run, also in its second pass."""
    job = (*JOB, *STREAM, "model=custom", "model._target_=parts.Mortal")
    (tmp_path / "whole").mkdir()
    whole = records(launch(tmp_path / "whole", *job, num_processes=2))
    every = "run.checkpoint_every_s=0"
    assert launch(tmp_path, *job, every, num_processes=2, env={"DIE": "step:26:1"}).code == 1
    assert records(launch(tmp_path, *job, every, "run.dir=null", "run.resume=run", num_processes=2)) == whole


def test_a_stream_that_splits_itself_by_rank_is_refused(tmp_path: Path) -> None:
    """It would lose half of its samples."""
    done = launch(tmp_path, *JOB, *STREAM, "+data.train.by_rank=true", num_processes=2)
    assert done.code == 1
    assert "got others on rank 1; leave its own split by rank out" in done.err
    assert "Traceback" not in done.err
