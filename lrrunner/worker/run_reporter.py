"""Rank 0's side of a run: run directory, MLflow, progress bar and closing lines."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import sys
from pathlib import Path

from lrrunner.config.schema import Config, batch_summary, budget_steps
from lrrunner.core.confirmation import PlannedTrial, confirmed, not_confirmed
from lrrunner.core.noise_scale import noise_scale
from lrrunner.core.range_extension import Extension
from lrrunner.errors import ConfigError
from lrrunner.records import Confirmation, NoiseScale, RangeTestResult, Step, Suggestion, Trial, TrialOutcome
from lrrunner.reporting import run_summary
from lrrunner.reporting.progress_bar import progress_bar, show
from lrrunner.results.artifacts import CHECKPOINT_FOLDER, FIGURE_FILE
from lrrunner.results.codec import optional_step_columns
from lrrunner.results.recorder import Recorder
from lrrunner.results.resume_checks import code_versions, differences, directory_errors
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory, new_run_path
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials
from lrrunner.system.plain_values import to_plain
from lrrunner.system.process_identity import process_identity
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import shown_path
from lrrunner.tracking import tag_names
from lrrunner.tracking.connection import Connection, anchored_uri, connect_or_warn
from lrrunner.tracking.mlflow_run import MlflowRun, RunEnd, join_run
from lrrunner.tracking.runs import create_run, end_run, find_run, reopen_run, run_exists
from lrrunner.training import checkpoints
from lrrunner.version import __version__

logger = logging.getLogger(__name__)


class Reporter:
    """Records a run while it lasts and reports it when it is over.

    Made in stage B, where its troubles are errors of the configuration; an MLflow that merely does not answer is not.

    Args:
        job: Its configuration, as the ranks agreed on it.
        command: What repeats the run.
        world_size: Number of ranks.
        redactor: Masks secrets in everything shown and written.
        run_id: MLflow run that a supervisor has made; None: make one.
        tracked: False: MLflow is left alone, since a supervisor has asked it already and got no answer.

    Raises:
        ConfigError: run directory or tracking store cannot be used; all reasons at once.
    """

    def __init__(
        self,
        *,
        job: Config,
        command: str,
        world_size: int,
        redactor: Redactor,
        run_id: str | None = None,
        tracked: bool = True,
    ) -> None:
        self._run_id = run_id
        self._job, self._redactor, self._world_size = job, redactor, world_size
        tracking = dataclasses.replace(job.tracking, uri=anchored_uri(job.tracking.uri))
        self._config = to_plain(dataclasses.replace(job, tracking=tracking))
        self._command = redactor.text(command)
        self._group_ratios: tuple[float, ...] = (1.0,)
        self._remark = ""
        errors: list[str] = []
        directory: RunDirectory | None = None
        self._resumes = job.run.resume is not None
        self._connection: Connection | None = None
        self._mlflow: MlflowRun | None = None
        try:
            directory = self._run_directory()
        except ConfigError as error:
            errors += error.errors
        try:
            if tracked and job.tracking.enabled:
                self._connection = connect_or_warn(job.tracking, redactor, kept_in="run directory")
        except ConfigError as error:
            errors += error.errors
        except BaseException:
            if directory is not None:
                directory.discard()
            raise
        if directory is None or errors:
            if directory is not None:
                directory.discard()
            raise ConfigError(errors)
        self.directory = directory
        self._recorder = Recorder(directory, schedule=job.confirm.schedule.value)
        self._bar = progress_bar("LR sweep", num_steps=job.sweep.num_steps * job.sweep.repeats)

    def _run_directory(self) -> RunDirectory:
        """A new one, or the one to go on in."""
        run = self._job.run
        if run.resume is None:
            path = Path(run.dir) if run.dir else new_run_path()
            return RunDirectory(path, self._redactor, optional_columns=optional_step_columns(self._job.sweep))
        path = Path(run.resume).expanduser()
        if errors := directory_errors(run):
            raise ConfigError(errors)
        if errors := differences(path, self._redactor.tree(self._config), world_size=self._world_size):
            raise ConfigError(errors)
        return RunDirectory(path, self._redactor, optional_columns=optional_step_columns(self._job.sweep), resumed=True)

    def discard(self) -> None:
        """The run does not start: leave nothing behind."""
        self._bar.close()
        self.directory.discard()

    def start(self, *, overrides: list[str], device: str, group_ratios: tuple[float, ...], remark: str) -> None:
        """Open the MLflow run, now that the world is proven to be up, and say what will be done.

        Args:
            overrides: As typed.
            device: Where rank 0 trains.
            group_ratios: Each parameter group's LR over the recorded one.
            remark: What to know about the optimizer's LR; empty where it is the usual one.
        """
        self._group_ratios, self._remark = group_ratios, remark
        self.directory.write_inputs(self._config, overrides)
        self._start_mlflow()
        self.directory.update_status(
            state=RunState.RUNNING,
            mlflow_run_id=self._mlflow.run_id if self._mlflow is not None else None,
            last_step=None,
            cause=None,
            **code_versions(),
            world_size=self._world_size,
            host=socket.gethostname(),
            process=process_identity(),
            command=self._command,
        )
        summary = batch_summary(self._job, world_size=self._world_size)
        logger.info("%s, on %s", summary, device)
        print(f"{summary}; {remark}" if remark else summary, flush=True)

    def begin_pass(self, number: int) -> None:
        """A ladder begins."""
        if number:
            self._bar.close()
            sweep = self._job.sweep
            self._bar = progress_bar(f"LR sweep, pass {number + 1}", num_steps=sweep.num_steps * sweep.repeats)

    def on_step(self, step: Step) -> None:
        """Take in one record, a known one of an earlier life too; no network and no drawing here."""
        step = self._recorder.record(step)
        if self._mlflow is not None:
            self._mlflow.log_step(step)
        show(self._bar, step)

    def on_extension(self, extension: Extension) -> None:
        """The range was wrong: say why, and which one comes next."""
        words = f"{extension.reason}: sweeping again from {extension.start_lr:.1e} to {extension.end_lr:.1e}"
        logger.info("%s", words)
        self._bar.write(f"lrrunner: {words}", file=sys.stderr)

    def on_passes(self, passes: Passes) -> None:
        """The sweep has ended and confirmation begins: what it supports is kept, whatever becomes of the rest."""
        self.directory.write_suggestion(self._range_test(passes, Trials()))

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """A confirmation run begins."""
        self._bar.close()
        self._bar = progress_bar(f"trial {number + 1}, lr {planned.lr:.1e}", num_steps=planned.num_steps)

    def on_trial_step(self, number: int, step: Step) -> None:
        """Take in one record of a confirmation run."""
        step = self._recorder.record_trial_step(number, step)
        if self._mlflow is not None:
            self._mlflow.log_trial_step(number, step)
        show(self._bar, step)

    def on_trial(self, trial: Trial) -> None:
        """Take in the end of a confirmation run."""
        logger.info("%s", trial)
        self._recorder.record_trial(trial)
        if self._mlflow is not None:
            self._mlflow.log_trial(trial, timestamp_ms=self._recorder.records.trial_end_ms(trial.trial))

    def finish(self, passes: Passes, trials: Trials) -> None:
        """After the last collective: suggestion, picture, MLflow, closing lines."""
        self._bar.close()
        test = self._range_test(passes, trials)
        cause = _interruption(passes, trials)
        logger.info("%s; %s", test.stop, test.suggestion)
        self.directory.write_suggestion(test)
        picture = self._draw(test)
        note = run_summary.note(test, self._job, command=self._command, directory=str(self.directory.path))
        self.directory.write_note(note)
        if not cause:
            self.directory.drop_unrepeated_rows()
            checkpoints.remove(self.directory.path / CHECKPOINT_FOLDER)
        state = RunState.KILLED if cause else RunState.FINISHED
        self.directory.update_status(
            state=state,
            last_step=self._recorder.records.last_step,
            cause=cause,
        )
        location = self._mlflow.location if self._mlflow is not None else None
        for line in run_summary.closing_lines(
            test, self._job, directory=shown_path(self.directory.path), mlflow=location
        ):
            print(self._redactor.text(line), flush=True)  # before the upload, which a server may keep waiting
        if self._mlflow is not None:
            failure = self._mlflow.finish(
                RunEnd(state=state, note=note, directory=self.directory.path, test=test, figure=picture)
            )
            if failure is not None:
                logger.warning("MLflow is missing something (%s); the run directory has it all", failure.reason)

    def fail(self, cause: str) -> None:
        """The sweep broke: keep what there is and say why."""
        self._bar.close()
        with contextlib.suppress(OSError):  # the directory itself may be what broke
            self.directory.update_status(state=RunState.FAILED, last_step=self._recorder.records.last_step, cause=cause)
        if self._mlflow is not None:
            note = f"**Failed** on {cause}"
            self._mlflow.finish(RunEnd(state=RunState.FAILED, note=note, directory=self.directory.path))

    def cut_off(self, cause: str) -> None:
        """The process ends within moments, from another thread: record only that."""
        with contextlib.suppress(OSError):
            self.directory.update_status(state=RunState.KILLED, last_step=self._recorder.records.last_step, cause=cause)
        if self._mlflow is not None:
            self._mlflow.end(RunState.KILLED)

    def _start_mlflow(self) -> None:
        if self._connection is None:
            return
        run_id = self._run_id
        try:
            run_id = run_id or self._reopened() or self._created()
            self._mlflow = join_run(
                self._connection, run_id, sweep=self._job.sweep, params=self._config, tags=self._tags
            )
        except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the sweep
            logger.warning("MLflow failed (%s); the run directory keeps everything", error)
            if run_id is not None:
                end_run(self._connection, run_id, RunState.FAILED)

    @property
    def _tags(self) -> dict[str, str]:
        own_tags = {
            tag_names.WORLD_SIZE: str(self._world_size),
            tag_names.VERSION: __version__,
            tag_names.RUN_DIR: str(self.directory.path),
        }
        return own_tags | {key: str(value) for key, value in self._job.tracking.tags.items()}

    def _created(self) -> str:
        assert self._connection is not None
        run_name = self._job.tracking.run_name or self.directory.path.name
        return create_run(self._connection, run_name=run_name, tags=self._tags)

    def _reopened(self) -> str | None:
        """The MLflow run of an earlier life, which is RUNNING again; None where there is none."""
        if not self._resumes or self._connection is None:
            return None
        run_id = self.directory.mlflow_run_id
        if run_id is None or not run_exists(self._connection, run_id):
            run_id = find_run(self._connection, {tag_names.RUN_DIR: str(self.directory.path)})
        if run_id is not None:
            reopen_run(self._connection, run_id)
        return run_id

    def _range_test(self, passes: Passes, trials: Trials) -> RangeTestResult:
        suggestion, confirmation = self._confirmed(passes.suggestion, trials)
        if self._remark:
            suggestion = dataclasses.replace(suggestion, reason=f"{suggestion.reason}; {self._remark}")
        return RangeTestResult(
            steps=tuple(self._recorder.records.steps),
            stops=passes.stops,
            suggestion=suggestion,
            world_size=self._world_size,
            global_batch_size=self._job.data.global_batch_size,
            passes=passes.passes,
            curve_pass=passes.curve_pass,
            trials=trials.trials,
            confirmation=confirmation,
            group_ratios=self._group_ratios,
            noise_scale=self._noise_scale(passes),
        )

    def _noise_scale(self, passes: Passes) -> NoiseScale | None:
        job = self._job
        if not job.sweep.noise_scale:
            return None
        return noise_scale(
            passes.curve_steps,
            passes.suggestion,
            beta=job.sweep.smoothing,
            global_batch_size=job.data.global_batch_size,
        )

    def _confirmed(self, sweep: Suggestion, trials: Trials) -> tuple[Suggestion, Confirmation | None]:
        """What the sweep and its confirmation runs support together, and what these came to."""
        if not trials.trials and not trials.failure_reason:
            return sweep, None
        job = self._job
        monitored = "training loss" if job.data.val is None else "validation loss"
        horizon = job.confirm.horizon
        ended = [trial for trial in trials.trials if trial.outcome != TrialOutcome.INTERRUPTED]
        if trials.failure_reason:
            found = not_confirmed(sweep, trials.failure_reason)
        else:
            found = confirmed(sweep, ended, horizon=horizon, monitored=monitored, initial_loss=trials.initial_loss)
        confirmation = Confirmation(
            schedule=job.confirm.schedule.value,
            monitored=monitored,
            horizon=horizon,
            budget_steps=budget_steps(job),
            sweep=sweep,
            measured_steps=found.measured_steps,
            failure_reason=found.failure_reason,
        )
        return found.suggestion, confirmation

    def _draw(self, test: RangeTestResult) -> Path:
        from lrrunner.reporting.sweep_figure import job_figure, save_png

        path = self.directory.path / FIGURE_FILE
        save_png(job_figure(test, self._job), path)
        return path


def _interruption(passes: Passes, trials: Trials) -> str | None:
    """Where a signal ended the run, in words; None where none did."""
    if passes.interruption is not None:
        return str(passes.interruption)
    if trials.interruption is not None:
        where = f"trial {trials.trials[-1].trial}" if trials.trials else "the first evaluation"
        return f"{trials.interruption} of {where}"
    return None
