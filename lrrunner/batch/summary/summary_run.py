"""The summary run of a batch in MLflow, with the runs of the jobs nested below it. No torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrrunner.batch import ledger
from lrrunner.batch.ledger import FILE_NAME, Entry
from lrrunner.batch.state import read_state, update_state
from lrrunner.batch.summary import summary_table
from lrrunner.batch.summary.best_job import COMPARED_LOSS, best_entry, why_no_best
from lrrunner.config.schema import TrackingConfig
from lrrunner.results.run_state import ENDED, RunState
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import counted
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.store.connection import Connection, anchored_uri, connect_or_warn
from lrrunner.tracking.store.failures import UploadFailure, failure_reason
from lrrunner.tracking.store.runs import create_or_join_run, find_run, reopen_run, run_exists
from lrrunner.tracking.upload.summary_upload import Summary, upload_summary
from lrrunner.version import __version__

KEPT_IN = "batch directory"

logger = logging.getLogger(__name__)


def start_summary_run(
    directory: Path, tracking: TrackingConfig, *, name: str, command: str, redactor: Redactor
) -> str | None:
    """Create the summary run, or reopen the one that a previous attempt at the batch created.

    Its id and the command are kept in batch.json.

    Args:
        directory: The batch directory.
        tracking: Section ``tracking`` of the first job.
        name: What the batch sweeps, for the run's name.
        command: What repeats the batch.
        redactor: Masks secrets.

    Returns:
        The run's id; None where tracking is off or the store does not answer.

    Raises:
        ConfigError: the store refuses.
    """
    known = read_state(directory)
    settings = {
        "uri": redactor.text(anchored_uri(tracking.uri)),
        "experiment": tracking.experiment,
        "enabled": tracking.enabled,
        "command": redactor.text(command),
    }
    run_id: str | None = known.get("mlflow_run_id")
    connection = connect_or_warn(tracking, redactor, kept_in=KEPT_IN) if tracking.enabled else None
    if connection is not None:
        try:
            run_id = _reopened_or_created(connection, directory, run_id, name=name)
        except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the batch
            logger.warning("MLflow failed (%s); the %s keeps everything", failure_reason(error, redactor), KEPT_IN)
    update_state(directory, **(settings | known | {"mlflow_run_id": run_id}))
    return run_id if tracking.enabled else None


def create_summary_run(connection: Connection, directory: Path, *, name: str) -> str:
    """A new summary run; its id."""
    tags = {tag_names.VERSION: __version__, **_identity(directory)}
    return create_or_join_run(connection, run_name=name, tags=tags)


def find_summary_run(connection: Connection, directory: Path) -> str | None:
    """The id of the summary run that an earlier process created, found by its tags."""
    return find_run(connection, _identity(directory))


def _identity(directory: Path) -> dict[str, str]:
    """Tags by which a batch's summary run is found again."""
    return {tag_names.BATCH: "true", tag_names.RUN_DIR: str(directory.resolve())}


def _reopened_or_created(connection: Connection, directory: Path, known: str | None, *, name: str) -> str:
    if known is not None and run_exists(connection, known):
        reopen_run(connection, known)
        return known
    return create_summary_run(connection, directory, name=name)


def finish_summary_run(
    connection: Connection, directory: Path, entries: Sequence[Entry], *, figures: Sequence[Path], state: RunState
) -> UploadFailure | None:
    """Upload table, figures, files and counts, and set the final status. A second upload changes nothing.

    Args:
        connection: The experiment.
        directory: The batch directory; its batch.json names the summary run.
        entries: The last ledger line of each job, in the order of the grid.
        figures: PNGs to pin.
        state: How the batch ended.

    Returns:
        Why something is missing in MLflow; None if nothing is.
    """
    recorded = read_state(directory)
    counts = {ended: sum(entry.state == ended for entry in entries) for ended in ENDED}
    summary = Summary(
        note=_note(recorded, entries, counts, figures, run_url=f"#/experiments/{connection.experiment_id}/runs/"),
        table=summary_table.artifact_table(entries),
        metrics=_metrics(entries, counts),
        measured_ms=_written_ms(directory / FILE_NAME),
        figures=figures,
        figure_step=len(ledger.read(directory)),  # grows with every job that ends, also when it is run again
        files=[path for name in ("summary.csv", FILE_NAME) if (path := directory / name).exists()],
        tags={f"lrrunner.num_{ended}": str(count) for ended, count in counts.items()},
    )
    return upload_summary(connection, recorded["mlflow_run_id"], summary, state=state)


def _note(
    recorded: dict[str, Any],
    entries: Sequence[Entry],
    counts: dict[RunState, int],
    figures: Sequence[Path],
    *,
    run_url: str,
) -> str:
    """The description of the run, in Markdown: the best job, the picture, the table."""
    outcomes = ", ".join(f"{count} {ended}" for ended, count in counts.items() if count) or "no job yet"
    images = "\n\n".join(
        f"![{path.stem}](get-artifact?path={path.name}&run_uuid={recorded['mlflow_run_id']})" for path in figures
    )
    table = summary_table.markdown_table(entries, run_url=run_url)
    headline = f"**{counted(len(entries), 'job')}: {outcomes}**{_best_sentence(entries)}"
    return f"{headline}\n\n{table}\n\n{images}\n\n```\n{recorded.get('command', '')}\n```\n"


def _best_sentence(entries: Sequence[Entry]) -> str:
    best = best_entry(entries)
    if best is None:
        reason = why_no_best(entries)
        return f"; no best job: {reason}" if reason else ""
    label = summary_table.entry_labels(entries)[entries.index(best)]
    return f"; lowest loss {best.best_loss:.4g} (*, the {COMPARED_LOSS}) with `{label}`, LR {best.lr:.1e}"


def _metrics(entries: Sequence[Entry], counts: dict[RunState, int]) -> dict[str, float]:
    """Numbers by which batches can be compared."""
    best = best_entry(entries)
    metrics: dict[str, float] = {"jobs": len(entries), **{f"jobs_{state}": count for state, count in counts.items()}}
    if best is not None and best.best_loss is not None and best.lr is not None:
        metrics |= {"best_loss": best.best_loss, "suggested_lr": best.lr}
    return metrics


def _written_ms(path: Path) -> int:
    """When a file was written last: a metric that is sent twice with this time is stored once."""
    return int(path.stat().st_mtime * 1000) if path.exists() else 0
