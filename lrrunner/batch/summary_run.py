"""What a batch leaves for the morning: summary.csv, pictures, and one page in MLflow. No torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrrunner.batch import summary_table
from lrrunner.batch.ledger import FILE_NAME, Entry
from lrrunner.batch.state import read_state, update_state
from lrrunner.config.schema import TrackingConfig
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.power_law import power_law
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import ENDED, RunState
from lrrunner.system.atomic_files import write_text
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.mlflow_run import MlflowRun, anchored_uri, configure_mlflow
from lrrunner.version import __version__

logger = logging.getLogger(__name__)


def start_summary_run(
    directory: Path, tracking: TrackingConfig, *, command: str, redactor: Redactor, run_id: str | None = None
) -> str | None:
    """Make the batch's run in MLflow, or open the one again that an earlier part of the batch has made.

    Args:
        directory: The batch directory.
        tracking: The section ``tracking`` of the first job.
        command: What repeats the batch.
        redactor: Masks secrets.
        run_id: The run that an earlier part of the batch has made.

    Returns:
        The run's id; None where tracking is off or the store does not answer.

    Raises:
        ConfigError: the store refuses.
    """
    state = {
        "uri": redactor.text(anchored_uri(tracking.uri)),
        "experiment": tracking.experiment,
        "enabled": tracking.enabled,
        "command": redactor.text(command),
    } | read_state(directory)
    state["mlflow_run_id"] = run_id
    if tracking.enabled:
        run = connected(tracking, redactor)
        if run is not None:
            try:
                state["mlflow_run_id"] = _opened(run, directory, run_id)
            except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the batch
                logger.warning("MLflow failed (%s); the batch directory keeps everything", redactor.text(str(error)))
    update_state(directory, **state)
    return None if state["mlflow_run_id"] is None else str(state["mlflow_run_id"])


def connected(tracking: TrackingConfig, redactor: Redactor) -> MlflowRun | None:
    """The store; None, with a warning, where it does not answer."""
    configure_mlflow(tracking.timeout_s)
    try:
        return MlflowRun(uri=tracking.uri, experiment=tracking.experiment, redactor=redactor)
    except ConnectionError as error:
        logger.warning("MLflow does not answer (%s); lrrunner-sync brings the batch later", error)
        return None


def _opened(run: MlflowRun, directory: Path, run_id: str | None) -> str:
    if run_id is not None and run.exists(run_id):
        run.reopen(run_id)
        return run_id
    tags = {
        "lrrunner.version": __version__,
        "lrrunner.batch": "true",
        "lrrunner.run_dir": str(directory.resolve()),
    }
    return run.create(run_name=directory.name, tags=tags)


def write_summary(directory: Path, entries: Sequence[Entry]) -> list[Path]:
    """summary.csv, summary.png and a picture for each swept number.

    Args:
        directory: The batch directory.
        entries: The last word on each job, in the order of the grid.

    Returns:
        The pictures.
    """
    write_text(directory / "summary.csv", summary_table.csv_text(entries))
    from lrrunner.batch.figures import overlay_figure, scaling_figure
    from lrrunner.reporting.sweep_figure import save_png

    curves = []
    for entry, label in zip(entries, summary_table.labels(entries), strict=True):
        if entry.run_dir is None or entry.state != RunState.FINISHED:
            continue
        run = read_run(directory / entry.run_dir)
        curve = curve_from_steps(run.test.curve_steps if run.test else run.records.steps, beta=run.job.sweep.smoothing)
        if curve is not None:
            curves.append((label, curve, entry.lr))
    pictures = []
    if curves:
        pictures.append(directory / "summary.png")
        save_png(overlay_figure(curves, title=f"{len(curves)} sweeps"), pictures[-1])
    for key, points in summary_table.swept_numbers(entries).items():
        values, lrs = np.array([point.value for point in points]), np.array([point.lr for point in points])
        law = power_law(values, lrs, [point.group for point in points])
        pictures.append(directory / f"lr_against_{slug(key)}.png")
        save_png(scaling_figure(key, points, law), pictures[-1])
    return pictures


def slug(key: str) -> str:
    """A configuration key as part of a file's name; the whole of it, since two keys may end alike.

    >>> slug("optimizer.weight_decay"), slug("db/size")
    ('optimizer_weight_decay', 'db_size')
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_")


def finish_summary_run(
    directory: Path,
    entries: Sequence[Entry],
    pictures: Sequence[Path],
    *,
    run: MlflowRun,
    run_id: str,
    state: RunState,
    command: str,
) -> None:
    """Bring the page up to date: table, pictures, files, counts and status. Sending twice changes nothing."""
    counts = {state: sum(entry.state == state for entry in entries) for state in ENDED}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no job yet"
    shown = "\n\n".join(f"![{path.stem}](get-artifact?path={path.name}&run_uuid={run_id})" for path in pictures)
    table = summary_table.markdown_table(entries)
    note = f"**{len(entries)} jobs: {words}**\n\n{table}\n\n{shown}\n\n```\n{command}\n```\n"
    run.publish(
        run_id,
        status=state.mlflow_status,
        note=note,
        table={
            "columns": list(summary_table.TABLE_COLUMNS),
            "data": [list(row) for row in summary_table.rows(entries)],
        },
        pictures=pictures,
        picture_step=len(entries),
        files=[path for name in ("summary.csv", FILE_NAME, "multirun.yaml") if (path := directory / name).exists()],
        tags={f"lrrunner.num_{state}": str(count) for state, count in counts.items()},
    )


def batch_state(entries: Sequence[Entry], *, num_jobs: int, interrupted: bool) -> RunState:
    """How a batch that is over ended."""
    if interrupted:
        return RunState.KILLED
    all_finished = len(entries) == num_jobs and all(entry.state == RunState.FINISHED for entry in entries)
    return RunState.FINISHED if all_finished else RunState.FAILED
