"""What one rank runs: join the world, agree on the job, build it, sweep, and (rank 0) report."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device

from lrrunner import collectives
from lrrunner.build import Parts, Regime, build, regime
from lrrunner.collectives import Collective
from lrrunner.config import Config, job_from
from lrrunner.engine import Trainable
from lrrunner.errors import ConfigError
from lrrunner.launch import launch_command
from lrrunner.logs import early_log, log_to, speak_on_stderr
from lrrunner.redaction import Redactor
from lrrunner.reporter import Reporter, shown_path
from lrrunner.signals import StopSignal
from lrrunner.stages import Measured, measure

BUILD_TIMEOUT = timedelta(hours=1)
"""Limit on collectives until the first step is over: downloads, first reads and compilation come before it."""

MAX_CAUSE_LENGTH = 300

LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """One rank's part in a run. ``reporter`` is rank 0's, from stage B on."""

    config: dict[str, Any]
    overrides: Sequence[str]
    options: Sequence[str]
    on_cpu: bool
    collective: Collective
    redactor: Redactor
    reporter: Reporter | None = None
    directory: Path | None = None


def work(container: Mapping[str, Any], overrides: Sequence[str], options: Sequence[str]) -> int:
    """Run one job on this rank; every rank must call this.

    Args:
        container: Resolved configuration that passed stage A; rank 0's binds every rank.
        overrides: The overrides as typed, for the record.
        options: Hydra's own flags as typed, for the command that repeats the run.

    Returns:
        Exit code of this process.
    """
    session = _joined(container, overrides, options)
    speak_on_stderr(session.redactor)

    def cut_off(cause: str) -> None:
        if session.reporter is not None:
            session.reporter.cut_off(cause)

    with StopSignal(on_stuck=cut_off, watch_parent=session.collective.world_size > 1) as stop_signal:
        try:
            code = _run(session, stop_signal)
        except ConfigError as error:
            if session.collective.rank == 0:
                print(session.redactor.text(str(error)), file=sys.stderr)
            code = EXIT_CONFIG
        except BaseException as error:  # noqa: BLE001 - the last stop of whatever a user's code or a dead peer raises
            try:
                _report_failure(error, session)
            finally:
                _leave(EXIT_FAILED)
    _end_world()
    return code


def _joined(container: Mapping[str, Any], overrides: Sequence[str], options: Sequence[str]) -> Session:
    """Join the world that the launcher describes and take over rank 0's configuration."""
    on_cpu = _must_use_cpu()
    PartialState(cpu=on_cpu, timeout=BUILD_TIMEOUT)
    collective = collectives.collective_for_world()
    claimed = int(os.environ.get("WORLD_SIZE", "1"))
    if claimed != collective.world_size:
        if os.environ.get("RANK", "0") == "0":
            print(_world_message(claimed, collective.world_size), file=sys.stderr)
        _leave(EXIT_CONFIG)
    config: dict[str, Any] = collective.broadcast(dict(container))
    redactor = Redactor.for_run(config, os.environ, overrides)
    return Session(config, overrides, options, on_cpu, collective, redactor)


def _run(session: Session, stop_signal: StopSignal) -> int:
    """Stage B, the sweep and the report. Holds every reference to the model, so that its return frees them."""
    job = job_from(session.config)
    with early_log() as early:
        try:
            chosen, parts = _stage_b(session, job)
        except ConfigError:
            raise
        except BaseException:
            if session.reporter is not None:
                log_to(session.reporter.directory.path, session.collective.rank, session.redactor, early)
            raise
    session.directory = session.collective.broadcast(session.reporter and session.reporter.directory.path)
    assert session.directory is not None
    log_to(session.directory, session.collective.rank, session.redactor, early)
    if session.reporter is not None:
        session.reporter.start(overrides=list(session.overrides), device=f"{PartialState().device}")
    measured = _sweep(session, job, parts, chosen, stop_signal)
    stop_signal.loop_ended()
    if session.reporter is not None:
        session.reporter.finish(measured.passes, measured.trials)
    return stop_signal.exit_code if measured.interrupted else EXIT_OK


def _stage_b(session: Session, job: Config) -> tuple[Regime, Parts]:
    """Build everything; all ranks go on, or all raise the errors of all."""
    errors: list[str] = []
    device = PartialState().device
    collective = session.collective
    chosen = regime(job, device=device, errors=errors)
    parts = build(job, device=device, errors=errors)
    session.config["train"] |= {
        "mixed_precision": chosen.mixed_precision,
        "compile": chosen.dynamo_backend != "no",
    }
    if collective.rank == 0:
        try:
            session.reporter = _reporter(session, job)
        except ConfigError as error:
            errors += error.errors
    try:
        _agree(collective, errors)
    except ConfigError:
        if session.reporter is not None:
            session.reporter.discard()
        raise
    assert parts is not None
    return chosen, parts


def _reporter(session: Session, job: Config) -> Reporter:
    world_size = session.collective.world_size
    words = [*session.options, *session.overrides]
    return Reporter(
        job=job,
        config=session.config,
        command=launch_command(words, num_processes=world_size, on_cpu=session.on_cpu),
        world_size=world_size,
        redactor=session.redactor,
    )


def _agree(collective: Collective, errors: list[str]) -> None:
    """Every rank leaves with the errors of all, or none does. Every rank must call this."""
    by_rank: list[list[str]] = collective.gather(errors)
    found: dict[str, list[int]] = {}
    for rank, messages in enumerate(by_rank):
        for message in messages:
            found.setdefault(message, []).append(rank)
    if found:
        raise ConfigError(
            message if ranks[0] == 0 else f"{message} (on rank {', '.join(map(str, ranks))})"
            for message, ranks in found.items()
        )


def _sweep(session: Session, job: Config, parts: Parts, chosen: Regime, stop_signal: StopSignal) -> Measured:
    """Wrap the parts for the world, climb the ladder and what follows it."""
    accelerator = _accelerator(job, chosen, session.on_cpu)
    try:
        return measure(
            job,
            parts,
            _trainable(job, parts, chosen, accelerator),
            collective=session.collective,
            reporter=session.reporter,
            stop_requested=lambda: stop_signal.requested,
        )
    finally:
        accelerator.free_memory()


def _accelerator(job: Config, chosen: Regime, on_cpu: bool) -> Accelerator:
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


def _trainable(job: Config, parts: Parts, chosen: Regime, accelerator: Accelerator) -> Trainable:
    model = accelerator.prepare_model(parts.model)
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
        no_sync=functools.partial(accelerator.no_sync, model),
        to_device=_to_device(accelerator.device),
    )


def _to_device(device: torch.device) -> Callable[[Any], Any]:
    if device.type == "cpu":
        return lambda batch: batch
    return functools.partial(send_to_device, device=device, non_blocking=True)


def _report_failure(error: BaseException, session: Session) -> None:
    """Say once what failed, where and why, and leave nothing running in files or MLflow."""
    rank = session.collective.rank
    own_cause = session.redactor.text(f"rank {rank}: {_in_one_line(error)}")
    logger.info("the sweep failed", exc_info=error)
    first_cause = collectives.first_failure(own_cause)
    if own_cause == first_cause:
        where = f"; see {shown_path(session.directory / 'ranks' / f'{rank}.log')}" if session.directory else ""
        print(f"lrrunner: the sweep failed on {first_cause}{where}", file=sys.stderr, flush=True)
    if session.reporter is not None:
        session.reporter.fail(first_cause)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:MAX_CAUSE_LENGTH]
    if isinstance(error, RuntimeError) and any(mark in text for mark in LOST_CONNECTION):
        return f"another rank is gone, its connection was lost ({text})"
    return f"{type(error).__name__}: {text}"


def _leave(code: int) -> NoReturn:
    """End a failed rank at once: frames of the traceback still hold DDP, whose end after its world's may abort."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_world() -> None:
    """Free what still refers to DDP, then destroy the process group: the other order aborts up to half of gloo runs."""
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _must_use_cpu() -> bool:
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    return asked or not torch.cuda.is_available()


def _world_message(claimed: int, found: int) -> str:
    return str(
        ConfigError(
            [
                f"WORLD_SIZE must equal the number of ranks in the process group, got {claimed} and {found}; on a CPU, "
                "start with ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N -m lrrunner"
            ]
        )
    )
