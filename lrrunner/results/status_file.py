"""status.json of a run directory: read, and corrected from outside where the run's own process could not. No torch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lrrunner.results.artifacts import STATUS_FILE
from lrrunner.results.run_state import ENDED_WITHOUT_REPORT, RunState, state_in
from lrrunner.system.atomic_files import read_json, write_json


def read_status(directory: Path) -> dict[str, Any]:
    """The status of a run; empty where there is none."""
    return read_json(directory / STATUS_FILE) or {}


def write_status(directory: Path, **changes: Any) -> None:
    """Change fields of the status; nothing without a run directory."""
    if directory.is_dir():
        write_json(directory / STATUS_FILE, read_status(directory) | changes, durable=True)


def close_abandoned(directory: Path) -> None:
    """Record that a run whose process is gone is over, unless it has ended."""
    if state_in(read_status(directory)) == RunState.RUNNING:
        with contextlib.suppress(OSError):
            write_status(directory, state=RunState.KILLED, cause=ENDED_WITHOUT_REPORT)
