"""What rank 0 shows on the terminal: what begins, progress, and the result."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from lrrunner.config.schema import Config, batch_summary
from lrrunner.core.range_extension import Extension
from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.records import Progress, RangeTestResult, Step
from lrrunner.reporting.progress_display import ProgressDisplay
from lrrunner.reporting.run_summary import closing_lines, interrupted_lines
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import shown_path, write_error, write_line

logger = logging.getLogger(__name__)


class TerminalReport:
    """Prints results on standard output, and shows progress.

    Args:
        job: The configuration.
        world_size: Number of ranks.
        redactor: Masks secrets.
        display: Where progress is shown.
    """

    def __init__(self, job: Config, *, world_size: int, redactor: Redactor, display: ProgressDisplay) -> None:
        self._job, self._world_size, self._redactor, self._display = job, world_size, redactor, display
        self._begin("LR sweep", num_steps=job.sweep.num_steps * job.sweep.repeats)

    def start(self, *, device: str, lr_remark: str) -> None:
        """Print what will be run."""
        summary = batch_summary(self._job, world_size=self._world_size)
        logger.info("%s, on %s", summary, device)
        self._write([f"{summary}; {lr_remark}" if lr_remark else summary])

    def begin_pass(self, number: int) -> None:
        """Begin the progress of a further pass."""
        if number:
            self._begin(f"LR sweep, pass {number + 1}", num_steps=self._job.sweep.num_steps * self._job.sweep.repeats)

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """Begin the progress of a confirmation run."""
        self._begin(f"trial {number + 1}", num_steps=planned.num_steps)

    def show_step(self, step: Step) -> None:
        """Show a step, unless it was skipped."""
        self._num_done += not step.skipped
        detail = f"lr {step.lr:.1e}  loss {step.smoothed_loss:.4g}"
        self._display.show(Progress(label=self._label, step=self._num_done, num_steps=self._num_steps, detail=detail))

    def show_extension(self, extension: Extension) -> None:
        """Print why another range follows, and which."""
        text = f"{extension.reason}: sweeping again from {extension.start_lr:.1e} to {extension.end_lr:.1e}"
        logger.info("%s", text)
        with self._display.cleared():
            write_error(f"lrrunner: {text}")

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
        """Remove the progress."""
        self._display.clear()

    def _write(self, lines: Iterable[str]) -> None:
        for line in lines:
            write_line(self._redactor.text(line))

    def _begin(self, label: str, *, num_steps: int) -> None:
        self._label, self._num_steps, self._num_done = label, num_steps, 0
