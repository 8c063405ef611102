"""``lrrunner``: compose, validate, then run a job or a batch. No torch before the configuration is right."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from lrrunner.cli.hydra_flags import answer
from lrrunner.cli.interrupted_start import interrupts_end_start
from lrrunner.config.command_line import CommandLine, parse_command_line, unknown_flag_message
from lrrunner.config.composition import compose_job, override_key
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.launch.machine_checks import machine_errors
from lrrunner.results.resume_checks import directory_errors, is_finished
from lrrunner.system import exit_codes
from lrrunner.system.environment import is_launched
from lrrunner.system.garbage_collection import collection_paused, exempt_from_collection
from lrrunner.system.output.job_log import JobLog
from lrrunner.system.output.output_streams import forgive_closed_output
from lrrunner.system.output.redaction import Redactor, shortened
from lrrunner.system.output.terminal import counted, write_error, write_line
from lrrunner.system.plain_values import to_plain
from lrrunner.system.temporary_folders import remove_stale_folders

RANK_0_FIRST_S = 5.0
"""How long another rank waits with a configuration error: rank 0 prints the same one first, and ends every rank."""

HYDRA_KEYS = {
    "hydra.run.dir": "give run.dir=...",
    "hydra.output_subdir": "give run.dir=...",
    "hydra.sweep": "for a batch of runs, write lrrunner -m",
    "hydra.launcher": "for a batch of runs, write lrrunner -m",
    "hydra.sweeper": "for a batch of runs, write lrrunner -m",
}
"""Keys of Hydra that a single run ignores, and what to do instead."""

MAX_MESSAGE_LENGTH = 2000
"""Of one error, which may quote a value that was typed."""


def main() -> NoReturn:
    """Console script ``lrrunner``, and ``python -m lrrunner``, once everything that it needs is imported."""
    forgive_closed_output()
    with interrupts_end_start():
        code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # only the interpreter has yet to end: no traceback
    exempt_from_collection()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        Exit code: 0 the sweep ran to its end, 1 it failed, 2 the configuration is wrong, 143 ended by SIGTERM.
    """
    command_line = parse_command_line(arguments)
    rank = int(os.environ.get("RANK", "0"))
    is_wrong = bool(command_line.unsupported or command_line.unknown)
    if command_line.hydra_flags and not is_wrong:
        return _answered(arguments, command_line) if rank == 0 else exit_codes.OK
    _import_from_working_directory()
    world_size = _world_size() if is_launched() else None
    try:
        if command_line.multirun and world_size is None and not is_wrong:
            return _run_grid(command_line)
        config = _checked_config(command_line, world_size)
        if world_size is None and is_finished(config.run):
            return _complete_finished(config, command_line)
        if config.launch.num_processes is not None and world_size is None:
            from lrrunner.launch.supervise import supervise

            return supervise(config, command_line)
    except ConfigError as error:
        _print_error(error, command_line, rank)
        return exit_codes.CONFIG_ERROR
    return _run_here(config, command_line, world_size=world_size or 1, quiet=command_line.quiet or rank != 0)


def _run_here(config: Config, command_line: CommandLine, *, world_size: int, quiet: bool) -> int:
    """Run the job in this process, which imports torch first and says so."""
    from lrrunner.reporting.progress_display import progress_display

    display = progress_display(quiet=quiet)
    display.announce(f"starting {counted(world_size, 'rank')} ...")
    with collection_paused():
        from lrrunner.worker.run_job import run_in_new_world
    display.clear()
    return run_in_new_world(config, command_line)


def _answered(arguments: Sequence[str], command_line: CommandLine) -> int:
    """Exit code of a command that only asks for help, for the configuration or for a completion."""
    try:
        answer(arguments, command_line)
    except ConfigError as error:
        _print_error(error, command_line, 0)
        return exit_codes.CONFIG_ERROR
    return exit_codes.OK


def _complete_finished(config: Config, command_line: CommandLine) -> int:
    from lrrunner.tracking.finished_run import complete_finished_run

    remove_stale_folders()
    redactor = Redactor.for_run(to_plain(config), os.environ, command_line.overrides)
    with JobLog(redactor):
        for line in complete_finished_run(config, redactor):
            write_line(line)
    return exit_codes.OK


def _world_size() -> int:
    """Ranks that the launcher promises; 1 if the variable is no number, which is reported where the world is joined."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def _import_from_working_directory() -> None:
    """Let a ``_target_`` name a module in the working directory, as ``python -m`` does for ranks."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _run_grid(command_line: CommandLine) -> int:
    from lrrunner.slurm import submitit_launcher

    if submitit_launcher.uses_submitit(command_line.overrides):
        return submitit_launcher.run_with_submitit(command_line)
    from lrrunner.batch.run_batch import run_batch

    return run_batch(command_line)


def _checked_config(command_line: CommandLine, world_size: int | None) -> Config:
    """Stage A.

    Args:
        command_line: The parsed arguments.
        world_size: Number of ranks; None outside of a launcher.

    Raises:
        ConfigError: all errors at once.
    """
    if command_line.unsupported or command_line.unknown:
        unsupported = "is not supported; name your own directory with --config-dir"
        raise ConfigError(
            [f"{flag} {unsupported}" for flag in command_line.unsupported]
            + [unknown_flag_message(flag) for flag in command_line.unknown]
        )
    if command_line.multirun:
        raise ConfigError([_batch_in_ranks(command_line, world_size or 1)])
    if errors := [error for override in command_line.overrides for error in _hydra_key_errors(override)]:
        raise ConfigError(errors)
    config = compose_job(command_line, world_size=world_size)
    if world_size is None:  # in ranks, rank 0 checks the directory
        errors = [] if config.run.resume is None else directory_errors(config.run)
        if config.launch.num_processes is None:  # else the supervisor checks what it starts
            errors += machine_errors(config.launch, gpus=())
        if errors:
            raise ConfigError(errors)
    return config


def _hydra_key_errors(override: str) -> Iterator[str]:
    """Keys of Hydra's own that a single run would ignore."""
    key = override_key(override)
    for name, hint in HYDRA_KEYS.items():
        if key == name or key.startswith(f"{name}."):
            yield f"{key} has no effect in a single run, got {override}; {hint}"


def _batch_in_ranks(command_line: CommandLine, world_size: int) -> str:
    ranks = f"launch.num_processes={max(2, world_size)}"
    command = shlex.join(["lrrunner", "-m", *command_line.options, ranks, *command_line.overrides])
    return (
        f"-m must not be given inside {world_size} ranks, got {' '.join(command_line.overrides)}; "
        f"one parent starts them: {command}"
    )


def _print_error(error: ConfigError, command_line: CommandLine, rank: int) -> None:
    """Print the message once: on rank 0, and on another rank only if rank 0 has found no error."""
    prefix = ""
    if rank != 0:
        time.sleep(RANK_0_FIRST_S)
        prefix = f"[rank {rank}] "
    redactor = Redactor.for_run({}, os.environ, command_line.overrides)
    lines = redactor.text(str(error)).split("\n")
    write_error(prefix + "\n".join(shortened(line, MAX_MESSAGE_LENGTH) for line in lines))
