"""A grid as a Slurm array: the points of one task, and the summary after the last task. No torch.

A task writes nothing but its own run directories. MLflow is left to the summary job: tasks that create one database at
the same time would crash each other.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from lrrunner.batch import ledger
from lrrunner.batch.collect import entry_from_run
from lrrunner.batch.directory import batch_lock
from lrrunner.batch.ledger import Entry
from lrrunner.batch.points import BatchJob, batch_jobs, checked_points
from lrrunner.batch.state import update_state
from lrrunner.batch.summary.summary_files import write_summary
from lrrunner.batch.summary.terminal_table import terminal_table
from lrrunner.batch.sync_batch import upload_batch
from lrrunner.config.command_line import CommandLine, parse_command_line
from lrrunner.config.composition import expand_grid
from lrrunner.errors import ConfigError
from lrrunner.results.run_state import RunState
from lrrunner.system import exit_codes
from lrrunner.system.output.output_streams import forgive_closed_output

NEVER_BEGAN = "it never began; see its task's output"


def main() -> NoReturn:
    """``python -m lrrunner.slurm.array task DIRECTORY INDEX COUNT ...``, or ``summary DIRECTORY ...``."""
    forgive_closed_output()
    try:
        command, directory, *arguments = sys.argv[1:]
        if command == "task":
            index, count, *arguments = arguments
            fields = task_arguments(directory, int(index), int(count), arguments)
            sys.stdout.write("".join(f"{field}\0" for field in fields))
            sys.exit(exit_codes.OK)
        Path(directory).mkdir(parents=True, exist_ok=True)
        with batch_lock(Path(directory)):
            sys.exit(summarize(Path(directory), parse_command_line(arguments)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_codes.CONFIG_ERROR)
    except BlockingIOError as error:
        print(f"lrrunner: {error}", file=sys.stderr)
        sys.exit(exit_codes.FAILED)


def task_arguments(directory: str, index: int, count: int, arguments: Sequence[str]) -> Iterator[str]:
    """What one task of an array runs: for each point its run directory, its number of arguments, and these.

    Args:
        directory: Of the array.
        index: Number of the task, from 0.
        count: Number of tasks; task i takes the points i, i + count, ...
        arguments: Overrides with Hydra's sweeps in them, and Hydra's own flags.
    """
    command_line = parse_command_line(arguments)
    for number, point in list(enumerate(expand_grid(command_line)))[index::count]:
        own = [*command_line.with_overrides(point).arguments, "tracking.enabled=false"]
        yield from (f"{directory}/{number:03d}", str(len(own)), *own)


def summarize(directory: Path, command_line: CommandLine) -> int:
    """Write ledger, summary and figures from what the tasks left, and upload all to MLflow if that is wanted.

    Args:
        directory: Of the array; this process holds its lock.
        command_line: The array's arguments.

    Returns:
        0 when every point has finished, else 1.

    Raises:
        ConfigError: the arguments are wrong.
    """
    points = expand_grid(command_line)
    configs = checked_points(points, command_line, gpus=())
    jobs = batch_jobs(points, configs, command_line, directory=directory, salt="")
    entries = [_entry(directory, job) for job in jobs]
    known = ledger.latest(ledger.read(directory))
    for entry in entries:
        if known.get(entry.key) != entry:
            ledger.append(directory, entry)
    finished = all(entry.state == RunState.FINISHED for entry in entries)
    update_state(directory, num_jobs=len(entries), state=RunState.FINISHED if finished else RunState.FAILED)
    write_summary(directory, entries)
    print(terminal_table(entries), flush=True)
    if configs[0].tracking.enabled:
        _upload(directory)
    return exit_codes.OK if finished else exit_codes.FAILED


def _entry(directory: Path, job: BatchJob) -> Entry:
    """How one point ended; its key is the name of its run directory."""
    entry = entry_from_run(directory, replace(job, key=job.job.directory.name))
    return entry if entry.run_dir is not None else replace(entry, cause=NEVER_BEGAN)


def _upload(directory: Path) -> None:
    """Upload all runs and the summary; a store that does not take them does not fail the array."""
    try:
        lines = upload_batch(directory)
    except (ConfigError, ConnectionError, BlockingIOError) as error:
        command = shlex.join(["lrrunner-sync", str(directory)])
        print(f"lrrunner: not uploaded to MLflow ({error}); upload it later with: {command}", file=sys.stderr)
    else:
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
