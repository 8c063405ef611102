"""Bring to MLflow what a run directory holds and MLflow misses. Sending twice changes nothing. No torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from lrrunner import report
from lrrunner.core.curve import pooled_steps
from lrrunner.run_files import RunFiles
from lrrunner.tracking import MlflowRun

STATUS_IN_MLFLOW = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def catch_up(run: MlflowRun, files: RunFiles, *, run_id: str) -> None:
    """Send params, records, result, description, picture and files of a run that is over, and its final status.

    Args:
        run: A connection to the store.
        files: The run directory.
        run_id: The run in the store; metrics that it has already are sent again, with the same times.
    """
    job, test = files.job, files.test
    several = job.sweep.repeats > 1
    run.start(
        run_name=files.path.name,
        params=files.config,
        tags={},
        live_prefix="repeat_{repeat}/" if several else "",
        run_id=run_id,
    )
    for step in files.steps:
        run.log(step)
    picture = files.path / "lr_sweep.png"
    command = files.status.get("command") or shlex.join(["lrrunner", *files.overrides])
    if test is not None:
        note = report.note(test, job, run_id=run_id, command=command, directory=str(files.path.resolve()))
    else:
        note = f"**{files.status.get('state', 'ended').capitalize()}**: {files.status.get('cause') or 'no cause known'}"
    run.finish(
        status=STATUS_IN_MLFLOW.get(files.status.get("state", ""), "KILLED"),
        test=test,
        pooled=pooled_steps(files.steps, beta=job.sweep.smoothing) if several and files.steps else (),
        note=note,
        files=artifacts(files.path),
        root=files.path,
        picture=picture if picture.exists() and not run.has_picture(run_id) else None,
    )


def artifacts(path: Path) -> list[Path]:
    """The finished files of a run directory."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix not in (".tmp", ".part") and "checkpoints" not in file.relative_to(path).parts
    )
