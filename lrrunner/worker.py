"""What one rank runs: join the world, agree on the job, build it, sweep, and (rank 0) report."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from tqdm import tqdm

import lrrunner
from lrrunner import collectives, report
from lrrunner.build import Parts, Regime, batch_plan, build, planned_loader, regime
from lrrunner.collectives import Collective
from lrrunner.config import Config, batch_summary, job_from
from lrrunner.core.curve import pooled_steps
from lrrunner.core.schedule import LADDERS
from lrrunner.core.stopping import stop_rule
from lrrunner.core.suggestion import suggest
from lrrunner.engine import Ladder, SweepResult, Trainable, run_sweep
from lrrunner.errors import ConfigError
from lrrunner.launch import launch_command
from lrrunner.records import RangeTest, Step, StopReason
from lrrunner.redaction import RedactingFormatter, Redactor
from lrrunner.run_directory import RunDirectory, new_run_path
from lrrunner.signals import StopSignal
from lrrunner.tracking import MlflowRun, configure_mlflow

BUILD_TIMEOUT = timedelta(hours=1)
"""Limit on collectives until the first step is over: downloads, first reads and compilation come before it."""

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2

logger = logging.getLogger("lrrunner")


@dataclass
class Reporter:
    """Rank 0's side of a run: directory, MLflow, progress bar. Other ranks have none."""

    directory: RunDirectory
    mlflow: MlflowRun | None
    bar: Any
    steps: list[Step] = field(default_factory=list)

    def on_step(self, step: Step) -> None:
        """Take in one record; no network and no drawing here."""
        self.steps.append(step)
        self.directory.record(step)
        if self.mlflow is not None:
            self.mlflow.log(step)
        if not self.bar.disable:
            self.bar.set_postfix_str(f"lr {step.lr:.1e}, loss {step.smoothed_loss:.4g}", refresh=False)
            self.bar.update(not step.skipped)

    def end_with(self, status: str, cause: str) -> None:
        """Record an end that came before the report."""
        state = {"FAILED": "failed", "KILLED": "killed"}[status]
        self.directory.update_status(state=state, cause=cause)
        if self.mlflow is not None and self.mlflow.run_id:
            self.mlflow.set_status(status)


def work(container: Mapping[str, Any], overrides: Sequence[str], options: Sequence[str]) -> int:
    """Run one job on this rank; every rank must call this.

    Args:
        container: Resolved configuration that passed stage A; rank 0's binds every rank.
        overrides: The overrides as typed, for the record.
        options: Hydra's own flags as typed, for the command that repeats the run.

    Returns:
        Exit code of this process.
    """
    _speak_on_stderr()
    on_cpu = _must_use_cpu()
    PartialState(cpu=on_cpu, timeout=BUILD_TIMEOUT)
    collective = collectives.collective_for_world()
    claimed = int(os.environ.get("WORLD_SIZE", "1"))
    if claimed != collective.world_size:
        print(_world_message(claimed, collective.world_size), file=sys.stderr)
        return EXIT_CONFIG
    agreed: dict[str, Any] = collective.broadcast(dict(container))
    redactor = Redactor.for_run(agreed, os.environ, overrides)
    reporters: list[Reporter] = []

    def on_stuck(cause: str) -> None:
        for stuck in reporters:
            stuck.end_with("KILLED", cause)

    with StopSignal(on_stuck=on_stuck, watch_parent=collective.world_size > 1) as stop_signal:
        try:
            code = _run(agreed, overrides, options, on_cpu, collective, redactor, stop_signal, reporters)
        except ConfigError as error:
            if collective.rank == 0:
                print(redactor.text(str(error)), file=sys.stderr)
            code = EXIT_CONFIG
        except Exception as error:  # noqa: BLE001 - the last stop of whatever a user's code or a peer's death raises
            _report_failure(error, collective, redactor, reporters)
            _leave(EXIT_FAILED)
    _end_world()
    return code


def _run(
    agreed: dict[str, Any],
    overrides: Sequence[str],
    options: Sequence[str],
    on_cpu: bool,
    collective: Collective,
    redactor: Redactor,
    stop_signal: StopSignal,
    reporters: list[Reporter],
) -> int:
    """Stage B, the sweep and the report. Holds every reference to the model, so that its return frees them."""
    job = job_from(agreed)
    errors: list[str] = []
    with _early_log() as early:
        device = PartialState().device
        chosen = regime(job, device=device, errors=errors)
        parts = build(job, device=device, world_size=collective.world_size, errors=errors)
        agreed["train"] |= {
            "mixed_precision": chosen.mixed_precision,
            "compile": chosen.dynamo_backend != "no",
        }
        if collective.rank == 0:
            reporters += _reporter(agreed, overrides, job, redactor, errors)
        try:
            _agree(collective, errors)
        except ConfigError:
            for unused in reporters:
                unused.directory.discard()
            raise
    assert parts is not None
    directory = collective.broadcast(str(reporters[0].directory.path) if reporters else None)
    _log_to(Path(directory), collective.rank, redactor, early)
    reporter = reporters[0] if reporters else None
    if reporter is not None:
        _start(reporter, agreed, job, collective.world_size)
    result = _sweep(job, parts, chosen, on_cpu, collective, stop_signal, reporter)
    stop_signal.loop_ended()
    interrupted = any(stop.reason == StopReason.INTERRUPTED for stop in result.stops)
    if reporter is not None:
        command = launch_command([*options, *overrides], num_processes=collective.world_size, on_cpu=on_cpu)
        _report(reporter, job, result, collective.world_size, redactor, redactor.text(command), interrupted)
    return stop_signal.exit_code if interrupted else EXIT_OK


def _sweep(
    job: Config,
    parts: Parts,
    chosen: Regime,
    on_cpu: bool,
    collective: Collective,
    stop_signal: StopSignal,
    reporter: Reporter | None,
) -> SweepResult:
    """Wrap the parts for the world and climb the ladder."""
    accelerator = _accelerator(job, chosen, on_cpu)
    trainable = _trainable(job, parts, chosen, accelerator)
    plan = batch_plan(job, num_samples=parts.num_samples, world_size=collective.world_size)
    num_steps = job.sweep.num_steps
    ladder = Ladder(
        lrs=LADDERS[job.sweep.mode.value](
            start_lr=job.sweep.start_lr, end_lr=job.sweep.end_lr, num_steps=num_steps
        ).tolist(),
        beta=job.sweep.smoothing,
        new_stop_rule=functools.partial(
            stop_rule, job.sweep.stop_rule.value, factor=job.sweep.diverge_factor, num_steps=num_steps
        ),
        repeats=job.sweep.repeats,
        seed=job.sweep.seed,
        sync_every_step=job.sweep.sync_every_step,
    )

    def on_step(step: Step) -> None:
        if step.step == 0 and step.repeat == 0:
            collectives.set_timeout(job.run.timeout_s)
        if reporter is not None:
            reporter.on_step(step)

    def batches(repeat: int) -> Iterator[Any]:
        return iter(planned_loader(parts, job, plan, repeat=repeat, rank=collective.rank))

    try:
        return run_sweep(
            trainable,
            ladder,
            batches,
            collective=collective,
            on_step=on_step,
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


def _reporter(
    agreed: dict[str, Any], overrides: Sequence[str], job: Config, redactor: Redactor, errors: list[str]
) -> list[Reporter]:
    """Rank 0's run directory and MLflow connection; their troubles join the errors of stage B."""
    directory, mlflow = None, None
    try:
        directory = RunDirectory(Path(job.run.dir) if job.run.dir else new_run_path(), redactor)
    except ConfigError as error:
        errors += error.errors
    if job.tracking.enabled:
        try:
            configure_mlflow(job.tracking.timeout_s)
            mlflow = MlflowRun(uri=job.tracking.uri, experiment=job.tracking.experiment, redactor=redactor)
        except ConfigError as error:
            errors += error.errors
        except ConnectionError as error:
            logger.warning("MLflow does not answer (%s); the run directory keeps everything", error)
    if directory is None:
        return []
    directory.write_inputs(agreed, overrides)
    bar = tqdm(
        total=job.sweep.num_steps * job.sweep.repeats,
        desc="LR sweep",
        unit="step",
        disable=None,  # quiet when not a terminal
        dynamic_ncols=True,
    )
    return [Reporter(directory, mlflow, bar)]


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


def _start(reporter: Reporter, agreed: dict[str, Any], job: Config, world_size: int) -> None:
    """Open the MLflow run, now that the world is proven to be up, and say what will be done."""
    directory, mlflow = reporter.directory, reporter.mlflow
    if mlflow is not None:
        tags = {
            "lrrunner.world_size": str(world_size),
            "lrrunner.version": lrrunner.__version__,
            "lrrunner.run_dir": str(directory.path),
        }
        try:
            mlflow.start(
                run_name=job.tracking.run_name or directory.path.name,
                params=agreed,
                tags=tags | {key: str(value) for key, value in job.tracking.tags.items()},
                live_prefix="" if job.sweep.repeats == 1 else "repeat_{repeat}/",
            )
        except Exception as error:  # noqa: BLE001 - a server that fails now must not cost the sweep
            logger.warning("MLflow failed (%s); the run directory keeps everything", error)
            reporter.mlflow = mlflow = None
    directory.update_status(
        state="running",
        mlflow_run_id=mlflow.run_id if mlflow is not None else None,
        last_step=None,
        cause=None,
        version=lrrunner.__version__,
    )
    summary = batch_summary(job, world_size=world_size)
    logger.info("%s, torch %s, %s", summary, torch.__version__, PartialState().device)
    print(summary, flush=True)


def _report(
    reporter: Reporter,
    job: Config,
    result: SweepResult,
    world_size: int,
    redactor: Redactor,
    command: str,
    interrupted: bool,
) -> None:
    """After the last collective: suggestion, picture, MLflow, closing lines."""
    from lrrunner.plotting import lr_sweep_figure, save_png

    reporter.bar.close()
    directory, mlflow = reporter.directory, reporter.mlflow
    beta = job.sweep.smoothing
    test = RangeTest(
        steps=result.steps,
        stops=result.stops,
        suggestion=suggest(result.steps, result.stops, method=job.suggestion.method, beta=beta),
        world_size=world_size,
        global_batch_size=job.data.global_batch_size,
    )
    logger.info("%s; %s", test.stop, test.suggestion)
    directory.write_suggestion(test)
    picture = directory.path / "lr_sweep.png"
    names = [str(part["_target_"]).rpartition(".")[2] for part in (job.model, job.optimizer)]
    figure = lr_sweep_figure(
        test, beta=beta, title=" with ".join(names), subtitle=batch_summary(job, world_size=world_size)
    )
    save_png(figure, picture)
    directory.update_status(
        state="killed" if interrupted else "finished",
        last_step=result.steps[-1].step if result.steps else None,
        cause=str(test.stop) if interrupted else None,
    )
    if mlflow is not None:
        mlflow.finish(
            status="KILLED" if interrupted else "FINISHED",
            test=test,
            pooled=pooled_steps(result.steps, beta=beta) if job.sweep.repeats > 1 else (),
            note=report.note(test, job, run_id=mlflow.run_id, command=command, directory=str(directory.path)),
            files=directory.files(),
            root=directory.path,
            picture=picture,
        )
        if mlflow.error:
            logger.warning("MLflow is missing something (%s); the run directory has it all", mlflow.error)
    location = mlflow.location() if mlflow is not None else None
    for line in report.closing_lines(test, job, directory=_shown_path(directory.path), mlflow=location):
        print(redactor.text(line), flush=True)


def _shown_path(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _report_failure(error: Exception, collective: Collective, redactor: Redactor, reporters: list[Reporter]) -> None:
    """Say once what failed, where and why, and leave nothing running in files or MLflow."""
    text = str(error).strip().splitlines()
    own_cause = redactor.text(f"rank {collective.rank}: {type(error).__name__}: {text[0] if text else ''}")
    logger.info("the sweep failed", exc_info=error)
    first_cause = collectives.first_failure(own_cause)
    if own_cause == first_cause:
        log = f"ranks/{collective.rank}.log"
        where = f"; see {_shown_path(reporters[0].directory.path / log)}" if reporters else f"; see {log}"
        print(f"lrrunner: the sweep failed on {first_cause}{where}", file=sys.stderr, flush=True)
    for reporter in reporters:
        reporter.bar.close()
        last = reporter.steps[-1].step if reporter.steps else None
        reporter.directory.update_status(state="failed", last_step=last, cause=first_cause)
        if reporter.mlflow is not None and reporter.mlflow.run_id:
            directory = reporter.directory
            reporter.mlflow.finish(
                status="FAILED",
                note=f"**Failed** on {first_cause}",
                files=directory.files(),
                root=directory.path,
            )


def _leave(code: int) -> None:
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
    return asked or not torch.accelerator.is_available()


def _world_message(claimed: int, found: int) -> str:
    return str(
        ConfigError(
            [
                f"WORLD_SIZE must equal the number of ranks in the process group, got {claimed} and {found}; on a CPU, "
                "start with ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N -m lrrunner"
            ]
        )
    )


def _speak_on_stderr() -> None:
    """Warnings reach the terminal as one line each; tracebacks and information go to the rank's log only."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("lrrunner: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # it logs what stage B reports in its own words


@contextlib.contextmanager
def _early_log() -> Iterator[MemoryHandler]:
    """Keep log records until there is a directory to write them to."""
    handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def _log_to(directory: Path, rank: int, redactor: Redactor, early: MemoryHandler) -> None:
    """ranks/<rank>.log, made when there is something to write; on a node without the directory, nowhere."""
    if not directory.is_dir():
        return
    handler = logging.FileHandler(directory / "ranks" / f"{rank}.log", delay=True, encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", redactor))
    logger.addHandler(handler)
    early.setTarget(handler)
    early.flush()
