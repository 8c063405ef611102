"""What this machine has to train on, without asking torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

NVIDIA_SMI_WITHIN_S = 20.0


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them; empty where training is to use CPUs.

    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"})
    ('2', '3')
    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3", "ACCELERATE_USE_CPU": "1"})
    ()
    """
    if environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
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
