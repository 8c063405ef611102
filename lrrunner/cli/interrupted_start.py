"""A command that Ctrl-C ends while it imports, composes, or meets the other ranks. Imports no more than it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lrrunner.config.command_line import interrupted_start_lines, launch_command
from lrrunner.system.environment import USE_CPU_VARIABLE, launcher_switch_is_on
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import erase_line, write_line
from lrrunner.system.processes.start_signals import signals_end_start


@contextmanager
def interrupts_end_start() -> Iterator[None]:
    """Until a handler that saves takes over, SIGINT and SIGTERM end the command with the lines that start it again."""
    with signals_end_start(_report):
        yield


def _report() -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    arguments = sys.argv[1:]
    world_size = os.environ.get("WORLD_SIZE", "1")
    command = launch_command(
        arguments,
        num_processes=int(world_size) if world_size.isdecimal() else 1,
        on_cpu=launcher_switch_is_on(USE_CPU_VARIABLE),
    )
    redactor = Redactor.for_run({}, os.environ, [argument for argument in arguments if not argument.startswith("-")])
    erase_line(sys.stderr)
    for line in interrupted_start_lines(command):
        write_line(redactor.text(line))
