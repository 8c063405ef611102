"""``lrrunner -m``: run every point of a grid on warm ranks, and sum them up. No torch."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrrunner.batch.collect import batch_state, latest_entries
from lrrunner.batch.directory import batch_directory, exclusive_batch
from lrrunner.batch.ledger import Entry
from lrrunner.batch.points import BatchJob, batch_jobs, checked_points
from lrrunner.batch.progress import BatchProgress
from lrrunner.batch.scheduler import BatchScheduler, Slot, new_slots
from lrrunner.batch.state import begin, update_state
from lrrunner.batch.summary.best_job import COMPARED_LOSS, best_entry, why_no_best
from lrrunner.batch.summary.summary_files import write_summary
from lrrunner.batch.summary.summary_run import KEPT_IN, finish_summary_run, start_summary_run
from lrrunner.batch.summary.summary_table import batch_name, short_entry_labels
from lrrunner.batch.summary.terminal_table import terminal_table
from lrrunner.config.command_line import CommandLine, resume_command, sync_command
from lrrunner.config.composition import expand_grid, override_key
from lrrunner.config.schema import LaunchConfig, TrackingConfig
from lrrunner.errors import ConfigError
from lrrunner.launch.machine_checks import crowding_warning
from lrrunner.results.run_state import RunState
from lrrunner.system import exit_codes
from lrrunner.system.bounded_call import done_within
from lrrunner.system.devices import usable_cores, visible_gpus
from lrrunner.system.output.job_log import JobLog
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import (
    counted,
    labelled_line,
    shown_path,
    terminal_width,
    wrapped_line,
    write_error,
    write_line,
)
from lrrunner.system.plain_values import to_plain
from lrrunner.system.processes.interrupt_counter import InterruptCounter
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.store.connection import connect_or_warn
from lrrunner.tracking.store.failures import failure_reason
from lrrunner.tracking.store.runs import end_run, run_location
from lrrunner.tracking.supervised_run import END_WITHIN_S

RESERVED_KEYS = {
    "hydra.sweep.dir": "give run.dir=...",
    "hydra.sweep.subdir": "leave it out",
    "hydra.launcher": "leave it out, or choose submitit_slurm",
    "hydra.sweeper": "leave it out",
}
"""Keys of Hydra's own multirun, which a batch replaces, and what to do instead of setting them."""

logger = logging.getLogger(__name__)


def run_batch(command_line: CommandLine) -> int:
    """Run every point of a grid.

    Args:
        command_line: Its overrides hold lists, ranges and globs.

    Returns:
        Exit code: 0 all jobs ran to their end, 1 some failed, 128 + signal.

    Raises:
        ConfigError: the grid, or a point of it, is wrong; nothing has been started.
    """
    _refuse_reserved(command_line.overrides)
    points = expand_grid(command_line)
    configs = checked_points(points, command_line, gpus=visible_gpus(os.environ))
    run, directory = configs[0].run, batch_directory(configs[0].run)
    redactor = Redactor.for_run(list(map(to_plain, configs)), os.environ, command_line.overrides)
    slots = _slots([config.launch for config in configs])
    progress = BatchProgress(num_slots=len(slots), quiet=command_line.quiet)
    with (
        exclusive_batch(directory, run),
        JobLog(redactor),
        InterruptCounter() as interrupts,
        BatchScheduler(directory, slots, progress=progress) as scheduler,
    ):
        salt = begin(directory, num_jobs=len(points))
        jobs = batch_jobs(points, configs, command_line, directory=directory, salt=salt)
        write_line(f"{counted(len(jobs), 'job')} in {shown_path(directory)}")
        _warn_of_crowding([config.launch for config in configs])
        summary = _Summary(directory, tracking=configs[0].tracking, redactor=redactor)
        progress.announce(f"starting {counted(configs[0].launch.num_processes or 1, 'rank')} ...")
        scheduler.warm_up(jobs)
        parent = summary.start(
            batch_name([job.overrides for job in jobs]), shlex.join(["lrrunner", "-m", *command_line.arguments])
        )
        if parent is not None:
            scheduler.tags = {tag_names.PARENT: parent}
        failure = _run_jobs(scheduler, jobs, interrupts)
        progress.close()
        scheduler.dismiss()
        state = summary.finish(jobs, interrupted=bool(interrupts.count), at_once=interrupts.count > 1)
        if failure is not None:
            _show_failure(failure, redactor)
    if interrupts.count:
        return interrupts.exit_code
    return exit_codes.OK if failure is None and state == RunState.FINISHED else exit_codes.FAILED


@dataclass
class _Summary:
    """What a batch leaves in its directory, on the terminal and in MLflow.

    MLflow and figures may fail; the batch and its table must not.
    """

    directory: Path
    tracking: TrackingConfig
    redactor: Redactor
    run_id: str | None = None
    command: str = "lrrunner -m"

    def start(self, name: str, command: str) -> str | None:
        """Create the summary run; its id, if there is one."""
        self.command = command
        self.run_id = start_summary_run(
            self.directory, self.tracking, name=name, command=command, redactor=self.redactor
        )
        return self.run_id

    def finish(self, jobs: Sequence[BatchJob], *, interrupted: bool, at_once: bool = False) -> RunState:
        """Record how the batch ended.

        Args:
            jobs: Its jobs.
            interrupted: Whether a signal has ended it.
            at_once: Do not wait for a slow store.
        """
        entries = latest_entries(self.directory, jobs)
        state = batch_state(entries, num_jobs=len(jobs), interrupted=interrupted)
        update_state(self.directory, state=state)
        figures = self._write_files(entries)
        if entries:
            write_line(f"\n{terminal_table(entries, width=terminal_width())}")
        publish = self._publish_at_once if at_once else self._publish
        resume = None if state == RunState.FINISHED else resume_command(self.command, shown_path(self.directory))
        for line in self._closing_lines(entries, figures, mlflow=publish(entries, figures, state), resume=resume):
            write_line(self.redactor.text(line))
        return state

    def _closing_lines(
        self, entries: Sequence[Entry], figures: Sequence[Path], *, mlflow: str | None, resume: str | None
    ) -> list[str]:
        lines = _best_lines(entries)
        places = {
            "batch": shown_path(self.directory),
            "picture": shown_path(figures[0]) if figures else None,
            "mlflow": mlflow or self._not_reached,
            "go on with": resume,
        }
        return lines + [labelled_line(label, text) for label, text in places.items() if text is not None]

    @property
    def _not_reached(self) -> str | None:
        """The command that uploads the batch; None if tracking is off."""
        if not self.tracking.enabled:
            return None
        return f"not reached; later: {sync_command(shown_path(self.directory))}"

    def _publish_at_once(self, entries: Sequence[Entry], figures: Sequence[Path], state: RunState) -> str | None:
        """As :meth:`_publish`, for a user who does not wait."""
        found: list[str | None] = []
        if not done_within(END_WITHIN_S, lambda: found.append(self._publish(entries, figures, state))):
            logger.warning("MLflow was not waited for; lrrunner-sync %s uploads the rest", shown_path(self.directory))
        return found[0] if found else None

    def _write_files(self, entries: Sequence[Entry]) -> list[Path]:
        try:
            return write_summary(self.directory, entries) if entries else []
        except Exception as error:  # noqa: BLE001 - a figure that cannot be drawn must not cost the table
            logger.warning("the summary failed (%s: %s)", type(error).__name__, self.redactor.text(str(error)))
            return []

    def _publish(self, entries: Sequence[Entry], figures: Sequence[Path], state: RunState) -> str | None:
        """Upload the summary; where it is, or the command that opens it."""
        if self.run_id is None:
            return None
        connection = connect_or_warn(self.tracking, self.redactor, kept_in=KEPT_IN)
        if connection is None:
            return None
        try:
            failure = finish_summary_run(connection, self.directory, entries, figures=figures, state=state)
            if failure is not None:
                logger.warning("MLflow misses a part of the summary (%s); upload it with lrrunner-sync", failure.reason)
        except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the batch
            logger.warning("the summary run failed (%s)", failure_reason(error, self.redactor))
            end_run(connection, self.run_id, state)
        return run_location(connection, self.run_id)


def _best_lines(entries: Sequence[Entry]) -> list[str]:
    """The job with the lowest loss, the star of the table, and its LR; or why there is none."""
    best = best_entry(entries)
    if best is None:
        reason = why_no_best(entries)
        return wrapped_line("no best job", reason) if reason else []
    label = short_entry_labels(entries)[entries.index(best)]
    return [
        *wrapped_line("lowest loss", f"* {label}: {best.best_loss:.4g}, {COMPARED_LOSS}"),
        labelled_line("train with", f"optimizer.lr={best.lr:.3g}"),
    ]


def _run_jobs(scheduler: BatchScheduler, jobs: Sequence[BatchJob], interrupts: InterruptCounter) -> Exception | None:
    """Run the jobs; what ended the scheduler early, so that the jobs that ran are summed up all the same."""
    try:
        scheduler.run(jobs, interrupts)
    except Exception as error:  # noqa: BLE001 - a traceback could show secrets
        return error
    return None


def _show_failure(failure: Exception, redactor: Redactor) -> None:
    logger.info("the batch failed", exc_info=failure)
    text = " ".join(str(failure).split())
    write_error(redactor.text(f"lrrunner: the batch failed: {type(failure).__name__}: {text}"))


def _refuse_reserved(overrides: Sequence[str]) -> None:
    errors = [
        f"{found} must be left to lrrunner in a batch, got {override}; {hint}"
        for override in overrides
        for key, hint in RESERVED_KEYS.items()
        if (found := override_key(override)) == key or found.startswith(f"{key}.")
    ]
    if errors:
        raise ConfigError(errors)


def _warn_of_crowding(launches: Sequence[LaunchConfig]) -> None:
    """Warn once, of the jobs that need most ranks at a time."""
    num_gpus, num_cores = len(visible_gpus(os.environ)), len(usable_cores())
    largest = max(launches, key=lambda launch: (launch.num_processes or 1) * launch.concurrent)
    if warning := crowding_warning(largest, num_gpus=num_gpus, num_cores=num_cores):
        logger.warning("%s", warning)


def _slots(launches: Sequence[LaunchConfig]) -> list[Slot]:
    """Slots that are each large enough for the largest job."""
    return new_slots(
        launches[0].concurrent,
        num_processes=max(launch.num_processes or 1 for launch in launches),
        gpus=visible_gpus(os.environ),
        cores=usable_cores(),
    )
