"""Uploads the run directory of a run that has ended. A second upload changes nothing."""

from __future__ import annotations

from lrrunner.results.artifacts import FIGURE_FILE
from lrrunner.results.reader import RunFiles
from lrrunner.results.run_state import ENDED, RunState
from lrrunner.tracking.connection import Connection, UploadFailure
from lrrunner.tracking.mlflow_run import FIGURE_KEY, RunEnd, has_image, join_run


def upload_run(connection: Connection, files: RunFiles, *, run_id: str) -> UploadFailure | None:
    """Upload params, metrics, result, description, figure and files, and end the run with its final status.

    Args:
        connection: The experiment.
        files: The run directory.
        run_id: The run in MLflow. Metrics that it has already are sent again, with the same times.

    Returns:
        Why something is missing in MLflow; None if nothing is.
    """
    run = join_run(connection, run_id, sweep=files.job.sweep, params=files.config, tags={})
    records = files.records
    for step in records.steps:
        run.log_step(step)
    for number, steps in records.trial_steps.items():
        for step in steps:
            run.log_trial_step(number, step)
    for trial in records.trials:
        run.log_trial(trial, timestamp_ms=records.trial_end_ms(trial.trial))
    return run.finish(_run_end(connection, files, run_id=run_id))


def _run_end(connection: Connection, files: RunFiles, *, run_id: str) -> RunEnd:
    state = files.state
    failure = f"**{state.text if state else 'Ended'}**: {files.status.get('cause') or 'no cause known'}"
    figure = files.path / FIGURE_FILE
    pinned = not figure.exists() or has_image(connection, run_id, key=FIGURE_KEY, step=0)
    return RunEnd(
        state=state if state in ENDED else RunState.KILLED,
        note=files.note or failure,
        directory=files.path,
        test=files.test,
        figure=None if pinned else figure,
    )
