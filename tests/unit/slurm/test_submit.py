"""What ``scripts/submit`` checks before anything is queued."""

from __future__ import annotations

import pytest

from lrrunner.errors import ConfigError
from lrrunner.slurm.submit import num_checked_jobs


def test_a_submission_is_checked_as_the_job_will_read_it() -> None:
    """One job, or every point of a grid; the run directory is left to the batch script."""
    assert num_checked_jobs("sweep", ["optimizer=sgd", "run.dir=x"]) == 1
    assert num_checked_jobs("array", ["optimizer=sgd,adamw", "sweep.seed=1,2,3"]) == 6
    with pytest.raises(ConfigError, match=r"sweep\.num_steps must be at least 2, got 1"):
        num_checked_jobs("batch", ["sweep.num_steps=1,20"])
