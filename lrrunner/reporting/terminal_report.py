"""What rank 0 shows on the terminal: what begins, progress, and the result."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from lrrunner.config.schema import Config, batch_summary
from lrrunner.core.confirmation import PlannedTrial
from lrrunner.core.range_extension import Extension
from lrrunner.records import RangeTestResult, Step
from lrrunner.reporting.progress_bar import progress_bar, show
from lrrunner.reporting.run_summary import closing_lines, interrupted_lines
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import shown_path, write_line

logger = logging.getLogger(__name__)


class TerminalReport:
    """Prints results on standard output, and shows progress on standard error if that is a terminal.

    Args:
        job: The configuration.
        world_size: Number of ranks.
        redactor: Masks secrets.
    """

    def __init__(self, job: Config, *, world_size: int, redactor: Redactor) -> None:
        self._job, self._world_size, self._redactor = job, world_size, redactor
        self._num_steps = job.sweep.num_steps * job.sweep.repeats
        self._bar = progress_bar("LR sweep", num_steps=self._num_steps)

    def start(self, *, device: str, lr_remark: str) -> None:
        """Print what will be run."""
        summary = batch_summary(self._job, world_size=self._world_size)
        logger.info("%s, on %s", summary, device)
        self._write([f"{summary}; {lr_remark}" if lr_remark else summary])

    def begin_pass(self, number: int) -> None:
        """Begin the progress bar of a further pass."""
        if number:
            self._replace_bar(f"LR sweep, pass {number + 1}", num_steps=self._num_steps)

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """Begin the progress bar of a confirmation run."""
        self._replace_bar(f"trial {number + 1}, lr {planned.lr:.1e}", num_steps=planned.num_steps)

    def show_step(self, step: Step) -> None:
        """Advance the progress bar."""
        show(self._bar, step)

    def show_extension(self, extension: Extension) -> None:
        """Print why another range follows, and which."""
        text = f"{extension.reason}: sweeping again from {extension.start_lr:.1e} to {extension.end_lr:.1e}"
        logger.info("%s", text)
        self._bar.write(f"lrrunner: {text}", file=sys.stderr)

    def finish(self, test: RangeTestResult, *, directory: Path, mlflow: str | None) -> None:
        """Print the closing lines.

        Args:
            test: The result.
            directory: The run directory.
            mlflow: Where the MLflow run is; None if there is none.
        """
        self._write(closing_lines(test, self._job, directory=shown_path(directory), mlflow=mlflow))

    def show_interruption(self, cause: str, *, resume: str, picture: Path | None, mlflow: str | None) -> None:
        """Print what interrupted the run, and what goes on with it. May be called from another thread.

        Args:
            cause: What ended it, and where.
            resume: The command that goes on with it.
            picture: Its figure so far; None if there is none.
            mlflow: As for :meth:`finish`.
        """
        shown = None if picture is None else shown_path(picture)
        self._write(interrupted_lines(cause, resume=resume, picture=shown, mlflow=mlflow))

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def _write(self, lines: Iterable[str]) -> None:
        for line in lines:
            write_line(self._redactor.text(line))

    def _replace_bar(self, label: str, *, num_steps: int) -> None:
        self._bar.close()
        self._bar = progress_bar(label, num_steps=num_steps)
