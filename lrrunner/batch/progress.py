"""Progress of a batch: one bar for the batch above one for each running job. No torch."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from lrrunner.records import Progress
from lrrunner.reporting.progress_display import BarDisplay, NoDisplay, ProgressDisplay, progress_display
from lrrunner.system.output.terminal import terminal_width, write_line

MAX_LABEL = 24


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """A running job.

    Attributes:
        label: What tells it from the other jobs.
        progress: Where it is; None before its first step and after its last.
    """

    label: str
    progress: Progress | None


class BatchProgress:
    """Shows a batch on standard error, and prints lines that do not run into its bars.

    Off a terminal, a line now and then is about the batch alone: each job that ends prints its own.

    Args:
        num_slots: Jobs that may run at once.
        quiet: Show nothing.
        stream: Where it is shown; None is standard error.
    """

    def __init__(self, *, num_slots: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._batch = progress_display(quiet=quiet, stream=stream)
        self._slots: list[ProgressDisplay] = [NoDisplay() for _ in range(num_slots)]
        self._begun: list[str | None] = [None] * num_slots
        if isinstance(self._batch, BarDisplay):
            self._slots = [progress_display(position=i + 1, stream=stream) for i in range(num_slots)]

    def announce(self, text: str) -> None:
        """Show what is waited for before there is progress."""
        self._batch.announce(text)

    def show(self, *, num_ended: int, num_failed: int, num_jobs: int, running: Sequence[JobProgress | None]) -> None:
        """Show the newest state.

        Args:
            num_ended: Jobs that have ended, failed ones included.
            num_failed: Jobs that have failed.
            num_jobs: Jobs of the batch.
            running: For each slot its job, or None.
        """
        num_running = sum(job is not None for job in running)
        detail = f"{num_failed} failed, {num_running} running"
        self._batch.show(Progress(label="batch", step=num_ended, num_steps=num_jobs, detail=detail))
        for slot, job in enumerate(running):
            self._show_job(slot, job)

    def _show_job(self, slot: int, job: JobProgress | None) -> None:
        display = self._slots[slot]
        if job is None:
            display.clear()
        elif job.progress is None:
            state = "finishing" if self._begun[slot] == job.label else "starting"
            display.announce(f"  {_shortened(job.label)}: {state} ...")
        else:
            self._begun[slot] = job.label
            display.show(replace(job.progress, label=f"  {_shortened(job.label)}: {job.progress.label}"))

    def print(self, text: str) -> None:
        """Print a line on standard output."""
        with self._batch.cleared():
            write_line(text)

    def print_outcome(self, job: str, outcome: str) -> None:
        """Print how a job ended; on a terminal that is too narrow, below the job."""
        line = f"{job}   {outcome}"
        if sys.stdout.isatty() and len(line) > terminal_width():
            indent = " " * 6
            below = textwrap.wrap(outcome, terminal_width(), initial_indent=indent, subsequent_indent=indent)
            line = "\n".join([job, *below])
        self.print(line)

    def close(self) -> None:
        """Remove the bars."""
        for display in (*self._slots, self._batch):
            display.clear()


def _shortened(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
