"""Output of a worker group's ranks: pipes that the supervisor reads, and files in the run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lrrunner.results.artifacts import RANKS_FOLDER
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.temporary_folders import new_private_folder, remove_private_folder

MAX_READ_BYTES = 1 << 16
READS_PER_TURN = 2
"""A rank that prints faster than it is read must not keep the supervisor from watching the others."""

MAX_LINE_BYTES = 1 << 18
OMITTED_LINE = f"[a line of more than {MAX_LINE_BYTES} bytes is left out]\n"

MAX_FILE_CHARACTERS = 1 << 24
OMITTED_REST = "[the rest is left out]\n"
MAX_EARLY_LINES = 1000
"""Lines of one rank that are kept until the run directory exists."""

LineSink = Callable[[int, str, Sequence[str]], None]
"""(local rank; "out", "err" or "stack", the answer to a request for its stack; lines with their ends)."""


class RankPipes:
    """Named pipes for the standard output and error of the ranks of one machine: a killed rank's last lines are kept.

    Args:
        num_ranks: Ranks on this machine.
        sink: Receives every line, those of one reading together.
    """

    def __init__(self, num_ranks: int, sink: LineSink) -> None:
        self.folder = new_private_folder("output-")
        self._sink = sink
        self._pipes: dict[tuple[int, str], tuple[int, int]] = {}
        self._unfinished: dict[tuple[int, str], bytes] = {}
        self._too_long: set[tuple[int, str]] = set()
        for rank in range(num_ranks):
            for name in ("out", "err"):
                path = self.folder / f"{rank}.{name}"
                os.mkfifo(path, 0o600)
                reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                writing = os.open(path, os.O_WRONLY)  # keeps the pipe open while no rank has it open
                self._pipes[rank, name] = reading, writing

    def read(self) -> None:
        """Pass on what the ranks have written; the next call reads what is left of a large amount."""
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
        """Whole lines; a very long one is left out and not cut, since half a secret would not be masked."""
        *lines, rest = (self._unfinished.get(key, b"") + content).replace(b"\r", b"\n").split(b"\n")
        found = [line.decode(errors="replace") + "\n" for line in lines]
        if lines and key in self._too_long:
            self._too_long.remove(key)
            found[0] = OMITTED_LINE
        if len(rest) > MAX_LINE_BYTES or key in self._too_long:
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
        remove_private_folder(self.folder)


class RankOutputFiles:
    """Writes the ranks' output, secrets masked, to ``ranks/<rank>.out`` in the run directory of the current job.

    Args:
        directory: Run directory; lines are kept until rank 0 has made it.
        redactor: Masks secrets.
        echo: Receives rank 0's output, with "out" or "err", instead of its file.
    """

    def __init__(self, directory: Path, redactor: Redactor, *, echo: Callable[[str, str], None] | None = None) -> None:
        self._folder = directory / RANKS_FOLDER
        self._redactor, self._echo = redactor, echo
        self._pending: dict[int, list[str]] = {}
        self._sizes: dict[int, int] = {}

    def write(self, rank: int, name: str, lines: Sequence[str]) -> None:
        """Write, echo or keep some lines; a :data:`LineSink`."""
        if rank == 0 and self._echo is not None and name != "stack":
            self._echo(name, "".join(map(self._redactor.text, lines)))
        else:
            pending = self._pending.setdefault(rank, [])
            if not self._folder.is_dir():
                lines = lines[: MAX_EARLY_LINES - len(pending)]
            pending += self._within_limit(rank, lines)
        self.flush()

    def flush(self) -> None:
        """Write the lines that were kept, once the directory exists."""
        if not any(self._pending.values()) or not self._folder.is_dir():
            return
        with contextlib.suppress(OSError):
            for rank, lines in self._pending.items():
                with (self._folder / f"{rank}.out").open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
        self._pending.clear()

    def _within_limit(self, rank: int, lines: Sequence[str]) -> list[str]:
        """The lines that the file has room for, secrets masked, and a note in place of the first one beyond."""
        within = []
        for line in lines:
            size = self._sizes.get(rank, 0)
            if size > MAX_FILE_CHARACTERS:
                break
            self._sizes[rank] = size + len(line)
            has_room = size + len(line) <= MAX_FILE_CHARACTERS
            within.append(self._redactor.text(line) if has_room else OMITTED_REST)
        return within


def _available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_READ_BYTES)
    except BlockingIOError:
        return b""
