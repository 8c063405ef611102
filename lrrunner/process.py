"""Who this process is, so that another one can tell later whether it still lives. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int | None = None) -> str:
    """Boot, process id and start time: unlike a process id alone, never used twice on a machine."""
    pid = os.getpid() if pid is None else pid
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "?"
    return f"{boot}:{pid}:{_start_ticks(pid)}"


def is_alive(identity: str) -> bool:
    """Whether the process of an identity, taken on this machine, still runs; True where /proc is missing."""
    if not _BOOT_ID.exists():
        return True
    pid = identity.split(":")[1]
    return pid.isdigit() and process_identity(int(pid)) == identity and _start_ticks(int(pid)) != "?"


def _start_ticks(pid: int) -> str:
    """Start time since boot (field 22 of /proc/<pid>/stat), "?" when there is no such process or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "?"
    return "?" if fields[0] == "Z" else fields[19]
