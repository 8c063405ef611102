"""Identity of a process, by which another one can find out later whether it is alive. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int | None = None) -> str:
    """Boot, process id, start time and PID namespace: unlike a process id, unique on a machine."""
    pid = os.getpid() if pid is None else pid
    return f"{_boot()}:{pid}:{_start_ticks(pid)}:{_pid_namespace()}"


def is_alive(identity: str) -> bool:
    """Whether the process of an identity, taken on this machine, is alive; True where that cannot be found out.

    That is so without /proc, and in another container, where the same process id is another process.
    """
    boot, pid, _, namespace = identity.split(":", 3)
    if not _BOOT_ID.exists() or (boot == _boot() and namespace != _pid_namespace()):
        return True
    return pid.isdigit() and process_identity(int(pid)) == identity and _start_ticks(int(pid)) != "?"


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "?"


def _pid_namespace() -> str:
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return "?"


def _start_ticks(pid: int) -> str:
    """Start time since boot (field 22 of /proc/<pid>/stat), "?" when there is no such process or only its zombie."""
    fields = _stat_fields(pid)
    return "?" if not fields or fields[0] == "Z" else fields[19]


def _stat_fields(pid: int) -> list[str]:
    """/proc/<pid>/stat from the third field (state, parent, ...) on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP."""
    return _stat_fields(pid)[:1] in (["T"], ["t"])


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on; empty without /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat_fields(int(folder.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        next_ones = children.get(waiting.pop(), [])
        found += next_ones
        waiting += next_ones
    return found


def pid_of(identity: str) -> int | None:
    """The process id of an identity; None unless its process is alive on this machine."""
    boot, pid, *_ = identity.split(":")
    return int(pid) if boot == _boot() and pid.isdigit() and is_alive(identity) else None
