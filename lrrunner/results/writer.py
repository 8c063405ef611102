"""Writes a run directory: the complete record of a run, in plain files that are readable at any time. Rank 0 only."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from lrrunner.errors import ConfigError
from lrrunner.records import RangeTestResult, Step, Trial
from lrrunner.results.artifacts import (
    CONFIG_FILE,
    FIGURE_FILE,
    NOTE_FILE,
    OVERRIDES_FILE,
    RANKS_FOLDER,
    RECORDS_FILE,
    STATUS_FILE,
    SUGGESTION_FILE,
    TRIAL_RECORDS_FILE,
    TRIALS_FILE,
)
from lrrunner.results.codec import STEP_COLUMNS, TRIAL_COLUMNS, TRIAL_STEP_COLUMNS, cells
from lrrunner.results.csv_table import CsvTable
from lrrunner.results.status_file import read_status, write_status_file
from lrrunner.results.suggestion_file import suggestion_content
from lrrunner.system.atomic_files import write_json, write_text
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import shown_path

STATUS_INTERVAL_S = 2.0


def new_run_path() -> Path:
    """Default run directory: runs/<time>-<short id> in the current directory."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


class RunDirectory:
    """The files of one run.

    Args:
        path: The directory; created if missing. It must not hold a run yet, unless ``resumed``.
        redactor: Masks secrets in everything that is written.
        optional_columns: Columns of records.csv that only some sweeps have.
        resumed: Continue the run in the directory. Its rows stay and are compared with those recorded again; from the
            first that differs on, they are replaced.

    Raises:
        ConfigError: the directory cannot be written, or holds a run already.
    """

    def __init__(
        self, path: Path, redactor: Redactor, *, optional_columns: Sequence[str] = (), resumed: bool = False
    ) -> None:
        self._step_columns = (*STEP_COLUMNS, *optional_columns)
        self.path = path.expanduser().resolve()
        self._redactor = redactor
        self._resumed = resumed
        self._status: dict[str, Any] = read_status(self.path) if resumed else {}
        self._status_time = 0.0
        self._num_steps = 0
        self._tables: dict[str, CsvTable] = {}
        try:
            (self.path / RANKS_FOLDER).mkdir(parents=True, exist_ok=True)
            if not resumed and (self.path / STATUS_FILE).exists():
                raise ConfigError([f"run.dir must not hold a run yet, got {path}; choose another directory"])
            self._records = self._table(RECORDS_FILE, self._step_columns)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                [f"run.dir must be a writable directory, got {path} ({reason}); choose another directory"]
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for table in self._tables.values():
            table.close()

    def discard(self) -> None:
        """Remove the files of a run that does not start, and the directory if it is empty then."""
        self._records.close()
        if self._resumed:
            return
        for name in (CONFIG_FILE, OVERRIDES_FILE, RECORDS_FILE):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.path / RANKS_FOLDER).rmdir()
            self.path.rmdir()

    def write_inputs(self, config: dict[str, Any], overrides: Sequence[str]) -> None:
        """Write config.yaml (resolved) and overrides.yaml; a resumed run keeps its own.

        What a previous attempt left that says how it ended is removed, since it no longer holds.
        """
        if self._resumed:
            for name in (NOTE_FILE, SUGGESTION_FILE, FIGURE_FILE):
                with self._writing(name):
                    (self.path / name).unlink(missing_ok=True)
            return
        for name, content in ((CONFIG_FILE, config), (OVERRIDES_FILE, list(overrides))):
            with self._writing(name):
                write_text(self.path / name, _yaml(self._redactor.tree(content)), durable=True)

    @property
    def mlflow_run_id(self) -> str | None:
        """MLflow run of the previous attempt of a resumed run, if known."""
        return self._status.get("mlflow_run_id")

    def record(self, step: Step) -> Step:
        """Append one row to records.csv, flushed; update the last step in status.json every two seconds.

        Returns:
            The step, with the times of the previous attempt if that recorded it already.
        """
        with self._writing(RECORDS_FILE):
            previous = self._records.write(cells(step, self._step_columns))
        self._num_steps += 1
        if time.monotonic() - self._status_time > STATUS_INTERVAL_S:
            self.update_status(last_step=step.step)
        return _with_times_of(previous, step)

    def record_trial_step(self, trial: int, step: Step) -> Step:
        """Append one row to trial_records.csv, as :meth:`record` does; the file is created with its first row."""
        row = [str(trial), *cells(step, TRIAL_STEP_COLUMNS[1:])]
        with self._writing(TRIAL_RECORDS_FILE):
            return _with_times_of(self._table(TRIAL_RECORDS_FILE, TRIAL_STEP_COLUMNS).write(row), step)

    def record_trial(self, trial: Trial, *, schedule: str) -> None:
        """Append one row to trials.csv, flushed; the file is created with its first row."""
        number, *rest = cells(trial, [name for name in TRIAL_COLUMNS if name != "schedule"])
        with self._writing(TRIALS_FILE):
            self._table(TRIALS_FILE, TRIAL_COLUMNS).write([number, schedule, *rest])

    def drop_unrepeated_rows(self) -> None:
        """Remove rows of a previous attempt that the finished run has not recorded again."""
        for name, table in self._tables.items():
            with self._writing(name):
                table.drop_unrepeated()

    def write_suggestion(self, test: RangeTestResult) -> None:
        """Write suggestion.json."""
        with self._writing(SUGGESTION_FILE):
            write_json(self.path / SUGGESTION_FILE, suggestion_content(test), durable=True)

    def write_note(self, note: str) -> None:
        """Write note.md, the description that MLflow shows."""
        with self._writing(NOTE_FILE):
            write_text(self.path / NOTE_FILE, self._redactor.text(note), durable=True)

    def update_status(self, **changes: Any) -> None:
        """Change fields of status.json."""
        self._status |= self._redactor.tree(changes)
        self._status_time = time.monotonic()
        with self._writing(STATUS_FILE):
            write_status_file(self.path / STATUS_FILE, self._status)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Raise the error of a file with what a user has to know, and of the same type."""
        try:
            yield
        except OSError as error:
            path = shown_path(self.path)
            safe = f"the {self._num_steps} steps before are safe" if self._num_steps else "nothing was recorded yet"
            raise type(error)(
                f"{path}/{name} cannot be written ({error.strerror or error}); {safe}; see to the disk and go on with "
                f"run.resume={path}"
            ) from error

    def _table(self, name: str, columns: Sequence[str]) -> CsvTable:
        if name not in self._tables:
            self._tables[name] = CsvTable(self.path / name, columns, resumed=self._resumed)
        return self._tables[name]


def _with_times_of(row: dict[str, str] | None, step: Step) -> Step:
    if row is None:
        return step
    return dataclasses.replace(step, elapsed_s=float(row["elapsed_s"]), timestamp_ms=int(row["timestamp_ms"]))


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
