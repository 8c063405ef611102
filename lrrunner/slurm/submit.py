"""The part of ``scripts/submit`` in Python: check a configuration before it queues, follow the job. No torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import compose_points, expand_grid
from lrrunner.errors import ConfigError
from lrrunner.slurm.time_limit import check_time_limit
from lrrunner.system import exit_codes
from lrrunner.system.output.output_streams import forgive_closed_output
from lrrunner.system.output.terminal import write_line
from lrrunner.system.processes.start_signals import signals_end_start

POLL_S = 1.0
ENDED = re.compile(r"COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY|BOOT_FAIL|DEADLINE")


def main() -> NoReturn:
    """``python -m lrrunner.slurm.submit KIND [overrides]``, ``limit SCRIPT [options]``, or ``follow JOB``."""
    forgive_closed_output()
    kind, *arguments = sys.argv[1:]
    if kind == "follow":
        job = arguments[0]
        with signals_end_start(lambda: write_line(f"job {job}: goes on without this terminal; scancel {job} ends it")):
            code = follow(job)
        sys.exit(code)
    try:
        if kind == "limit":
            script, *options = arguments
            check_time_limit(Path(script).read_text(encoding="utf-8"), options, os.environ)
        else:
            print(num_checked_jobs(kind, arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_codes.CONFIG_ERROR)
    sys.exit(exit_codes.OK)


def num_checked_jobs(kind: str, arguments: Sequence[str]) -> int:
    """Compose and check every job of a submission.

    How many ranks will share a global batch is not checked: only the job knows.

    Args:
        kind: ``sweep`` for one job; ``batch`` or ``array`` for a grid.
        arguments: Overrides, and Hydra's own flags.

    Returns:
        The number of jobs.

    Raises:
        ConfigError: the configuration of a job is wrong.
    """
    given = parse_command_line(arguments)
    command_line = given.with_overrides(
        override for override in given.overrides if not override.startswith(("run.dir=", "run.resume="))
    )
    points = [command_line.overrides] if kind == "sweep" else expand_grid(command_line)
    outcomes = compose_points(command_line, points, world_size=None)
    if errors := [error for outcome in outcomes if isinstance(outcome, ConfigError) for error in outcome.errors]:
        raise ConfigError(errors)
    return len(points)


def follow(job: str) -> int:
    """Print the output of a job as it comes, until the job has ended.

    Returns:
        Its exit code; 128 + the signal that ended it.
    """
    position, shown = 0, ""
    while True:
        state, code, output, reason = _job(job)
        if state == "PENDING" and reason != shown:
            shown = reason
            print(f"job {job}: pending ({reason})", flush=True)
        if output is not None and output.exists():
            with output.open("rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if state is None or ENDED.fullmatch(state):
            print(f"job {job}: {state or 'unknown'}", flush=True)
            return code if state != "CANCELLED" or code else exit_codes.TERMINATED
        time.sleep(POLL_S)


def _job(job: str) -> tuple[str | None, int, Path | None, str]:
    """State, exit code, output file and reason as ``scontrol`` shows them; no state for a job that it has forgotten."""
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False).stdout
    fields = dict(re.findall(r"(?:^| )([A-Za-z]+)=(\S*)", shown))
    code, _, number = fields.get("ExitCode", "1:0").partition(":")
    output = fields.get("StdOut")
    exit_code = int(code) or (exit_codes.signal_exit_code(int(number)) if int(number or 0) else 0)
    return fields.get("JobState"), exit_code, Path(output) if output else None, fields.get("Reason", "None")


if __name__ == "__main__":
    main()
