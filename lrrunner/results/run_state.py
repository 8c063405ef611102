"""The state of a run, with its exit code, its status in MLflow and its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from lrrunner.system import exit_codes

ENDED_WITHOUT_REPORT = "its process ended without reporting"
"""Cause of a run whose process has gone while its status.json still has the state running."""


COULD_NOT_REPORT = "could not report how the job ended, since no file can be written"
"""Part of the cause of a rank that ended with :data:`lrrunner.system.exit_codes.UNREPORTED`."""


class RunState(StrEnum):
    """State of a run or a batch; its value is the one in status.json, batch.json and the ledger."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"

    @property
    def exit_code(self) -> int | None:
        """Exit code of a process that ran only this; None while it runs."""
        return _FACTS[self].exit_code

    @property
    def mlflow_status(self) -> str:
        """Status of its run in MLflow."""
        return _FACTS[self].mlflow_status

    @property
    def text(self) -> str:
        """As shown in a description."""
        return _FACTS[self].text


class _Facts(NamedTuple):
    exit_code: int | None
    mlflow_status: str
    text: str


_FACTS = {
    RunState.RUNNING: _Facts(None, "RUNNING", "Running"),
    RunState.FINISHED: _Facts(exit_codes.OK, "FINISHED", "Finished"),
    RunState.FAILED: _Facts(exit_codes.FAILED, "FAILED", "Failed"),
    RunState.KILLED: _Facts(exit_codes.TERMINATED, "KILLED", "Killed"),
}

ENDED = (RunState.FINISHED, RunState.FAILED, RunState.KILLED)


def state_in(status: Mapping[str, Any]) -> RunState | None:
    """The state in status.json or batch.json; None if there is none, or an unknown one."""
    try:
        return RunState(status.get("state", ""))
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended, as far as its ranks are concerned.

    Attributes:
        state: Finished, failed or killed.
        exit_code: Exit code of a process that ran only this job: that of the state, but 2 after a configuration error
            and 128 + the signal's number after another signal than SIGTERM.
        cause: The rank that failed first and why; None after a finished job.
        is_reported: Whether rank 0 has itself recorded the end.
    """

    state: RunState
    exit_code: int
    cause: str | None = None
    is_reported: bool = True
