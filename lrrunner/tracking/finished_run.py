"""Completes a run that has finished, when it is resumed: its picture and what MLflow misses. No torch."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.reporting.run_summary import closing_lines
from lrrunner.results.artifacts import CHECKPOINT_FOLDER, FIGURE_FILE
from lrrunner.results.reader import RunFiles, read_run
from lrrunner.results.resume_checks import finished_differences
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import shown_path
from lrrunner.system.plain_values import to_plain
from lrrunner.tracking.store.connection import anchored_uri
from lrrunner.tracking.sync_run import synced_location

logger = logging.getLogger(__name__)


def complete_finished_run(job: Config, redactor: Redactor) -> list[str]:
    """Do what the end of a finished run could not: draw its picture, remove its checkpoints, upload it.

    Args:
        job: The command's configuration; its ``run.resume`` names the run.
        redactor: Masks secrets.

    Returns:
        The closing lines of the run.

    Raises:
        ConfigError: the run had another configuration, or the store refuses.
    """
    assert job.run.resume is not None
    path = Path(job.run.resume).expanduser().resolve()
    tracking = replace(job.tracking, uri=anchored_uri(job.tracking.uri))
    errors = finished_differences(path, redactor.tree(to_plain(replace(job, tracking=tracking))))
    if errors:
        raise ConfigError(errors)
    files = read_run(path)
    _draw_missing_figure(files)
    shutil.rmtree(path / CHECKPOINT_FOLDER, ignore_errors=True)
    mlflow = _uploaded(files, tracking.uri) if tracking.enabled else None
    if files.test is None:
        return [f"finished: {shown_path(path)}"]
    lines = closing_lines(files.test, files.job, directory=shown_path(path), mlflow=mlflow)
    return [redactor.text(line) for line in lines]


def _draw_missing_figure(files: RunFiles) -> None:
    from lrrunner.reporting.sweep_figure import job_figure, save_png

    path = files.path / FIGURE_FILE
    if files.test is None or path.exists():
        return
    try:
        save_png(job_figure(files.test, files.job), path)
    except Exception as error:  # noqa: BLE001 - matplotlib raises what it likes
        logger.warning("the picture could not be drawn (%s: %s)", type(error).__name__, error)


def _uploaded(files: RunFiles, uri: str) -> str | None:
    """Where the run is in MLflow; None, with a warning, if the store does not answer."""
    try:
        return synced_location(files, uri=uri)
    except ConnectionError as error:
        command = f"lrrunner-sync {shown_path(files.path)}"
        logger.warning("MLflow does not answer (%s); upload the run later with: %s", error, command)
        return None
