"""Rank 0's records of a run: run directory, MLflow and terminal."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lrrunner.config.command_line import repeat_command, resume_command, sync_command
from lrrunner.core.range_extension import Extension
from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.errors import ConfigError
from lrrunner.records import RangeTestResult, Step, Trial
from lrrunner.reporting.run_summary import note, unfinished_note
from lrrunner.reporting.terminal_report import TerminalReport
from lrrunner.results.artifacts import CHECKPOINT_FOLDER, FIGURE_FILE
from lrrunner.results.recorder import Recorder
from lrrunner.results.resume_checks import code_versions
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials
from lrrunner.sweep.range_test_result import describe_interruption, range_test_result
from lrrunner.system.output.terminal import shown_path
from lrrunner.system.processes.process_identity import process_identity
from lrrunner.tracking.store.connection import Connection, connect_or_warn
from lrrunner.tracking.upload.mlflow_run import RunEnd
from lrrunner.tracking.upload.training_set import TrainingSet
from lrrunner.training.state import checkpoints
from lrrunner.worker.other_trackers import OtherTrackers, tracker_errors
from lrrunner.worker.run_context import RunContext, open_run_directory
from lrrunner.worker.tracked_run import TrackedRun

logger = logging.getLogger(__name__)


def prepare_reporter(
    context: RunContext,
    *,
    run_id: str | None = None,
    is_tracked: bool = True,
    open_directory: Callable[[RunContext], RunDirectory] = open_run_directory,
) -> RunReporter:
    """Open the run directory and connect to MLflow, as a part of stage B.

    Args:
        context: The run.
        run_id: MLflow run that a supervisor has created; None creates one.
        is_tracked: False leaves MLflow alone: a supervisor has tried to connect already.
        open_directory: Opens the run directory.

    Raises:
        ConfigError: run directory or tracking store cannot be used; all reasons at once.
    """
    errors: list[str] = []
    directory: RunDirectory | None = None
    connection: Connection | None = None
    with contextlib.ExitStack() as on_failure:
        try:
            directory = open_directory(context)
            on_failure.callback(directory.discard)
        except ConfigError as error:
            errors += error.errors
        try:
            if is_tracked and context.job.tracking.enabled:
                connection = connect_or_warn(context.job.tracking, context.redactor, kept_in="run directory")
        except ConfigError as error:
            errors += error.errors
        errors += tracker_errors(context.job.tracking.also)
        if directory is None or errors:
            raise ConfigError(errors)
        on_failure.pop_all()
    return RunReporter(context, directory, TrackedRun(context, connection, run_id=run_id))


class RunReporter:
    """Records a run in files, in MLflow and on the terminal while it lasts, and reports it when it has ended.

    A :class:`lrrunner.sweep.measure.Listener`: what it does during a step neither draws nor waits for a network.

    Args:
        context: The run.
        directory: Its run directory.
        tracked_run: Its MLflow run.

    Attributes:
        directory: The run directory.
    """

    def __init__(self, context: RunContext, directory: RunDirectory, tracked_run: TrackedRun) -> None:
        self.directory = directory
        self._context, self._mlflow = context, tracked_run
        tracking = context.job.tracking
        self._others = OtherTrackers(
            tracking.also, project=tracking.experiment, directory=directory.path, redactor=context.redactor
        )
        self._recorder = Recorder(directory, schedule=context.job.train.schedule.value)
        self._terminal = TerminalReport(
            context.job, world_size=context.world_size, redactor=context.redactor, display=context.display
        )
        self._group_ratios: tuple[float, ...] = (1.0,)
        self._lr_remark = ""
        self._ended: RunState | None = None

    def discard(self) -> None:
        """Remove what was written, for a run that does not start."""
        self._terminal.close()
        self.directory.discard()

    def start(
        self,
        *,
        overrides: list[str],
        device: str,
        group_ratios: tuple[float, ...],
        lr_remark: str,
        training_set: TrainingSet,
    ) -> None:
        """Record the configuration, start the MLflow run and print what will be run; the world is known to be up.

        Args:
            overrides: As typed.
            device: Where rank 0 trains.
            group_ratios: LR of each parameter group as a multiple of the recorded one.
            lr_remark: What to know about the optimizer's LR; empty for the usual one.
            training_set: What the sweep trains on.
        """
        self._group_ratios, self._lr_remark = group_ratios, lr_remark
        self.directory.write_inputs(self._context.values, overrides)
        self._mlflow.start(self.directory, training_set)
        self._others.start(self._context.values)
        self.directory.update_status(
            state=RunState.RUNNING,
            mlflow_run_id=self._mlflow.run_id,
            last_step=None,
            cause=None,
            **code_versions(),
            world_size=self._context.world_size,
            host=socket.gethostname(),
            process=process_identity(),
            command=repeat_command(self._context.command),
            training_set=asdict(training_set),
        )
        self._terminal.start(device=device, lr_remark=lr_remark)

    def begin_pass(self, number: int) -> None:
        """A pass of the sweep begins."""
        self._terminal.begin_pass(number)

    def on_step(self, step: Step) -> None:
        """Record a step of the sweep, also one that a previous attempt has recorded."""
        step = self._recorder.record(step)
        self._mlflow.log_step(step)
        self._others.log_step(step)
        self._terminal.show_step(step)

    def on_extension(self, extension: Extension) -> None:
        """Another pass with this range follows."""
        self._terminal.show_extension(extension)

    def on_passes(self, passes: Passes) -> None:
        """Record what the sweep supports, whatever becomes of the confirmation runs that follow."""
        self.directory.write_suggestion(self._result(passes, Trials()))
        if passes.interruption is None:
            self._mlflow.log_passes(curve_pass=passes.curve_pass)

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """A confirmation run begins."""
        self._terminal.begin_trial(number, planned)

    def on_trial_step(self, number: int, step: Step) -> None:
        """Record a step of a confirmation run."""
        step = self._recorder.record_trial_step(number, step)
        self._mlflow.log_trial_step(number, step)
        self._others.log_step(step, prefix=f"trial_{number}/")
        self._terminal.show_step(step)

    def on_trial(self, trial: Trial) -> None:
        """Record the end of a confirmation run."""
        logger.info("%s", trial)
        self._recorder.record_trial(trial)
        self._mlflow.log_trial(trial, timestamp_ms=self._recorder.records.trial_end_ms(trial.trial))

    def finish(self, passes: Passes, trials: Trials) -> None:
        """Record and report the result, after the last collective of the run."""
        self._terminal.close()
        test = self._result(passes, trials)
        logger.info("%s; %s", test.stop, test.suggestion)
        self.directory.write_suggestion(test)
        figure = self._draw(test)
        interruption = describe_interruption(passes, trials)
        if interruption is None:
            self._finish(test, figure)
        else:
            self._interrupt(interruption, figure)

    def _finish(self, test: RangeTestResult, figure: Path | None) -> None:
        """From here on the run is finished, whatever becomes of its process."""
        path = self.directory.path
        text = note(test, self._context.job, command=repeat_command(self._context.command), directory=str(path))
        self.directory.write_note(text)
        self.directory.drop_unrepeated_rows()
        self._update_status(RunState.FINISHED, cause=None)
        self._ended = RunState.FINISHED
        checkpoints.remove(path / CHECKPOINT_FOLDER)
        # before the upload, in which a server may keep the user waiting
        self._terminal.finish(test, directory=path, mlflow=self._mlflow_place)
        self._others.finish(test)
        self._mlflow.finish(
            RunEnd(state=RunState.FINISHED, note=text, directory=path, test=test, figure=figure),
        )

    def _interrupt(self, cause: str, figure: Path | None) -> None:
        """Record and report that a signal has ended the run."""
        text = self._write_unfinished(RunState.KILLED, cause)
        place = self._mlflow_place
        self._terminal.show_interruption(cause, resume=self._resume_command, picture=figure, mlflow=place)
        self._others.finish(None)
        self._mlflow.finish(RunEnd(state=RunState.KILLED, note=text, directory=self.directory.path))

    def close_progress(self) -> None:
        """Remove the bar: something else is printed."""
        self._terminal.close()

    def fail(self, cause: str) -> None:
        """Record that the run failed; what it has recorded is kept. One that had finished stays finished."""
        self._terminal.close()
        if self._ended == RunState.FINISHED:
            self._mlflow.end(self._ended)
            return
        text = f"**{RunState.FAILED.text}**: {cause}"
        with contextlib.suppress(OSError):  # the directory itself may be the cause
            text = self._write_unfinished(RunState.FAILED, cause)
        self._others.finish(None)
        self._mlflow.finish(RunEnd(state=RunState.FAILED, note=text, directory=self.directory.path))

    def record_kill(self, cause: str, *, is_shown: bool) -> RunState:
        """Record only that the process ends, within moments. Called from another thread.

        Args:
            cause: What ends it.
            is_shown: Whether the user is told here, and not by a supervisor.

        Returns:
            How the run ended: what was recorded before stays.
        """
        text = None
        if self._ended is None:
            with contextlib.suppress(OSError):
                text = self._write_unfinished(RunState.KILLED, cause)
            if is_shown:
                self._terminal.show_interruption(cause, resume=self._resume_command, picture=None, mlflow=None)
        state = self._ended or RunState.KILLED
        self._mlflow.end(state, note=text)
        return state

    @property
    def _mlflow_place(self) -> str | None:
        """Where to look at the run in MLflow, or the command that uploads it; None if tracking is off."""
        if self._mlflow.location is None and self._context.job.tracking.enabled:
            return f"not reached; later: {sync_command(shown_path(self.directory.path))}"
        return self._mlflow.location

    @property
    def _resume_command(self) -> str:
        return resume_command(self._context.command, shown_path(self.directory.path))

    def _write_unfinished(self, state: RunState, cause: str) -> str:
        """Record how the run ended without finishing.

        Returns:
            The content of note.md.
        """
        path = self.directory.path
        has_figure = (path / FIGURE_FILE).exists()
        resume = resume_command(self._context.command, str(path))
        text = unfinished_note(state, cause=cause, resume=resume, has_figure=has_figure)
        self._update_status(state, cause=cause)
        self._ended = state
        self.directory.write_note(text)
        return text

    def _update_status(self, state: RunState, *, cause: str | None) -> None:
        self.directory.update_status(state=state, last_step=self._recorder.records.last_step, cause=cause)

    def _result(self, passes: Passes, trials: Trials) -> RangeTestResult:
        return range_test_result(
            self._context.job,
            passes,
            trials,
            steps=self._recorder.records.steps,
            world_size=self._context.world_size,
            group_ratios=self._group_ratios,
            lr_remark=self._lr_remark,
        )

    def _draw(self, test: RangeTestResult) -> Path | None:
        """The figure; None, with a warning, if it cannot be drawn, which must not cost the result."""
        from lrrunner.reporting.sweep_figure import job_figure, save_png

        path = self.directory.path / FIGURE_FILE
        try:
            save_png(job_figure(test, self._context.job), path)
        except Exception as error:  # noqa: BLE001 - matplotlib raises what it likes
            logger.warning("the picture could not be drawn (%s: %s)", type(error).__name__, error)
            return None
        return path
