"""Bring to MLflow what a run directory holds and MLflow misses. Sending twice changes nothing. No torch."""

from __future__ import annotations

from lrrunner.reporting import run_summary
from lrrunner.results.artifacts import FIGURE_FILE, artifacts
from lrrunner.results.reader import RunFiles
from lrrunner.results.run_state import ENDED, RunState
from lrrunner.tracking.metric_names import (
    final_points,
    live_prefix,
    step_point,
    superseded,
    trial_point,
    trial_step_point,
)
from lrrunner.tracking.mlflow_run import MlflowRun


def upload_run(run: MlflowRun, files: RunFiles, *, run_id: str) -> None:
    """Send params, records, result, description, picture and files of a run that is over, and its final status.

    Args:
        run: A connection to the store.
        files: The run directory.
        run_id: The run in the store; metrics that it has already are sent again, with the same times.
    """
    sweep, test = files.job.sweep, files.test
    run.start(run_name=files.path.name, params=files.config, tags={}, run_id=run_id)
    records = files.records
    for step in records.steps:
        run.log(step_point(step, live_prefix(step, sweep)))
    for number, steps in records.trial_steps.items():
        for step in steps:
            run.log(trial_step_point(number, step))
    for trial in records.trials:
        run.log(trial_point(trial, timestamp_ms=records.trial_end_ms(trial.trial)))
    picture = files.path / FIGURE_FILE
    state = files.state
    failure = f"**{state.text if state else 'Ended'}**: {files.status.get('cause') or 'no cause known'}"
    run.finish(
        status=(state if state in ENDED else RunState.KILLED).mlflow_status,
        test=test,
        final=list(final_points(test, sweep)) if test is not None else (),
        superseded=superseded(test) if test is not None else lambda prefix: False,
        note=run_summary.with_picture(files.note, run_id=run_id) if files.note else failure,
        files=artifacts(files.path),
        root=files.path,
        picture=picture if picture.exists() and not run.has_picture(run_id) else None,
    )
