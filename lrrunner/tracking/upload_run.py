"""Bring to MLflow what a run directory holds and MLflow misses. Sending twice changes nothing. No torch."""

from __future__ import annotations

from lrrunner.reporting import run_summary
from lrrunner.results.artifacts import FIGURE, artifacts
from lrrunner.results.reader import RunFiles
from lrrunner.results.run_state import ENDED, RunState, state_in
from lrrunner.tracking.metric_names import final_points, live_prefix, superseded
from lrrunner.tracking.mlflow_run import TRIAL_METRICS, MlflowRun


def upload_run(run: MlflowRun, files: RunFiles, *, run_id: str) -> None:
    """Send params, records, result, description, picture and files of a run that is over, and its final status.

    Args:
        run: A connection to the store.
        files: The run directory.
        run_id: The run in the store; metrics that it has already are sent again, with the same times.
    """
    sweep, test = files.job.sweep, files.test
    run.start(run_name=files.path.name, params=files.config, tags={}, run_id=run_id)
    for step in files.steps:
        run.log(step, prefix=live_prefix(step, sweep))
    for number, steps in files.trial_steps.items():
        for step in steps:
            run.log(step, prefix=f"trial_{number}/", names=TRIAL_METRICS)
    for step in files.trials:
        run.log(step, prefix="confirm/", names=TRIAL_METRICS)
    picture = files.path / FIGURE
    state = state_in(files.status)
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
