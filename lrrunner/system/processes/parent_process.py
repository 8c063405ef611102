"""Ending with the process that started this one. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from lrrunner.system.environment import SUPERVISOR_VARIABLE
from lrrunner.system.processes.process_identity import is_alive

PR_SET_PDEATHSIG = 1
"""Linux: number of the ``prctl`` option that asks for a signal at the parent's death."""


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, also by SIGKILL (Linux; elsewhere nothing)."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if not is_supervised():  # the parent died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def is_supervised() -> bool:
    """Whether the supervisor of this worker group is alive."""
    return is_alive(os.environ.get(SUPERVISOR_VARIABLE))


def orphan_check() -> Callable[[], bool]:
    """A function that returns whether the parent of today, or the supervisor, is gone."""
    parent = os.getppid()
    return lambda: os.getppid() != parent or not is_supervised()
