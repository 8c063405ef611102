"""A grid shared out over the tasks of an array, and what scripts/submit checks."""

from __future__ import annotations

import pytest

from lrrunner.errors import ConfigError
from lrrunner.slurm.array import task_args
from lrrunner.slurm.submit import checked


def test_tasks_share_the_points_and_each_has_a_directory() -> None:
    """Every point once, in words that no shell takes apart."""
    words = ["optimizer=sgd,adamw", "sweep.seed=1,2", '+tracking.tags.odd="a b; $(touch x)"']
    odd = '+tracking.tags.odd="a b; $(touch x)"'
    first, second = (list(task_args("runs/a", index, 3, words)) for index in (0, 1))
    last = "tracking.enabled=false"
    assert first == [
        *("runs/a/000", "4", "optimizer=sgd", "sweep.seed=1", odd, last),
        *("runs/a/003", "4", "optimizer=adamw", "sweep.seed=2", odd, last),
    ]
    assert second == ["runs/a/001", "4", "optimizer=sgd", "sweep.seed=2", odd, last]


def test_a_submission_is_checked_as_the_job_will_read_it() -> None:
    """One job, or every point of a grid; where the run goes is the batch script's own business."""
    assert checked("sweep", ["optimizer=sgd", "run.dir=x"]) == 1
    assert checked("array", ["optimizer=sgd,adamw", "sweep.seed=1,2,3"]) == 6
    with pytest.raises(ConfigError, match=r"sweep\.num_steps must be at least 2, got 1"):
        checked("batch", ["sweep.num_steps=1,20"])
