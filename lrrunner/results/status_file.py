"""status.json of a run directory: read, and corrected from outside where the run's own process could not. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrrunner.results.artifacts import STATUS_FILE
from lrrunner.results.run_state import COULD_NOT_REPORT, ENDED, ENDED_WITHOUT_REPORT, JobResult, RunState, state_in
from lrrunner.system import exit_codes
from lrrunner.system.atomic_files import json_bytes, overwritten, read_json, write_json


def read_status(directory: Path) -> dict[str, Any]:
    """The status of a run; empty where there is none."""
    return read_json(directory / STATUS_FILE) or {}


def write_status(directory: Path, **changes: Any) -> None:
    """Change fields of the status; nothing without a run directory."""
    if directory.is_dir():
        write_status_file(directory / STATUS_FILE, read_status(directory) | changes)


def write_status_file(path: Path, status: Mapping[str, Any]) -> None:
    """Replace the status; where the disk is full, overwrite it, which needs no further room.

    Raises:
        OSError: neither is possible.
    """
    try:
        write_json(path, status, durable=True)
    except OSError:
        if not overwritten(path, json_bytes(status)):
            raise


def close_abandoned(directory: Path) -> RunState:
    """Record that a run whose process is gone is over, unless it has ended.

    Returns:
        How it ended; killed where that is not known.
    """
    state = state_in(read_status(directory))
    if state == RunState.RUNNING:
        with contextlib.suppress(OSError):
            write_status(directory, state=RunState.KILLED, cause=ENDED_WITHOUT_REPORT)
    return state if state in ENDED else RunState.KILLED


def as_recorded(directory: Path, result: JobResult) -> JobResult:
    """How a job ended, when its run directory has the last word.

    A run that it records as finished is finished; and what it says counts where the ranks could not report.

    Args:
        directory: The run directory.
        result: What became of the ranks, which may have died afterwards, in the upload.
    """
    status = read_status(directory)
    state = state_in(status)
    if result.state == RunState.FINISHED or result.exit_code == exit_codes.CONFIG_ERROR:
        return result
    is_unreported = COULD_NOT_REPORT in (result.cause or "")
    if state == RunState.FINISHED or (is_unreported and state in ENDED):
        assert state is not None
        assert state.exit_code is not None
        return JobResult(state=state, exit_code=state.exit_code, cause=status.get("cause"), is_reported=False)
    return result
