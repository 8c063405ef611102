"""Uploads the run directory of a run that has ended. A second upload changes nothing."""

from __future__ import annotations

from pathlib import Path

from lrrunner.config.command_line import resume_command
from lrrunner.reporting.run_summary import unfinished_note
from lrrunner.results.artifacts import FIGURE_FILE
from lrrunner.results.reader import RunFiles
from lrrunner.results.run_state import ENDED, RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.failures import UploadFailure
from lrrunner.tracking.upload.mlflow_run import FIGURE_KEY, RunEnd, has_image, join_run
from lrrunner.tracking.upload.training_set import TrainingSet

NO_CAUSE = "no cause known"


def upload_run(connection: Connection, files: RunFiles, *, run_id: str) -> UploadFailure | None:
    """Upload params, metrics, result, description, figure and files, and end the run with its final status.

    Args:
        connection: The experiment.
        files: The run directory.
        run_id: The run in MLflow. Metrics that it has already are sent again, with the same times.

    Returns:
        Why something is missing in MLflow; None if nothing is.
    """
    recorded = files.status.get("training_set")
    dataset = None if recorded is None else TrainingSet(**recorded)
    run = join_run(connection, run_id, job=files.job, params=files.config, tags={}, dataset=dataset)
    records = files.records
    for step in records.steps:
        run.log_step(step)
    for number, steps in records.trial_steps.items():
        for step in steps:
            run.log_trial_step(number, step)
    for trial in records.trials:
        run.log_trial(trial, timestamp_ms=records.trial_end_ms(trial.trial))
    return run.finish(_run_end(connection, files, run_id=run_id))


def note_from_status(directory: Path) -> str:
    """The description of a run that has not finished, from what its status.json says."""
    status = read_status(directory)
    state = state_in(status)
    command = status.get("command")
    return unfinished_note(
        state if state in ENDED else RunState.KILLED,
        cause=status.get("cause") or NO_CAUSE,
        resume=resume_command(command, str(directory)) if command else None,
        has_figure=(directory / FIGURE_FILE).exists(),
    )


def _run_end(connection: Connection, files: RunFiles, *, run_id: str) -> RunEnd:
    state = files.state
    if state != RunState.FINISHED:
        ended = state if state in ENDED else RunState.KILLED
        return RunEnd(state=ended, note=files.note or note_from_status(files.path), directory=files.path)
    figure = files.path / FIGURE_FILE
    pinned = not figure.exists() or has_image(connection, run_id, key=FIGURE_KEY, step=0)
    return RunEnd(
        state=state, note=files.note, directory=files.path, test=files.test, figure=None if pinned else figure
    )
