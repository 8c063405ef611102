"""Environment variables: ours, and the switches of ``accelerate launch``. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping

MAILBOX_VARIABLE = "LRRUNNER_MAILBOX"
"""Folder in which supervised ranks find their jobs."""

SUPERVISOR_VARIABLE = "LRRUNNER_SUPERVISOR"
"""Identity of the process that waits for the ranks."""

CORES_VARIABLE = "LRRUNNER_CORES"
"""CPU cores that the ranks of one worker group share, as numbers with commas."""

OUTPUT_VARIABLE = "LRRUNNER_OUTPUT"
"""Folder of the named pipes ``<local rank>.out`` and ``.err``, from which the supervisor reads the ranks' output."""

USE_CPU_VARIABLE = "ACCELERATE_USE_CPU"
USE_FSDP_VARIABLE = "ACCELERATE_USE_FSDP"
USE_DEEPSPEED_VARIABLE = "ACCELERATE_USE_DEEPSPEED"

SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
"""Variables that only a process started by ``accelerate launch`` or torchrun has."""


def launcher_switch_is_on(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a switch of ``accelerate launch`` is on.

    >>> launcher_switch_is_on(USE_CPU_VARIABLE, {"ACCELERATE_USE_CPU": "Yes"})
    True
    """
    return environ.get(name, "").lower() in ("1", "true", "yes", "on")


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process as a rank.

    >>> is_launched({"LOCAL_RANK": "0"}), is_launched({})
    (True, False)
    """
    return any(name in environ for name in SET_BY_LAUNCHERS)
