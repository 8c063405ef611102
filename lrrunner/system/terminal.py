"""Words for a person who may have stopped listening. Standard library only."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO


def write_line(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Print at once; a stream whose reader has gone (``| head -2``, a closed terminal) must not end the work."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, end=end, flush=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        with contextlib.suppress(OSError, ValueError):
            _silence(stream)


def _silence(stream: TextIO) -> None:
    """What is buffered goes nowhere, so that neither the next word nor the interpreter's end stumbles over it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def shown_path(path: Path) -> str:
    """Relative to the current directory where it lies below it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
