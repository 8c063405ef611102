"""What a set of ranks says: named pipes that the supervisor reads, so that a killed rank's last words are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

MAX_READ = 1 << 16

LineSink = Callable[[int, str, str], None]
"""(local rank, "out", "err" or, when it was asked where it stands, "stack", one line with its end)."""


class RankOutput:
    """Pipes for the standard output and error of the ranks of one machine.

    Args:
        num_ranks: Ranks on this machine.
        sink: Given every line.
    """

    def __init__(self, num_ranks: int, sink: LineSink) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lrrunner-"))
        self._sink = sink
        self._pipes: dict[tuple[int, str], tuple[int, int]] = {}
        self._unfinished: dict[tuple[int, str], bytes] = {}
        for rank in range(num_ranks):
            for name in ("out", "err"):
                path = self.folder / f"{rank}.{name}"
                os.mkfifo(path, 0o600)
                reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                writing = os.open(path, os.O_WRONLY)  # keeps the pipe open between ranks
                self._pipes[rank, name] = reading, writing

    def read(self) -> None:
        """Pass on what has been said so far."""
        for key, (reading, _) in self._pipes.items():
            while content := _available(reading):
                *lines, rest = (self._unfinished.get(key, b"") + content).replace(b"\r", b"\n").split(b"\n")
                self._unfinished[key] = rest
                for line in lines:
                    self._sink(*key, line.decode(errors="replace") + "\n")

    def close(self) -> None:
        """Pass on the rest and remove the pipes."""
        self.read()
        for (rank, name), rest in self._unfinished.items():
            if rest:
                self._sink(rank, name, rest.decode(errors="replace") + "\n")
        for pipe in self._pipes.values():
            for descriptor in pipe:
                os.close(descriptor)
        self._pipes, self._unfinished = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)


def _available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_READ)
    except BlockingIOError:
        return b""
