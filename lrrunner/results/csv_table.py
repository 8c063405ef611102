"""A CSV file that is complete after each row, and can be continued by a resumed run. Standard library only."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

TIMES = ("elapsed_s", "timestamp_ms")
"""Columns in which two attempts of a run may differ."""

SPECIAL = frozenset('"\r\n')
"""Characters that a row of numbers and names does not contain; other rows are quoted."""


class CsvTable:
    """Rows of fixed columns.

    A resumed run writes the rows of its previous attempt once more. A row that is equal, times aside, stays as it is in
    the file; from the first one that differs on, the old rows are removed.

    Args:
        path: The file.
        columns: Their names, the first row.
        resumed: Whether the file may have rows; an incomplete last one is removed.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, resumed: bool = False) -> None:
        self._columns = columns
        lines = path.read_bytes().splitlines(keepends=True) if resumed and path.exists() else []
        self._old = deque(line for line in lines if line.endswith(b"\n"))
        self._file = path.open("r+b" if self._old else "wb", buffering=0)  # nothing is left to write at the end
        self._file.truncate(sum(map(len, self._old)))
        self.write(columns)

    def write(self, row: Sequence[object]) -> dict[str, str] | None:
        """Write one row, flushed.

        Returns:
            The row of the previous attempt, by column, if it is equal; else None.
        """
        line = _line(row)
        if self._old:
            old = self._old.popleft()
            cells = dict(zip(self._columns, _cells(old), strict=False))
            if self._content(old) == self._content(line):
                self._file.seek(len(old), os.SEEK_CUR)
                return cells
            self.drop_unrepeated()
        self._append(line)
        return None

    def _append(self, line: bytes) -> None:
        """Write a line, all of it or nothing."""
        written = 0
        try:
            written = self._file.write(line) or 0
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                start = self._file.tell() - written
                self._file.truncate(start)
                self._file.seek(start)
            raise

    def drop_unrepeated(self) -> None:
        """Remove the rows of the previous attempt that were not written again."""
        if self._old:
            self._old.clear()
            self._file.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _content(self, line: bytes) -> list[str]:
        cells = _cells(line)
        return [cell for i, cell in enumerate(cells) if i >= len(self._columns) or self._columns[i] not in TIMES]


def _line(row: Sequence[object]) -> bytes:
    plain = ",".join(map(str, row))
    if plain.count(",") == len(row) - 1 and not SPECIAL.intersection(plain):
        return f"{plain}\r\n".encode()
    text = io.StringIO()
    csv.writer(text).writerow(row)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode(errors="replace")]), [])
