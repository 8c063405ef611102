"""Identity of a process, by which another one can find out later whether it is alive. Standard library only.

Identities are read back from places that others can write to: tags in MLflow, files. One that is odd is none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_HOST_NAMESPACE = "pid:[4026531836]"
"""Linux: the PID namespace of processes that are in no container."""

_UNKNOWN = "?"
_IDENTITY = re.compile(
    r"(?P<boot>[^:\s]{1,64}):(?P<pid>[0-9]{1,10}):(?P<start>[0-9]{1,20}|\?):(?P<namespace>pid:\[[0-9]{1,20}\]|\?)"
    r"(?::(?P<machine>[0-9a-f]{16}|\?):(?P<uid>[0-9]{1,10}))?"
)


class _Identity(NamedTuple):
    boot: str
    pid: int
    start: str
    namespace: str
    machine: str
    uid: int | None


def process_identity(pid: int | None = None) -> str:
    """Boot, process id, start time, PID namespace, machine and user: unlike a process id, unique."""
    pid = os.getpid() if pid is None else pid
    return f"{_boot()}:{pid}:{_start_ticks(pid)}:{_pid_namespace()}:{_machine()}:{os.getuid()}"


def is_alive(identity: object) -> bool:
    """Whether the process of an identity runs on this machine, or may run there.

    That cannot be found out without /proc, nor in another container, where the same process id is another process.
    """
    parsed = _parsed(identity)
    if parsed is None:
        return False
    if not _BOOT_ID.exists() or (parsed.boot == _boot() and parsed.namespace != _pid_namespace()):
        return True
    return parsed.boot == _boot() and _exists(parsed)


def is_gone(identity: object) -> bool:
    """Whether the process of an identity provably was this user's on this machine, and has ended.

    Host names do not prove it: containers and cloned machines share them. A machine that has started again since is
    known by its id, outside of containers, whose images share that as well.
    """
    parsed = _parsed(identity)
    if parsed is None or parsed.uid != os.getuid() or not _BOOT_ID.exists():
        return False
    if parsed.boot == _boot():
        return parsed.namespace == _pid_namespace() and not _exists(parsed)
    is_on_host = parsed.namespace == _pid_namespace() == _HOST_NAMESPACE
    return is_on_host and parsed.machine == _machine() != _UNKNOWN


def _parsed(identity: object) -> _Identity | None:
    found = _IDENTITY.fullmatch(identity) if isinstance(identity, str) else None
    if found is None:
        return None
    boot, pid, start, namespace, machine, uid = found.groups()
    return _Identity(boot, int(pid), start, namespace, machine or _UNKNOWN, None if uid is None else int(uid))


def _exists(identity: _Identity) -> bool:
    """Whether this machine has such a process in this boot and namespace."""
    return identity.start == _start_ticks(identity.pid) != _UNKNOWN


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else _UNKNOWN


@functools.cache
def _machine() -> str:
    """The machine's id, hashed: the id itself must not be shown to others."""
    try:
        machine_id = _MACHINE_ID.read_bytes().strip()
    except OSError:
        return _UNKNOWN
    return hashlib.sha256(b"lrrunner:" + machine_id).hexdigest()[:16] if len(machine_id) == 32 else _UNKNOWN


def _pid_namespace() -> str:
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return _UNKNOWN


def _start_ticks(pid: int) -> str:
    """Start time since boot (field 22 of /proc/<pid>/stat), "?" when there is no such process or only its zombie."""
    fields = _stat_fields(pid)
    return _UNKNOWN if not fields or fields[0] == "Z" else fields[19]


def _stat_fields(pid: int) -> list[str]:
    """/proc/<pid>/stat from the third field (state, parent, ...) on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP."""
    return _stat_fields(pid)[:1] in (["T"], ["t"])


def children(pid: int) -> list[int]:
    """Children of a process; empty without /proc."""
    return _children_by_parent().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on; empty without /proc."""
    by_parent = _children_by_parent()
    found: list[int] = []
    waiting = [pid]
    while waiting:
        next_ones = by_parent.get(waiting.pop(), [])
        found += next_ones
        waiting += next_ones
    return found


def environment_variable(pid: int, name: str) -> str | None:
    """A variable with which a process was started; None if it has none, or cannot be read."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    start = f"{name}=".encode()
    found = (item.removeprefix(start) for item in content.split(b"\0") if item.startswith(start))
    value = next(found, None)
    return None if value is None else value.decode(errors="replace")


def _children_by_parent() -> dict[int, list[int]]:
    by_parent: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat_fields(int(folder.name))
        if fields:
            by_parent.setdefault(int(fields[1]), []).append(int(folder.name))
    return by_parent


def pid_of(identity: object) -> int | None:
    """The process id of an identity; None unless its process is alive on this machine, in this container."""
    parsed = _parsed(identity)
    if parsed is None or (parsed.boot, parsed.namespace) != (_boot(), _pid_namespace()):
        return None
    return parsed.pid if _exists(parsed) else None
