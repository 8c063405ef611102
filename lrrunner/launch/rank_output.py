"""What a set of ranks says: named pipes that the supervisor reads, so that a killed rank's last words are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_READ = 1 << 16
READS_PER_TURN = 2
"""A rank that prints faster than it is read must not keep the supervisor from watching the others."""
MAX_LINE = 1 << 18
LEFT_OUT = f"[a line of more than {MAX_LINE} bytes is left out]\n"

LineSink = Callable[[int, str, Sequence[str]], None]
"""(local rank, "out", "err" or, when it was asked where it stands, "stack", lines with their ends)."""


class RankOutput:
    """Pipes for the standard output and error of the ranks of one machine.

    Args:
        num_ranks: Ranks on this machine.
        sink: Given every line, those of one reading together.
    """

    def __init__(self, num_ranks: int, sink: LineSink) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lrrunner-"))
        self._sink = sink
        self._pipes: dict[tuple[int, str], tuple[int, int]] = {}
        self._unfinished: dict[tuple[int, str], bytes] = {}
        self._too_long: set[tuple[int, str]] = set()
        for rank in range(num_ranks):
            for name in ("out", "err"):
                path = self.folder / f"{rank}.{name}"
                os.mkfifo(path, 0o600)
                reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                writing = os.open(path, os.O_WRONLY)  # keeps the pipe open between ranks
                self._pipes[rank, name] = reading, writing

    def read(self) -> None:
        """Pass on what has been said; the rest of what says much comes with the next call."""
        for key, (reading, _) in self._pipes.items():
            found = [
                line
                for _ in range(READS_PER_TURN)
                if (content := _available(reading))
                for line in self._lines(key, content)
            ]
            if found:
                self._sink(*key, found)

    def _lines(self, key: tuple[int, str], content: bytes) -> list[str]:
        """Whole lines; one without an end in sight is left out, not cut: half a secret would go unmasked."""
        *lines, rest = (self._unfinished.get(key, b"") + content).replace(b"\r", b"\n").split(b"\n")
        found = [line.decode(errors="replace") + "\n" for line in lines]
        if lines and key in self._too_long:
            self._too_long.remove(key)
            found[0] = LEFT_OUT
        if len(rest) > MAX_LINE or key in self._too_long:
            self._too_long.add(key)
            rest = b""
        self._unfinished[key] = rest
        return found

    def close(self) -> None:
        """Pass on the rest and remove the pipes."""
        self.read()
        for (rank, name), rest in self._unfinished.items():
            if rest:
                self._sink(rank, name, [rest.decode(errors="replace") + "\n"])
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
