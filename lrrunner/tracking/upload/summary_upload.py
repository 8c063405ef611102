"""Uploads the summary of a batch to its MLflow run. A second upload changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrrunner.results.run_state import RunState
from lrrunner.tracking.names.tag_names import LOGGED_ARTIFACTS
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.failures import UploadFailure, upload_failure
from lrrunner.tracking.store.runs import end_run, set_note
from lrrunner.tracking.upload.mlflow_run import has_image, pin_image

TABLE_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the summary run of a batch shows.

    Attributes:
        note: Markdown for the description.
        table: Columns and rows of a table artifact.
        metrics: Counts of jobs, and the best of them.
        measured_ms: When these were known.
        figures: PNGs, pinned under their names.
        figure_step: Tells figures and metrics of an earlier state of the batch from later ones.
        files: Further artifacts.
        tags: Counts of jobs.
    """

    note: str
    table: Mapping[str, Any]
    metrics: Mapping[str, float]
    measured_ms: int
    figures: Sequence[Path]
    figure_step: int
    files: Sequence[Path]
    tags: Mapping[str, str]


def upload_summary(connection: Connection, run_id: str, summary: Summary, *, state: RunState) -> UploadFailure | None:
    """Upload a summary and end its run. Never raises.

    Args:
        connection: The experiment.
        run_id: The batch's run.
        summary: What it shows.
        state: How the batch has ended.

    Returns:
        Why something is missing in MLflow; None if nothing is.
    """
    failure = None
    try:
        _log_table(connection, run_id, summary.table)
        _log_metrics(connection, run_id, summary)
        for figure in summary.figures:
            connection.client.log_artifact(run_id, str(figure))
            if not has_image(connection, run_id, key=figure.stem, step=summary.figure_step):
                pin_image(connection, run_id, figure, key=figure.stem, step=summary.figure_step)
        for file in summary.files:
            connection.client.log_artifact(run_id, str(file))
        set_note(connection, run_id, summary.note)
        for key, value in summary.tags.items():
            connection.client.set_tag(run_id, key, connection.redactor.text(value))
    except Exception as error:  # noqa: BLE001 - the batch directory holds everything; a view must not fail the batch
        failure = upload_failure(error, connection.redactor)
    ended = end_run(connection, run_id, state)
    return failure or ended


def _log_metrics(connection: Connection, run_id: str, summary: Summary) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, summary.measured_ms, summary.figure_step) for name, value in summary.metrics.items()]
    connection.client.log_batch(run_id, metrics=metrics, synchronous=True)


def _log_table(connection: Connection, run_id: str, table: Mapping[str, Any]) -> None:
    """Log the table, which the run's page shows."""
    connection.client.log_text(run_id, json.dumps(table), TABLE_FILE)
    shown = [{"path": TABLE_FILE, "type": "table"}]
    connection.client.set_tag(run_id, LOGGED_ARTIFACTS, json.dumps(shown))
