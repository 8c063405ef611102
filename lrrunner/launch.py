"""How several ranks are started. Pure: command lines as text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def launch_command(words: Sequence[str], *, num_processes: int, on_cpu: bool) -> str:
    """The command line that runs a sweep on ``num_processes`` ranks.

    On a CPU, ``accelerate launch`` starts several ranks only with ``--multi_gpu`` and ACCELERATE_USE_CPU together.

    >>> launch_command(["model=cnn"], num_processes=2, on_cpu=True)
    'ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m lrrunner model=cnn'
    >>> launch_command(["model=cnn"], num_processes=1, on_cpu=True)
    'lrrunner model=cnn'
    """
    command = shlex.join(["lrrunner", *words])
    if num_processes == 1:
        return command
    switch = "ACCELERATE_USE_CPU=1 " if on_cpu else ""
    return f"{switch}accelerate launch --multi_gpu --num_processes {num_processes} -m {command}"
