"""``accelerate launch`` for a supervised set of ranks: it ends with its parent, and keeps to the set's own cores."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from lrrunner.launch.mailbox import JobMailbox, remove_folder_when_orphaned
from lrrunner.launch.rank_command import CORES_VARIABLE, SET_VARIABLE, SUPERVISOR_VARIABLE
from lrrunner.system.process_identity import is_alive

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, also by SIGKILL (Linux; elsewhere nothing)."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if not is_supervised():  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def is_supervised() -> bool:
    """Whether the process that waits for this set of ranks still lives; True for one on another machine."""
    return is_alive(os.environ.get(SUPERVISOR_VARIABLE, "elsewhere:::"))


def keep_to_cores() -> None:
    """Use the cores that the set was given; children inherit it."""
    cores = os.environ.get(CORES_VARIABLE)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def main() -> None:
    """Become ``accelerate launch``; when the supervisor is gone, its folder goes too."""
    parent, folder = os.getppid(), Path(os.environ[SET_VARIABLE])

    def orphaned() -> bool:
        return os.getppid() != parent or not is_supervised()

    remove_folder_when_orphaned(folder, orphaned)
    die_with_parent()
    keep_to_cores()
    from accelerate.commands.launch import main as accelerate_launch

    try:
        accelerate_launch()
    finally:
        if orphaned():
            JobMailbox(folder).remove()


if __name__ == "__main__":
    main()
