"""``lrrunner launch.num_processes=N``: one job on ranks that this process starts and watches. No torch."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lrrunner.config.command_line import CommandLine, interrupted_start_lines, resume_command
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.launch.machine_checks import crowding_warning, machine_errors
from lrrunner.launch.rank_output import RankOutputFiles
from lrrunner.launch.worker_group import WorkerGroup
from lrrunner.reporting.progress_display import ProgressDisplay, progress_display
from lrrunner.reporting.run_summary import interrupted_lines
from lrrunner.results.artifacts import CONFIG_FILE, RANKS_FOLDER, STATUS_FILE
from lrrunner.results.run_state import JobResult, RunState
from lrrunner.results.status_file import as_recorded, read_status
from lrrunner.results.writer import new_run_path
from lrrunner.system import exit_codes
from lrrunner.system.devices import usable_cores, visible_gpus
from lrrunner.system.output.job_log import JobLog
from lrrunner.system.output.terminal import counted, fitted, shown_path, write_error, write_line
from lrrunner.system.processes.interrupt_counter import InterruptCounter
from lrrunner.system.temporary_folders import new_private_folder, remove_stale_folders
from lrrunner.tracking.names.run_names import default_run_name
from lrrunner.tracking.supervised_run import SupervisedRuns

POLL_S = 0.05

logger = logging.getLogger(__name__)


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
    directory = Path(config.run.resume or config.run.dir or new_run_path())
    job = Job(config=config, command_line=command_line).in_directory(directory)
    gpus = visible_gpus(os.environ)
    errors = [*machine_errors(config.launch, gpus), *([] if job.is_resumed else _directory_errors(directory))]
    if errors:
        raise ConfigError(errors)
    crowding = crowding_warning(config.launch, num_gpus=len(gpus), num_cores=len(usable_cores()))
    with JobLog(job.redactor), InterruptCounter() as interrupts:
        if crowding:
            logger.warning("%s", crowding)
        result = _run(job, gpus, interrupts)
    _print_end(result, job)
    return result.exit_code


def _directory_errors(directory: Path) -> list[str]:
    if (directory / STATUS_FILE).exists():
        return [f"run.dir must not hold a run yet, got {directory}; choose another directory"]
    return []


def _run(job: Job, gpus: tuple[str, ...], interrupts: InterruptCounter) -> JobResult:
    """Start the ranks, wait for the end of the job, and record it in files and MLflow."""
    mlflow_runs, run_id = SupervisedRuns(), None
    display = progress_display(quiet=job.command_line.quiet)
    output = RankOutputFiles(job.directory, job.redactor, echo=functools.partial(_print, display))
    display.announce(f"starting {counted(job.num_processes, 'rank')} ...")
    remove_stale_folders()
    group = _started_group(job, gpus, output)
    try:
        if not job.is_resumed and not interrupts.count:  # else rank 0 reopens the run; made while the ranks load torch
            run_id = mlflow_runs.create(
                job.config.tracking, job.directory, name=default_run_name(job.config), redactor=job.redactor
            )
        result = as_recorded(job.directory, _result(group, job, run_id, interrupts, display))
    finally:
        display.clear()
        group.close()
        output.flush()
    is_config_error = result.exit_code == exit_codes.CONFIG_ERROR
    if is_config_error and run_id is not None:
        mlflow_runs.delete(job.config.tracking, run_id, redactor=job.redactor)
    elif not (is_config_error and job.is_resumed):  # a run that could not be resumed stays as it was
        mlflow_runs.end(
            job.config.tracking,
            job.directory,
            result,
            run_id=run_id,
            redactor=job.redactor,
            at_once=interrupts.count > 1,
        )
    return result


def _started_group(job: Job, gpus: tuple[str, ...], output: RankOutputFiles) -> WorkerGroup:
    try:
        return WorkerGroup(job.plan(gpus=gpus), new_private_folder("mailbox-"), environ=os.environ, sink=output.write)
    except OSError as error:
        raise ConfigError([_no_room(error)]) from None


def _result(
    group: WorkerGroup, job: Job, run_id: str | None, interrupts: InterruptCounter, display: ProgressDisplay
) -> JobResult:
    """Give the ranks the job, and wait for its end."""
    try:
        group.start_job(job.message(0, run_id=run_id), timeout_s=job.timeout_s)
    except OSError as error:
        cause = str(ConfigError([_no_room(error)]))
        return JobResult(state=RunState.FAILED, exit_code=exit_codes.CONFIG_ERROR, cause=cause, is_reported=False)
    return _wait(group, interrupts, display)


def _no_room(error: OSError) -> str:
    folder = tempfile.gettempdir()
    return (
        f"TMPDIR must have room for the jobs and the output of the ranks, got {folder} ({error.strerror or error}); "
        "free some, or set it to another folder"
    )


def _wait(group: WorkerGroup, interrupts: InterruptCounter, display: ProgressDisplay) -> JobResult:
    """Wait for the end of the job; a first signal is passed on to the ranks, a second one kills them."""
    num_passed_on, shown = 0, None
    while (result := group.poll()) is None:
        if interrupts.count > num_passed_on:
            num_passed_on = interrupts.count
            assert interrupts.signal is not None
            if num_passed_on > 1:
                group.kill()
                return JobResult(
                    state=RunState.KILLED, exit_code=interrupts.exit_code, cause="stopped at once", is_reported=False
                )
            group.interrupt(interrupts.signal)
        progress = group.progress
        if progress is not None:
            display.show(progress)
        elif shown is not None:  # the steps are over
            display.clear()
        shown = progress
        time.sleep(POLL_S)
    if result.state == RunState.KILLED and interrupts.count:
        return replace(result, exit_code=interrupts.exit_code)
    return result


def _print(display: ProgressDisplay, name: str, text: str) -> None:
    """Print rank 0's output as this process's own."""
    stream = sys.stdout if name == "out" else sys.stderr
    if name == "err" and text.startswith("lrrunner: "):
        text = fitted(text, stream)
    with display.cleared():
        write_line(text, stream, end="")


def _print_end(result: JobResult, job: Job) -> None:
    """Print once what failed, and where the ranks' logs are, or what goes on with a run that was interrupted."""
    if result.state == RunState.KILLED and not result.is_reported:
        for line in _interrupted_lines(result, job):
            write_line(job.redactor.text(line))
    elif result.exit_code == exit_codes.CONFIG_ERROR and result.cause:
        write_error(job.redactor.text(result.cause))
    elif result.state == RunState.FAILED:
        logs = job.directory / RANKS_FOLDER
        where = f"; see {logs}" if logs.is_dir() else ""
        write_error(job.redactor.text(f"lrrunner: the sweep failed on {result.cause}{where}"))


def _interrupted_lines(result: JobResult, job: Job) -> list[str]:
    command = shlex.join(["lrrunner", *job.command_line.arguments])
    if not (job.directory / CONFIG_FILE).exists():
        return interrupted_start_lines(command)
    cause = read_status(job.directory).get("cause") or result.cause or ""
    return interrupted_lines(cause, resume=resume_command(command, shown_path(job.directory)))
