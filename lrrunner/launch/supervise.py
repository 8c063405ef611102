"""``lrrunner launch.num_processes=N``: one sweep on ranks that this process starts and watches. No torch."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lrrunner.config.command_line import CommandLine
from lrrunner.config.schema import Config, LaunchConfig
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job, OutputFiles, echo
from lrrunner.launch.mailbox import sweep
from lrrunner.launch.rank_command import DEEPSPEED_REFUSED
from lrrunner.launch.worker_group import WorkerGroup
from lrrunner.results.run_state import JobResult, RunState
from lrrunner.results.writer import new_run_path
from lrrunner.system import exit_codes
from lrrunner.system.devices import visible_gpus
from lrrunner.system.interrupt_counter import InterruptCounter
from lrrunner.system.job_log import JobLog
from lrrunner.system.terminal import write_line
from lrrunner.tracking.supervised_run import SupervisedRun

POLL_S = 0.05
SET_PREFIX = "lrrunner-set-"


def supervise(config: Config, command_line: CommandLine) -> int:
    """Run one job on ``launch.num_processes`` ranks of this machine.

    Args:
        config: Configuration that passed stage A.
        command_line: Arguments of this command.

    Returns:
        Exit code: 0 the sweep ran to its end, 1 it failed, 2 the configuration is wrong, 128 + signal.

    Raises:
        ConfigError: this machine, or the tracking store, cannot do what is asked.
    """
    resumes = config.run.resume is not None
    directory = Path(config.run.resume or config.run.dir or new_run_path())
    job = Job(config=config, command_line=command_line).in_directory(directory)
    gpus = visible_gpus(os.environ)
    errors = [*machine_errors(config.launch, gpus), *([] if resumes else _directory_errors(directory))]
    if errors:
        raise ConfigError(errors)
    with JobLog(job.redactor), InterruptCounter() as interrupts:
        keeper = SupervisedRun()
        run_id = None
        output = OutputFiles(directory, job.redactor, echo=echo)
        sweep(Path(tempfile.gettempdir()).glob(f"{SET_PREFIX}*"))
        folder = Path(tempfile.mkdtemp(prefix=SET_PREFIX))
        ranks = WorkerGroup(job.plan(gpus=gpus), folder, environ=os.environ, sink=output.take)
        try:
            if not resumes:  # else rank 0 reopens the run that there is
                run_id = keeper.open(
                    job.config.tracking, directory, redactor=job.redactor
                )  # while the ranks load torch
            ranks.give(job.message(0, run_id=run_id), timeout_s=job.timeout_s)
            result = _watched(ranks, interrupts)
        finally:
            ranks.close()
            output.flush()
        if result.exit_code == exit_codes.CONFIG_ERROR and run_id is not None:
            keeper.discard(job.config.tracking, run_id, redactor=job.redactor)
        elif (
            result.exit_code != exit_codes.CONFIG_ERROR or not resumes
        ):  # a run that could not be resumed is what it was
            keeper.close(job.config.tracking, directory, result, run_id=run_id, redactor=job.redactor)
    _say(result, job)
    return result.exit_code


def machine_errors(launch: LaunchConfig, gpus: tuple[str, ...]) -> list[str]:
    """Values of the section ``launch`` that this machine cannot satisfy."""
    num_processes, concurrent, file = launch.num_processes or 1, launch.concurrent, launch.config_file
    errors = []
    if file is not None and not Path(file).is_file():
        errors.append(f"launch.config_file must be a file of accelerate launch, got {file}; correct the path")
    elif file is not None and "DEEPSPEED" in Path(file).read_text(encoding="utf-8", errors="replace"):
        errors.append(DEEPSPEED_REFUSED.format(f"launch.config_file={file}"))
    if gpus and file is None and num_processes * concurrent > len(gpus):
        sets = "" if concurrent == 1 else f" x launch.concurrent={concurrent}"
        errors.append(
            f"launch.num_processes{sets} must be at most the {len(gpus)} GPU(s) of this machine, got {num_processes}; "
            "ask for fewer, or train on CPUs with ACCELERATE_USE_CPU=1"
        )
    return errors


def _directory_errors(directory: Path) -> list[str]:
    if (directory / "status.json").exists():
        return [f"run.dir must not hold a run yet, got {directory}; choose another directory"]
    return []


def _watched(ranks: WorkerGroup, interrupts: InterruptCounter) -> JobResult:
    """Until the job has ended; a first signal is passed on, a second one ends the ranks."""
    passed_on = 0
    while (result := ranks.poll()) is None:
        if interrupts.count > passed_on:
            passed_on = interrupts.count
            assert interrupts.signal is not None
            if passed_on > 1:
                ranks.kill()
                return JobResult(
                    state=RunState.KILLED, exit_code=interrupts.exit_code, cause="stopped at once", is_reported=False
                )
            ranks.interrupt(interrupts.signal)
        time.sleep(POLL_S)
    if result.state == RunState.KILLED and interrupts.count:
        return replace(result, exit_code=interrupts.exit_code)
    return result


def _say(result: JobResult, job: Job) -> None:
    """Once, what went wrong."""
    if result.exit_code == exit_codes.CONFIG_ERROR and result.cause:
        write_line(job.redactor.text(result.cause), sys.stderr)
    elif result.state == RunState.FAILED:
        logs = job.directory / "ranks"
        where = f"; see {logs}" if logs.is_dir() else ""
        write_line(job.redactor.text(f"lrrunner: the sweep failed on {result.cause}{where}"), sys.stderr)
