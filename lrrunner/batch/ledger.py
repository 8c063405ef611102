"""The ledger of a batch: one line a job, appended as a whole, so that a resumed batch knows which jobs have ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrrunner.results.run_state import RunState
from lrrunner.system.plain_values import from_plain, to_plain

FILE_NAME = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How one job ended.

    Attributes:
        job: Its number in the grid, from 0.
        overrides: As typed, secrets masked, without those of the whole batch.
        key: What the job computes, see :func:`lrrunner.batch.points.job_key`.
        state: Finished, failed or killed.
        run_id: Its run in MLflow.
        run_dir: Its run directory, relative to the batch directory.
        lr: Suggested LR; None without a suggestion.
        interval: Its interval, (low, high).
        verdict: How far the curve supports the suggestion.
        best_loss: Lowest smoothed loss.
        seconds: From the time its ranks were given the job to its end.
        cause: The rank that failed first and why.
    """

    job: int
    overrides: tuple[str, ...]
    state: RunState
    run_id: str | None = None
    run_dir: str | None = None
    lr: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    cause: str | None = None
    key: str = ""


def append(directory: Path, entry: Entry) -> None:
    """Write one line with a single write and an fsync; an incomplete line that a crash left before it stays apart."""
    path = directory / FILE_NAME
    line = (json.dumps(to_plain(entry)) + "\n").encode()
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        line = b"\n" + line
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path) -> list[Entry]:
    """Every complete line, in order."""
    try:
        text = (directory / FILE_NAME).read_text(encoding="utf-8")
    except OSError:
        return []
    return [entry for line in text.splitlines() if (entry := _entry(line)) is not None]


def latest(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The last line of each job, by its key."""
    return {entry.key: entry for entry in entries}


def _entry(line: str) -> Entry | None:
    try:
        return from_plain(Entry, json.loads(line))
    except (ValueError, TypeError):
        return None
