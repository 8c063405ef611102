"""The table of a batch for a terminal: it fits the width, and keeps the numbers whole. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from lrrunner.batch.ledger import Entry
from lrrunner.batch.summary.summary_table import TABLE_COLUMNS, rows, short_entry_labels
from lrrunner.results.run_state import RunState
from lrrunner.system.output.terminal import shortened_in_middle

GAP = "  "
MIN_LABEL = 12
JOB, VERDICT, SECONDS = (TABLE_COLUMNS.index(name) for name in ("job", "verdict", "seconds"))


def terminal_table(entries: Sequence[Entry], *, width: int | None = None) -> str:
    """The table in columns.

    Where it is too wide, labels become the values alone, with their keys in a line below the table; then labels are
    shortened in the middle, and causes at their end.

    Args:
        entries: The jobs.
        width: Of the terminal; None: as wide as it needs to be.
    """
    table = rows(entries)
    text = _in_columns(table)
    if width is None or _is_within(text, width):
        return text
    keys, table = _with_value_labels(entries, table)
    text = _in_columns(table)
    if not _is_within(text, width):
        text = _in_narrow_columns(entries, table, width=width)
    return f"{text}\n{keys}" if keys else text


def _in_columns(table: Sequence[tuple[str, ...]]) -> str:
    lines = [TABLE_COLUMNS, *table]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TABLE_COLUMNS))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _is_within(text: str, width: int) -> bool:
    return all(len(line) <= width for line in text.split("\n"))


def _with_value_labels(entries: Sequence[Entry], table: list[tuple[str, ...]]) -> tuple[str, list[tuple[str, ...]]]:
    """The table with the values of the swept keys as labels, and a line with the keys; unchanged if keys differ."""
    parts = [[part.partition("=") for part in label.split(" ")] for label in short_entry_labels(entries)]
    keys = [key for key, _, _ in parts[0]]
    if any([key for key, _, _ in part] != keys or not all(sign for _, sign, _ in part) for part in parts):
        return "", table
    labels = [" ".join(value for _, _, value in part) for part in parts]
    renamed = [(label, *cells) for label, (_, *cells) in zip(labels, table, strict=True)]
    return f"job: {' '.join(keys)}", renamed


def _in_narrow_columns(entries: Sequence[Entry], table: Sequence[tuple[str, ...]], *, width: int) -> str:
    """Columns of which the label is shortened; a job that did not finish has its cause instead of numbers."""
    finished = [row for entry, row in zip(entries, table, strict=True) if entry.state == RunState.FINISHED]
    lines = [TABLE_COLUMNS, *finished]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TABLE_COLUMNS))]
    others = sum(widths) - widths[JOB] + len(GAP) * (len(TABLE_COLUMNS) - 1)
    longest = max(len(row[JOB]) for row in (TABLE_COLUMNS, *table))
    widths[JOB] = max(MIN_LABEL, min(longest, width - others))
    if len(finished) < len(entries):  # causes may take all of the line
        widths[VERDICT] += max(0, width - others - widths[JOB])
    text = []
    for entry, row in zip([None, *entries], [TABLE_COLUMNS, *table], strict=True):
        label = shortened_in_middle(row[JOB], widths[JOB])
        if entry is None or entry.state == RunState.FINISHED:
            text.append(_line((label, *row[1:]), widths))
        else:
            room = sum(widths[1:SECONDS]) + len(GAP) * (SECONDS - 2)
            cause = f"{entry.state}: {entry.cause or ''}"
            cause = cause if len(cause) <= room else f"{cause[: room - 1]}…"
            text.append(_line((label, cause, row[SECONDS]), (widths[JOB], room, widths[SECONDS])))
    return "\n".join(text)
