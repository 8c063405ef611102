"""One job on one rank: agree on its components, sweep, and (rank 0) report."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from accelerate import PartialState

from lrrunner.config.command_line import CommandLine, interrupted_start_lines, launch_command
from lrrunner.config.schema import Config, target_name
from lrrunner.errors import ConfigError
from lrrunner.records import Progress
from lrrunner.reporting.progress_display import ForwardingDisplay, ProgressDisplay, progress_display
from lrrunner.results.artifacts import CHECKPOINT_FOLDER
from lrrunner.results.resume_checks import is_finished
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.sweep.data_loading import RankBatches
from lrrunner.sweep.fingerprint import fingerprint
from lrrunner.sweep.measure import Measured, measure
from lrrunner.system import exit_codes
from lrrunner.system.garbage_collection import exempt_from_collection
from lrrunner.system.output.job_log import JobLog
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import shown_path, write_error, write_line
from lrrunner.system.plain_values import to_plain
from lrrunner.system.processes.stop_signal import StopSignal
from lrrunner.tracking.finished_run import complete_finished_run
from lrrunner.tracking.store.connection import import_mlflow
from lrrunner.tracking.upload.training_set import TrainingSet
from lrrunner.training import collectives
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import RankContext
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.optimizer.optimizers import lr_remark
from lrrunner.training.state import checkpoints
from lrrunner.training.state.checkpoints import Checkpoints
from lrrunner.worker.building.build import Components, build, weight_errors
from lrrunner.worker.building.data_agreement import data_errors, order_errors
from lrrunner.worker.building.execution_settings import ExecutionSettings, execution_settings, with_settings
from lrrunner.worker.building.wrap_with_accelerate import make_accelerator, make_trainable
from lrrunner.worker.failure_text import failure_text
from lrrunner.worker.process_state import process_state_preserved
from lrrunner.worker.run_context import RunContext, open_run_directory
from lrrunner.worker.run_reporter import RunReporter, prepare_reporter
from lrrunner.worker.world import BUILD_TIMEOUT, World, exit_now, join_world, leave_world, release_job_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job for a rank.

    Attributes:
        config: Configuration that passed stage A; rank 0's is broadcast to every rank.
        command_line: Arguments of the job, for the record and for the command that repeats the run.
        number: Number of the job within its world.
        run_id: MLflow run made by a supervisor; None: it could not, or there is no supervisor and rank 0 makes one.
        on_step: Called with each step's number, on every rank.
        show_progress: Receives progress on behalf of a supervisor, which then also reports how the job ended; None:
            there is no supervisor.
    """

    config: Config
    command_line: CommandLine = field(default_factory=CommandLine)
    number: int = 0
    run_id: str | None = None
    on_step: Callable[[int], None] = lambda step: None
    show_progress: Callable[[Progress | None], None] | None = None

    @property
    def supervised(self) -> bool:
        """Whether a supervisor reports for the ranks."""
        return self.show_progress is not None


@dataclass
class Session:
    """State of one job on this rank.

    Attributes:
        config: Rank 0's; from stage B on with the execution settings in place of null.
        request: The job.
        world: The world it runs in.
        redactor: Masks secrets in everything shown and written.
        log: Log of this rank.
        reporter: From stage B on, on rank 0.
        opened: The run directory of rank 0, from the moment that it exists.
        directory: Run directory, from the end of stage B on.
    """

    config: Config
    request: JobRequest
    world: World
    redactor: Redactor
    log: JobLog
    reporter: RunReporter | None = None
    opened: RunDirectory | None = None
    directory: Path | None = None

    @cached_property
    def display(self) -> ProgressDisplay:
        """This terminal, or that of the supervisor; on rank 0."""
        if self.request.show_progress is not None:
            return ForwardingDisplay(self.request.show_progress)
        return progress_display(quiet=self.request.command_line.quiet or self.collective.rank != 0)

    @property
    def collective(self) -> Collective:
        """How the ranks communicate."""
        return self.world.collective

    def report_kill(self, cause: str) -> int | None:
        """Record that this process is about to be killed; called from another thread.

        Returns:
            The exit code of a run that had finished; else None.
        """
        if self.directory is None:
            self._report_interrupted_start()
        if self.reporter is None or self.directory is None:
            return None
        ended = self.reporter.record_kill(cause, is_shown=not self.request.supervised)
        return exit_codes.OK if ended == RunState.FINISHED else None

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        num_processes = 1 if self.request.supervised else self.collective.world_size  # a supervisor starts its ranks
        arguments = self.request.command_line.arguments
        return self.redactor.text(launch_command(arguments, num_processes=num_processes, on_cpu=self.world.on_cpu))

    def open_directory(self, context: RunContext) -> RunDirectory:
        """Make the run directory, or open that of the run to resume."""
        self.opened = open_run_directory(context)
        return self.opened

    def _report_interrupted_start(self) -> None:
        """Nothing is recorded: remove what was prepared, and show what starts the run again."""
        if self.opened is not None:
            with contextlib.suppress(OSError, ValueError):  # the loop may be writing into it
                self.opened.discard()
        if self.collective.rank == 0 and not self.request.supervised:
            self.display.clear()
            for line in interrupted_start_lines(self.command):
                write_line(line)


def run_in_new_world(config: Config, command_line: CommandLine) -> int:
    """Run one job without a supervisor: join the world, run, leave. Every rank must call this.

    Args:
        config: Configuration that passed stage A; rank 0's is broadcast to every rank.
        command_line: Arguments of this command.

    Returns:
        Exit code of this process.
    """
    world = join_world()
    parent = os.getppid()
    code = run_job(
        world,
        JobRequest(config=config, command_line=command_line),
        orphaned=lambda: world.collective.world_size > 1 and os.getppid() != parent,
        on_config_error=write_error,
        on_failure=lambda cause: exit_now(exit_codes.FAILED),
    )
    leave_world()
    return code


def run_job(
    world: World,
    request: JobRequest,
    *,
    orphaned: Callable[[], bool],
    on_config_error: Callable[[str], None],
    on_failure: Callable[[str], NoReturn],
) -> int:
    """Run one job of a world, free its memory and restore the process's settings. Every rank must call this.

    Only errors that all ranks agree on before the first step leave the world usable. After a later failure the first
    reduction of the next job would pair with one of this job, so the rank must end: ``on_failure`` does not return.

    Args:
        world: The world, from :func:`lrrunner.worker.world.join_world`.
        request: The job.
        orphaned: Whether the process that waits for this rank is gone; called twice a second.
        on_config_error: Called on rank 0 with the message of a wrong configuration.
        on_failure: Called with the cause that some rank reported first; ends the process.

    Returns:
        Exit code of the job: 0, 2 after a configuration error, or 128 + the number of the signal that ended it.
    """
    collectives.set_timeout(BUILD_TIMEOUT.total_seconds())
    config: Config = world.collective.broadcast(request.config)
    redactor = Redactor.for_run(to_plain(config), os.environ, request.command_line.overrides)
    with process_state_preserved(), JobLog(redactor) as log:
        session = Session(config, request, world, redactor, log)
        with StopSignal(on_stuck=session.report_kill, orphaned=orphaned) as stop_signal:
            try:
                code = _run(session, stop_signal)
            except ConfigError as error:
                if world.collective.rank == 0:
                    on_config_error(redactor.text(str(error)))
                code = exit_codes.CONFIG_ERROR
            except BaseException as error:  # noqa: BLE001 - a user's code may raise anything
                cause = redactor.text(f"rank {world.collective.rank}: {failure_text(error, masked=redactor.text)}")
                try:
                    cause = _report_failure(error, cause, session)
                finally:
                    on_failure(cause)
    release_job_memory()
    return code


def _run(session: Session, stop_signal: StopSignal) -> int:
    """Stage B, the sweep and the report. Holds every reference to the model, so that its return frees them."""
    if session.config.run.resume is not None and session.collective.broadcast(is_finished(session.config.run)):
        if session.collective.rank == 0:
            for line in complete_finished_run(session.config, session.redactor):
                write_line(line)
        return exit_codes.OK
    if session.request.number == 0:
        _complete_imports(session)
    try:
        with stop_signal.nothing_to_save():
            settings, components = _agreed_components(session)
            session.directory = session.collective.broadcast(session.reporter and session.reporter.directory.path)
    except ConfigError:
        raise
    except BaseException:
        if session.reporter is not None:
            session.log.write_to(session.reporter.directory.path, session.collective.rank)
        raise
    assert session.directory is not None
    session.log.write_to(session.directory, session.collective.rank)
    if session.reporter is not None:
        session.reporter.start(
            overrides=list(session.request.command_line.overrides),
            device=f"{PartialState().device}",
            group_ratios=LearningRate(components.optimizer).ratios,
            lr_remark=lr_remark(components.optimizer),
            training_set=_training_set(session.config, components),
        )
    measured = _measure(session, components, settings, stop_signal, _checkpoints(session, session.directory))
    stop_signal.loop_ended()
    if session.reporter is not None:
        session.reporter.finish(measured.passes, measured.trials)
    return stop_signal.exit_code if measured.interrupted else exit_codes.OK


def _training_set(job: Config, components: Components) -> TrainingSet:
    return TrainingSet(
        name=target_name(job.data.train),
        source=str(job.data.train["_target_"]),
        num_samples=components.datasets.num_samples,
        digest=fingerprint(components.datasets.train),
    )


def _complete_imports(session: Session) -> None:
    """Import MLflow and exempt all imports from collection, before a component exists that has to be freed."""
    tracking = session.config.tracking
    if session.collective.rank == 0 and tracking.enabled:
        with contextlib.suppress(ImportError), _announced(session, "loading MLflow ..."):  # whoever connects reports it
            import_mlflow(tracking.uri, timeout_s=tracking.timeout_s)
    exempt_from_collection()


def _agreed_components(session: Session) -> tuple[ExecutionSettings, Components]:
    """Stage B. Every rank must call this: all continue, or all raise the errors of all."""
    job, collective, device = session.config, session.collective, PartialState().device
    errors: list[str] = []
    settings = execution_settings(job, device=device, errors=errors, world_size=collective.world_size)
    components = build(job, settings, device=device, errors=errors)
    session.config = with_settings(job, settings)
    if settings.fsdp:
        errors += weight_errors(collective, None if components is None else components.weights_checksum)
    if collective.world_size > 1:
        datasets = None if components is None else components.datasets
        train, num_samples = (None, 0) if datasets is None else (datasets.train, datasets.num_samples)
        errors += data_errors(collective, train, num_samples=num_samples)
        if job.data.sampler is not None:
            errors += order_errors(collective, datasets, seed=job.sweep.seed)
    if collective.rank == 0:
        try:
            session.reporter = _prepare_reporter(session)
        except ConfigError as error:
            errors += error.errors
    try:
        collectives.agree(collective, errors)
    except ConfigError:
        if session.reporter is not None:
            session.reporter.discard()
        raise
    assert components is not None
    return settings, components


def _prepare_reporter(session: Session) -> RunReporter:
    request = session.request
    mlflow_is_silent = request.supervised and request.run_id is None and session.config.run.resume is None
    context = RunContext(
        job=session.config,
        command=session.command,
        world_size=session.collective.world_size,
        redactor=session.redactor,
        display=session.display,
    )
    with _announced(session, "opening MLflow ..."):
        return prepare_reporter(
            context,
            run_id=request.run_id,
            is_tracked=not mlflow_is_silent,
            open_directory=session.open_directory,
        )


@contextlib.contextmanager
def _announced(session: Session, text: str) -> Iterator[None]:
    """Show what MLflow takes seconds for, and nothing where it is off."""
    if session.config.tracking.enabled:
        session.display.announce(text)
    try:
        yield
    finally:
        session.display.clear()


def _checkpoints(session: Session, directory: Path) -> Checkpoints:
    """Where this run saves its state, and what a previous attempt saved. Every rank must call this."""
    folder, run = directory / CHECKPOINT_FOLDER, session.config.run
    saved = None if run.resume is None else checkpoints.read_newest(folder, collective=session.collective)
    return Checkpoints(folder, every_s=run.checkpoint_every_s, collective=session.collective, saved=saved)


def _measure(
    session: Session,
    components: Components,
    settings: ExecutionSettings,
    stop_signal: StopSignal,
    saved: Checkpoints,
) -> Measured:
    """Wrap the components for the world and measure with them. Every rank must call this."""
    job = session.config
    accelerator = make_accelerator(job, settings, on_cpu=session.world.on_cpu)
    try:
        return measure(
            job,
            RankBatches(components.datasets, job, collective=session.collective),
            make_trainable(job, components, settings, accelerator),
            context=RankContext(
                collective=session.collective,
                stop_requested=lambda: stop_signal.requested,
                checkpoints=saved,
                set_timeout=collectives.set_timeout,
            ),
            listener=session.reporter,
            heartbeat=session.request.on_step,
        )
    finally:
        accelerator.free_memory()


def _report_failure(error: BaseException, own_cause: str, session: Session) -> str:
    """Report a failure once, in files, MLflow and on standard error.

    Returns:
        The cause that some rank was the first to report.
    """
    rank = session.collective.rank
    logger.info("the sweep failed", exc_info=error)
    first_cause = collectives.first_failure(own_cause, job=session.request.number)
    if session.reporter is not None:
        session.reporter.close_progress()
    if own_cause == first_cause and not session.request.supervised:
        where = f"; see {shown_path(session.directory / 'ranks' / f'{rank}.log')}" if session.directory else ""
        write_error(f"lrrunner: the sweep failed on {first_cause}{where}")
    if session.reporter is not None:
        session.reporter.fail(first_cause)
    return first_cause
