"""The jobs of a batch as a table, for the terminal, for summary.csv and for MLflow, and what was swept. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrrunner.batch.ledger import Entry
from lrrunner.batch.points import labels, short_labels
from lrrunner.batch.summary.best_job import best_entry, parsed_overrides
from lrrunner.results.artifacts import RANKS_FOLDER
from lrrunner.results.run_state import RunState
from lrrunner.system.output.terminal import counted

CSV_COLUMNS = (
    *("job", "overrides", "state", "lr", "lr_low", "lr_high", "verdict", "best_loss", "seconds"),
    *("run_dir", "run_id", "cause"),
)
TABLE_COLUMNS = ("job", "lr", "interval", "verdict", "best loss", "seconds")
ARTIFACT_COLUMNS = ("job", "lr", "lr_low", "lr_high", "verdict", "best_loss", "seconds", "state", "cause", "run_id")

NO_HYPERPARAMETERS = ("sweep.", "run.", "launch.", "tracking.")
MAX_CAUSE = 40
MAX_MARKDOWN = 7000


@dataclass(frozen=True, kw_only=True)
class SweptPoint:
    """One suggested LR against one swept number.

    Attributes:
        value: The number.
        lr: Suggested LR.
        interval: Its interval.
        group: The overrides of what else was swept.
    """

    value: float
    lr: float
    interval: tuple[float, float]
    group: str


@dataclass(frozen=True, kw_only=True)
class SweptCategories:
    """Suggested LRs against the values of a key that are names.

    Attributes:
        names: The values, in the order of the grid.
        points: Each at the index of its value.
    """

    names: list[str]
    points: list[SweptPoint]


def entry_labels(entries: Sequence[Entry]) -> list[str]:
    """For each job the overrides that tell it from the others."""
    return labels([entry.overrides for entry in entries])


def short_entry_labels(entries: Sequence[Entry]) -> list[str]:
    """The same, for narrow places."""
    return short_labels([entry.overrides for entry in entries])


def batch_name(points: Sequence[Sequence[str]]) -> str:
    """What a batch sweeps, in one line.

    >>> batch_name([("optimizer=sgd", "model.width=64"), ("optimizer=adamw", "model.width=64")])
    '2 jobs: optimizer'
    """
    keys = dict.fromkeys(text.partition("=")[0] for label in short_labels(points) for text in label.split(" "))
    swept = f": {', '.join(keys)}" if len(points) > 1 else ""
    return f"{counted(len(points), 'job')}{swept}"


def csv_text(entries: Sequence[Entry]) -> str:
    """summary.csv: one row a job, in the order of the grid."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry, label in zip(entries, entry_labels(entries), strict=True):
        low, high = entry.interval or (None, None)
        writer.writerow(
            [
                *(entry.job, label, entry.state, entry.lr, low, high, entry.verdict, entry.best_loss, entry.seconds),
                *(entry.run_dir, entry.run_id, entry.cause),
            ]
        )
    return stream.getvalue()


def artifact_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """The table for MLflow, which sorts it by column: numbers stay numbers."""
    data = []
    for entry, label in zip(entries, entry_labels(entries), strict=True):
        low, high = entry.interval or (None, None)
        data.append(
            [
                *(label, entry.lr, low, high, entry.verdict, entry.best_loss, entry.seconds),
                *(str(entry.state), entry.cause, entry.run_id),
            ]
        )
    return {"columns": list(ARTIFACT_COLUMNS), "data": data}


def rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The cells of the table, as text; a job that did not finish shows state and cause as its verdict.

    The job whose loss came lowest is marked with a star, where losses compare.
    """
    table: list[tuple[str, ...]] = []
    best = best_entry(entries)
    for entry, label in zip(entries, short_entry_labels(entries), strict=True):
        interval = "" if entry.interval is None else f"[{entry.interval[0]:.1e}, {entry.interval[1]:.1e}]"
        verdict = entry.verdict or f"{entry.state}: {_cut(entry.cause or '')}"
        lr = "" if entry.state != RunState.FINISHED else "none" if entry.lr is None else f"{entry.lr:.1e}"
        loss = "" if entry.best_loss is None else f"{entry.best_loss:.4g}{' *' if entry is best else ''}"
        table.append((label, lr, interval, verdict, loss, f"{entry.seconds:.1f}"))
    return table


def markdown_table(entries: Sequence[Entry], *, run_url: str) -> str:
    """The table in Markdown, cut at a row before it exceeds the length of MLflow's descriptions.

    Args:
        entries: The jobs.
        run_url: Start of the URL of a run's page, which its id completes.
    """
    lines = [f"| {' | '.join(TABLE_COLUMNS)} |", "|---" * len(TABLE_COLUMNS) + "|"]
    length = 0
    for number, (entry, row) in enumerate(zip(entries, rows(entries), strict=True)):
        label, *cells = [cell.replace("|", "/") for cell in row]
        linked = f"[{label}]({run_url}{entry.run_id})" if entry.run_id else label
        line = f"| {' | '.join([linked, *cells])} |"
        length += len(line)
        if length > MAX_MARKDOWN:
            return "\n".join([*lines, "", f"and {len(entries) - number} more: see summary.csv"])
        lines.append(line)
    return "\n".join(lines)


def describe_outcome(entry: Entry) -> str:
    """How a job ended, in one line; of a failed one with the logs of its ranks, relative to the batch directory."""
    if entry.state != RunState.FINISHED:
        has_logs = entry.state == RunState.FAILED and entry.run_dir is not None
        logs = f"; see {entry.run_dir}/{RANKS_FOLDER}" if has_logs else ""
        return f"{entry.state}: {entry.cause}{logs}"
    if entry.lr is None or entry.interval is None:
        return f"lr none   {entry.verdict}   {entry.seconds:.1f} s"
    low, high = entry.interval
    return f"lr {entry.lr:.1e}   [{low:.1e}, {high:.1e}]   {entry.verdict}   {entry.seconds:.1f} s"


def swept_numbers(entries: Sequence[Entry]) -> dict[str, list[SweptPoint]]:
    """The suggested LRs against each swept key that has two positive numbers or more for values.

    Keys of sections that are no hyperparameters (sweep, run, launch, tracking) are left out.
    """
    found: dict[str, list[SweptPoint]] = {}
    for key, texts in _hyperparameters(entries).items():
        points = _points(entries, key, {text: number for text in texts if (number := _positive_number(text))})
        if len({point.value for point in points}) > 1:
            found[key] = points
    return found


def swept_categories(entries: Sequence[Entry]) -> dict[str, SweptCategories]:
    """The suggested LRs against each other swept key, whose values are names."""
    found: dict[str, SweptCategories] = {}
    for key, texts in _hyperparameters(entries).items():
        if not any(_positive_number(text) for text in texts):
            points = _points(entries, key, {text: float(number) for number, text in enumerate(texts)})
            if len({point.value for point in points}) > 1:
                found[key] = SweptCategories(names=texts, points=points)
    return found


def _hyperparameters(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Swept keys, without those of sections that are no hyperparameters -> their values, as text."""
    values: dict[str, dict[str, None]] = {}
    for entry in entries:
        for key, text in parsed_overrides(entry).items():
            values.setdefault(key, {})[text] = None
    return {
        key: list(texts) for key, texts in values.items() if len(texts) > 1 and not key.startswith(NO_HYPERPARAMETERS)
    }


def _points(entries: Sequence[Entry], key: str, values: Mapping[str, float]) -> list[SweptPoint]:
    """A point for each job that has a suggestion and one of the values."""
    others = [other for other in _hyperparameters(entries) if other != key]
    points = []
    for entry in entries:
        texts = parsed_overrides(entry)
        value = values.get(texts.get(key, ""))
        if value is not None and entry.lr is not None and entry.interval is not None:
            group = " ".join(f"{other}={texts[other]}" for other in others if other in texts)
            points.append(SweptPoint(value=value, lr=entry.lr, interval=entry.interval, group=group))
    return points


def _positive_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CAUSE else f"{text[: MAX_CAUSE - 2]} …"
