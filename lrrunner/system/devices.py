"""Devices of this machine, without torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from lrrunner.system.environment import CORES_VARIABLE, USE_CPU_VARIABLE, launcher_switch_is_on

NVIDIA_SMI_WITHIN_S = 20.0


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them; empty: ranks train on CPUs.

    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"})
    ('2', '3')
    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3", "ACCELERATE_USE_CPU": "1"})
    ()
    """
    if launcher_switch_is_on(USE_CPU_VARIABLE, environ):
        return ()
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1"))
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_WITHIN_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(
        str(number) for number, _ in enumerate(line for line in listing.splitlines() if line.startswith("GPU"))
    )


def usable_cores() -> tuple[int, ...]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def keep_to_cores(environ: Mapping[str, str]) -> None:
    """Use the CPU cores of this worker group, where it has its own; child processes inherit them."""
    cores = environ.get(CORES_VARIABLE)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
