"""Standard output and error whose reader may go away: what cannot be written costs only the output.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from lrrunner.system.output.terminal import silence


class ForgivingStream:
    """A text stream that discards what cannot be written, whoever prints: ``| head -1``, a full disk.

    Args:
        stream: The stream that it stands for.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; after an error, discard this text and all that follows."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush; after an error, discard what is buffered and all that follows."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def writelines(self, lines: list[str]) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def _give_up(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_closed_output() -> None:
    """Let nothing that this process prints raise; only for a process of lrrunner's own.

    A stream that was closed at the start (``>&-``) is connected with nowhere: the next file would get its descriptor,
    and with it what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _forgiving(sys.stdout, 1)
    sys.stderr = _forgiving(sys.stderr, 2)


def _forgiving(stream: Any, descriptor: int) -> Any:
    if stream is None:
        stream = os.fdopen(descriptor, "w", closefd=False)
    return stream if isinstance(stream, ForgivingStream) else ForgivingStream(stream)
