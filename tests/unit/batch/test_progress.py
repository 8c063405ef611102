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


def test_a_job_after_its_last_step_is_not_said_to_start() -> None:
    """It draws its picture and uploads; another job in its place starts."""
    stream = Terminal()
    progress = BatchProgress(num_slots=1, stream=stream)
    step = Progress(label="LR sweep", step=9, num_steps=9)
    for label, state in (("a", None), ("a", step), ("a", None), ("b", None)):
        progress.show(num_ended=0, num_failed=0, num_jobs=2, running=[JobProgress(label=label, progress=state)])
    progress.close()
    shown = stream.getvalue()
    positions = [
        shown.index(text) for text in ("a: starting ...", "a: LR sweep", "a: finishing ...", "b: starting ...")
    ]
    assert positions == sorted(positions)
    assert shown.count("a: starting ...") == 1
