"""What one rank runs: join the world once; then, for each job, agree on it, build it, sweep, and (rank 0) report."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel

from lrrunner.config.command_line import CommandLine, launch_command
from lrrunner.config.schema import Config, Precision
from lrrunner.errors import ConfigError
from lrrunner.launch.machine_checks import DEEPSPEED_REFUSED
from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT
from lrrunner.library.restarted_loader import to_device
from lrrunner.results.artifacts import CHECKPOINT_FOLDER
from lrrunner.sweep.measure import Measured, measure
from lrrunner.system import exit_codes
from lrrunner.system.environment import (
    USE_CPU_VARIABLE,
    USE_DEEPSPEED_VARIABLE,
    USE_FSDP_VARIABLE,
    launcher_switch_is_on,
)
from lrrunner.system.job_log import JobLog
from lrrunner.system.plain_values import to_plain
from lrrunner.system.redaction import Redactor
from lrrunner.system.stop_signal import StopSignal
from lrrunner.system.terminal import shown_path
from lrrunner.training import checkpoints, collectives, fsdp
from lrrunner.training.checkpoints import Checkpoints
from lrrunner.training.collectives import Collective
from lrrunner.training.deferred_dynamo import defer_dynamo, is_dynamo_loaded
from lrrunner.training.engine import RankContext
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.optimizers import lr_remark
from lrrunner.training.trainable import Trainable
from lrrunner.worker.build import Components, ExecutionSettings, build, execution_settings
from lrrunner.worker.run_reporter import Reporter

BUILD_TIMEOUT = timedelta(hours=1)
"""Limit on collectives until the first step is over: downloads, first reads and compilation come before it."""

MAX_CAUSE_LENGTH = 300

LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

TIMED_OUT = ("Timed out waiting", "timed out after", "Watchdog caught collective operation timeout")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks that this process belongs to; joined once, and good for many jobs.

    Attributes:
        collective: How the ranks talk.
        on_cpu: Whether they train on CPUs.
    """

    collective: Collective
    on_cpu: bool


@dataclass(frozen=True, kw_only=True)
class Work:
    """One job as it is given to a rank.

    Attributes:
        config: Configuration that passed stage A; rank 0's binds every rank.
        command_line: Arguments of the job, for the record and for the command that repeats the run.
        number: Tells the jobs of one world apart.
        run_id: MLflow run made by a supervisor; None: it could not, or there is no supervisor and rank 0 makes one.
        on_step: Called with each step's number, on every rank.
        supervised: A supervisor tells the user how the job ended.
    """

    config: Config
    command_line: CommandLine = field(default_factory=CommandLine)
    number: int = 0
    run_id: str | None = None
    on_step: Callable[[int], None] = lambda step: None
    supervised: bool = False


@dataclass
class Session:
    """One rank's part in a job. ``reporter`` is rank 0's, from stage B on."""

    config: Config
    work: Work
    world: World
    redactor: Redactor
    log: JobLog
    reporter: Reporter | None = None
    directory: Path | None = None

    @property
    def collective(self) -> Collective:
        """How the ranks talk."""
        return self.world.collective


def work(config: Config, command_line: CommandLine) -> int:
    """Run one job on this rank; every rank must call this.

    Args:
        config: Configuration that passed stage A; rank 0's binds every rank.
        command_line: Arguments of this command.

    Returns:
        Exit code of this process.
    """
    world = join_world()
    parent = os.getppid()
    code = run_job(
        world,
        Work(config=config, command_line=command_line),
        orphaned=lambda: world.collective.world_size > 1 and os.getppid() != parent,
        on_mistake=lambda message: print(message, file=sys.stderr),
        on_failure=lambda cause: exit_now(exit_codes.FAILED),
    )
    leave_world()
    return code


def join_world() -> World:
    """Join the world that the launcher describes; a process that finds itself in another one ends."""
    if launcher_switch_is_on(USE_DEEPSPEED_VARIABLE):
        _refuse(DEEPSPEED_REFUSED.format("accelerate launch --use_deepspeed"))
    on_cpu = _must_use_cpu()
    PartialState(cpu=on_cpu, timeout=BUILD_TIMEOUT)
    collective = collectives.collective_for_world()
    claimed = int(os.environ.get("WORLD_SIZE", "1"))
    if claimed != collective.world_size:
        _refuse(_world_message(claimed, collective.world_size))
    defer_dynamo()
    return World(collective=collective, on_cpu=on_cpu)


def run_job(
    world: World,
    work: Work,
    *,
    orphaned: Callable[[], bool],
    on_mistake: Callable[[str], None],
    on_failure: Callable[[str], NoReturn],
) -> int:
    """Run one job of a world; every rank must call this. Nothing of the job is left behind in the process.

    Only what fails before the first step, agreed by all ranks, leaves the world whole. After any later failure the next
    job's first reduction would pair with this job's leftovers, so the rank must end: ``on_failure`` does not return.

    Args:
        world: The world, from :func:`join_world`.
        work: The job.
        orphaned: Whether nobody waits for this rank any more, asked twice a second.
        on_mistake: Given the message on rank 0 when the configuration turns out to be wrong.
        on_failure: Given the cause that some rank was the first to report; ends the process.

    Returns:
        Exit code of the job: 0, 2 after a mistake, or 128 + the signal that ended it.
    """
    collectives.set_timeout(BUILD_TIMEOUT.total_seconds())
    config: Config = world.collective.broadcast(work.config)
    redactor = Redactor.for_run(to_plain(config), os.environ, work.command_line.overrides)
    with JobLog(redactor) as log:
        session = Session(config, work, world, redactor, log)

        def cut_off(cause: str) -> None:
            if session.reporter is not None:
                session.reporter.cut_off(cause)

        with StopSignal(on_stuck=cut_off, orphaned=orphaned) as stop_signal:
            try:
                code = _run(session, stop_signal)
            except ConfigError as error:
                if world.collective.rank == 0:
                    on_mistake(redactor.text(str(error)))
                code = exit_codes.CONFIG_ERROR
            except BaseException as error:  # noqa: BLE001 - the last stop of whatever a user's code or a dead peer raises
                cause = redactor.text(f"rank {world.collective.rank}: {_one_line(error)}")
                try:
                    cause = _report_failure(error, cause, session)
                finally:
                    on_failure(cause)
    release_memory()
    return code


def _run(session: Session, stop_signal: StopSignal) -> int:
    """Stage B, the sweep and the report. Holds every reference to the model, so that its return frees them."""
    job = session.config
    try:
        chosen, parts = _stage_b(session, job)
    except ConfigError:
        raise
    except BaseException:
        if session.reporter is not None:
            session.log.write_to(session.reporter.directory.path, session.collective.rank)
        raise
    session.directory = session.collective.broadcast(session.reporter and session.reporter.directory.path)
    assert session.directory is not None
    session.log.write_to(session.directory, session.collective.rank)
    if session.reporter is not None:
        session.reporter.start(
            overrides=list(session.work.command_line.overrides),
            device=f"{PartialState().device}",
            group_ratios=LearningRate(parts.optimizer).ratios,
            remark=lr_remark(parts.optimizer),
        )
    measured = _sweep(session, job, parts, chosen, stop_signal, _checkpoints(session, job))
    stop_signal.loop_ended()
    if session.reporter is not None:
        session.reporter.finish(measured.passes, measured.trials)
    return stop_signal.exit_code if measured.interrupted else exit_codes.OK


def _stage_b(session: Session, job: Config) -> tuple[ExecutionSettings, Components]:
    """Build everything; all ranks go on, or all raise the errors of all."""
    errors: list[str] = []
    device = PartialState().device
    collective = session.collective
    chosen = execution_settings(job, device=device, errors=errors, world_size=collective.world_size)
    parts = build(job, device=device, errors=errors, chosen=chosen)
    session.config = _with_settings(job, chosen)
    if chosen.fsdp:
        errors += _differing_weights(collective, parts)
    if collective.rank == 0:
        try:
            session.reporter = _reporter(session)
        except ConfigError as error:
            errors += error.errors
    try:
        collectives.agree(collective, errors)
    except ConfigError:
        if session.reporter is not None:
            session.reporter.discard()
        raise
    assert parts is not None
    return chosen, parts


def _differing_weights(collective: Collective, parts: Components | None) -> list[str]:
    """Ranks that would shard different models, which nothing later would show. Every rank must call this."""
    checksums = collective.gather(parts and parts.weights_checksum)
    bad = [str(rank) for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
    if not bad or None in checksums:
        return []
    return [
        f"model must begin with the same weights on every rank under train.fsdp, got others on rank {', '.join(bad)}; "
        "draw them from torch's, numpy's or Python's generator, which are seeded"
    ]


def _checkpoints(session: Session, job: Config) -> Checkpoints:
    """Where this run is saved, and what an earlier life of it has saved. Every rank must call this."""
    assert session.directory is not None
    folder = session.directory / CHECKPOINT_FOLDER
    saved = None if job.run.resume is None else checkpoints.read_newest(folder, collective=session.collective)
    return Checkpoints(folder, every_s=job.run.checkpoint_every_s, collective=session.collective, saved=saved)


def _with_settings(config: Config, chosen: ExecutionSettings) -> Config:
    """The configuration with what null has inherited from the launcher."""
    precision = Precision.__members__.get(chosen.mixed_precision)  # another one is an error of stage B
    train = replace(config.train, mixed_precision=precision, compile=chosen.dynamo_backend != "no", fsdp=chosen.fsdp)
    return replace(config, train=train)


def _reporter(session: Session) -> Reporter:
    world_size = session.collective.world_size
    num_started = 1 if session.work.supervised else world_size
    store_is_silent = session.work.supervised and session.work.run_id is None and session.config.run.resume is None
    return Reporter(
        job=session.config,
        command=launch_command(
            session.work.command_line.arguments, num_processes=num_started, on_cpu=session.world.on_cpu
        ),
        world_size=world_size,
        redactor=session.redactor,
        run_id=session.work.run_id,
        tracked=not store_is_silent,
    )


def _sweep(
    session: Session,
    job: Config,
    parts: Components,
    chosen: ExecutionSettings,
    stop_signal: StopSignal,
    saved: Checkpoints,
) -> Measured:
    """Wrap the parts for the world, climb the ladder and what follows it."""
    accelerator = _accelerator(job, chosen, session.world.on_cpu)
    try:
        return measure(
            job,
            parts.datasets,
            _trainable(job, parts, chosen, accelerator, session.collective),
            context=RankContext(
                collective=session.collective, stop_requested=lambda: stop_signal.requested, checkpoints=saved
            ),
            listener=session.reporter,
            heartbeat=session.work.on_step,
        )
    finally:
        accelerator.free_memory()


def _accelerator(job: Config, chosen: ExecutionSettings, on_cpu: bool) -> Accelerator:
    with _without_fsdp_switch():
        return Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if chosen.mixed_precision == "fp32" else chosen.mixed_precision,
            dynamo_backend=chosen.dynamo_backend,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=job.train.ddp.find_unused_parameters,
                    static_graph=job.train.ddp.static_graph,
                )
            ],
        )


@contextmanager
def _without_fsdp_switch() -> Iterator[None]:
    """Hide the launcher's FSDP switch from Accelerate, which would shard by itself on GPUs and never on CPUs."""
    told = os.environ.pop(USE_FSDP_VARIABLE, None)
    try:
        yield
    finally:
        if told is not None:
            os.environ[USE_FSDP_VARIABLE] = told


def _trainable(
    job: Config, parts: Components, chosen: ExecutionSettings, accelerator: Accelerator, collective: Collective
) -> Trainable:
    # evaluation_mode leaves out DDP alone; with device_placement given, Accelerate does not import DTensor to choose it
    model = accelerator.prepare_model(parts.model, device_placement=not chosen.fsdp, evaluation_mode=chosen.fsdp)
    inner = getattr(model, "_orig_mod", model)
    is_ddp = isinstance(inner, DistributedDataParallel)
    assert fsdp.is_fsdp_module(inner) if chosen.fsdp else is_ddp or collective.world_size == 1, type(model)
    micro_batch_size = job.data.global_batch_size // (accelerator.num_processes * job.train.accumulation_steps)
    return Trainable(
        model=model,
        optimizer=parts.optimizer,
        objective=parts.objective,
        micro_batch_size=micro_batch_size,
        accumulation_steps=job.train.accumulation_steps,
        max_grad_norm=job.train.max_grad_norm,
        scaler=accelerator.scaler,
        autocast=nullcontext if chosen.mixed_precision == "fp32" else accelerator.autocast,
        no_sync=functools.partial(fsdp.no_sync, parts.model)
        if chosen.fsdp
        else functools.partial(accelerator.no_sync, model),
        to_device=to_device(accelerator.device),
    )


def _report_failure(error: BaseException, own_cause: str, session: Session) -> str:
    """Say once what failed, where and why, and leave nothing running in files or MLflow.

    Returns:
        The cause that some rank was the first to report.
    """
    rank = session.collective.rank
    logger.info("the sweep failed", exc_info=error)
    first_cause = collectives.first_failure(own_cause, job=session.work.number)
    if own_cause == first_cause and not session.work.supervised:
        where = f"; see {shown_path(session.directory / 'ranks' / f'{rank}.log')}" if session.directory else ""
        print(f"lrrunner: the sweep failed on {first_cause}{where}", file=sys.stderr, flush=True)
    if session.reporter is not None:
        session.reporter.fail(first_cause)
    return first_cause


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:MAX_CAUSE_LENGTH]
    if isinstance(error, RuntimeError) and any(mark in text for mark in LOST_CONNECTION):
        return f"{ANOTHER_RANK_IS_GONE}, its connection was lost ({text})"
    if isinstance(error, RuntimeError) and any(mark in text for mark in TIMED_OUT):
        return f"{ANOTHER_RANK_IS_SILENT}, a collective timed out ({text})"
    return f"{type(error).__name__}: {text}"


def exit_now(code: int) -> NoReturn:
    """End a failed rank at once: frames of the traceback still hold DDP, whose end after its world's may abort."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def release_memory() -> None:
    """Free what a job held; its frames have returned by now."""
    if is_dynamo_loaded():
        torch.compiler.reset()  # compiled code holds on to the model that it was compiled for
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def leave_world() -> None:
    """Free what still refers to DDP, then destroy the process group: the other order aborts up to half of gloo runs."""
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _must_use_cpu() -> bool:
    return launcher_switch_is_on(USE_CPU_VARIABLE) or not torch.cuda.is_available()


def _refuse(message: str) -> NoReturn:
    """End every rank; rank 0 says why."""
    if os.environ.get("RANK", "0") == "0":
        print(ConfigError([message]), file=sys.stderr)
    exit_now(exit_codes.CONFIG_ERROR)


def _world_message(claimed: int, found: int) -> str:
    return (
        f"WORLD_SIZE must equal the number of ranks in the process group, got {claimed} and {found}; on a CPU, "
        "start with ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N -m lrrunner"
    )
