"""A CSV file that is complete after each row, also in the second life of a run. Standard library only."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

TIMES = ("elapsed_s", "timestamp_ms")
"""Columns in which two lives of a run may differ."""


class CsvTable:
    """Rows of fixed columns.

    A resumed table has rows already, and is given them once more: a row that is there, times aside, stays as it is. The
    first one that differs ends the belief in what follows it.

    Args:
        path: The file.
        columns: Names, which are its first row.
        resumed: Whether it may have rows; a last one that was cut off is none.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, resumed: bool = False) -> None:
        self._columns = columns
        lines = path.read_bytes().splitlines(keepends=True) if resumed and path.exists() else []
        self._known = deque(line for line in lines if line.endswith(b"\n"))
        self._file = path.open("r+b" if self._known else "wb")
        self._file.truncate(sum(map(len, self._known)))
        self.write(columns)

    def write(self, row: Sequence[object]) -> dict[str, str] | None:
        """Write one row, flushed; one that was there already is returned as it stands, by column."""
        line = _line(row)
        if self._known:
            known = self._known.popleft()
            cells = dict(zip(self._columns, _cells(known), strict=False))
            if self._content(known) == self._content(line):
                self._file.seek(len(known), os.SEEK_CUR)
                return cells
            self.forget()
        self._file.write(line)
        self._file.flush()
        return None

    def forget(self) -> None:
        """Remove the rows that were not written again."""
        if self._known:
            self._known.clear()
            self._file.truncate()

    def close(self) -> None:
        """No further rows."""
        self._file.close()

    def _content(self, line: bytes) -> list[str]:
        cells = _cells(line)
        return [cell for i, cell in enumerate(cells) if i >= len(self._columns) or self._columns[i] not in TIMES]


def _line(row: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(row)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode(errors="replace")]), [])
