"""A batch shows one line for itself and one for each running job."""

from __future__ import annotations

from lrrunner.batch.progress import BatchProgress, JobProgress
from lrrunner.records import Progress
from tests.unit.reporting.test_progress_display import Terminal


def test_a_terminal_shows_the_batch_and_each_running_job() -> None:
    """Long labels are shortened; a job that has not begun says so; an empty slot shows nothing."""
    stream = Terminal()
    progress = BatchProgress(num_slots=3, stream=stream)
    running = Progress(label="LR sweep", step=45, num_steps=100, detail="lr 1.0e-03  loss 0.5")
    jobs = [
        JobProgress(label="model=a_very_long_name_of_a_model", progress=running),
        JobProgress(label="model=cnn", progress=None),
        None,
    ]
    progress.show(num_ended=3, num_failed=1, num_jobs=8, running=jobs)
    progress.close()
    shown = stream.getvalue()
    assert "batch  1 failed, 2 running " in shown
    assert " 3/8 " in shown
    assert "model=a_very_long_name_…: LR sweep  lr 1.0e-03  loss 0.5 " in shown
    assert "model=cnn: starting ..." in shown
