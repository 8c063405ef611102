"""The ranks of a worker group as processes: what their supervisor sees of one that cannot report. No torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable

from lrrunner.launch.mailbox import Heartbeat, JobMailbox
from lrrunner.system.processes.process_identity import children, descendants, environment_variable, pid_of


class RankProcesses:
    """Reads heartbeats, and looks at the processes themselves.

    Args:
        mailbox: Holds the heartbeats.
        world_size: Number of ranks.
        root: Process that the supervisor has started.
        is_launcher: Whether that one starts the ranks; else it is rank 0.

    Attributes:
        heartbeats: The last heartbeat of each rank that has written one.
    """

    def __init__(self, mailbox: JobMailbox, *, world_size: int, root: int, is_launcher: bool) -> None:
        self._mailbox, self._world_size, self._root, self._is_launcher = mailbox, world_size, root, is_launcher
        self._stamps: dict[int, tuple[int, int]] = {}
        self.heartbeats: dict[int, Heartbeat] = {}

    def read_heartbeats(self) -> bool:
        """Read the heartbeats; whether there is a new one."""
        stamps = self._mailbox.heartbeat_stamps(self._world_size)
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        self.heartbeats |= self._mailbox.heartbeats(self._world_size)
        return True

    def pids(self) -> dict[int, int]:
        """The process of each rank that is alive, also of one that has written no heartbeat yet."""
        known = {rank: pid_of(heartbeat.identity) for rank, heartbeat in self.heartbeats.items()}
        unknown = {rank: pid for rank, pid in self._started().items() if rank not in known}
        return unknown | {rank: pid for rank, pid in known.items() if pid is not None}

    def gone(self, reported: Collection[int]) -> list[int]:
        """Ranks that were alive, whose process is gone, and that are not among those that have reported."""
        return [
            rank
            for rank, heartbeat in sorted(self.heartbeats.items())
            if rank not in reported and pid_of(heartbeat.identity) is None
        ]

    def pids_with_heartbeat(self) -> list[int]:
        """Processes of ranks that handle signals already."""
        found = (pid_of(heartbeat.identity) for heartbeat in self.heartbeats.values())
        return [pid for pid in found if pid is not None]

    def everything(self, *, launcher_is_alive: bool) -> list[int]:
        """Every process of the group that is alive."""
        below = [*descendants(self._root), self._root] if launcher_is_alive else []
        return list(dict.fromkeys([*self.pids_with_heartbeat(), *below]))

    def _started(self) -> dict[int, int]:
        """Processes that the launcher has started, by the rank that it gave them."""
        if not self._is_launcher:
            return {0: self._root}
        ranks = {pid: environment_variable(pid, "RANK") for pid in children(self._root)}
        return {int(rank): pid for pid, rank in ranks.items() if rank is not None and rank.isdecimal()}


def send_signal(number: int, pids: Iterable[int]) -> None:
    """Send a signal to the processes that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
