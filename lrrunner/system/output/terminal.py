"""Text for the terminal. Standard library only."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TextIO

LINE_WIDTH, LABEL_WIDTH = 80, 14
"""Of closing lines, in characters."""


def labelled_line(label: str, text: str) -> str:
    """One closing line; a path or a command in it is not broken.

    >>> labelled_line("picture", "runs/a/lr_sweep.png")
    'picture:      runs/a/lr_sweep.png'
    """
    return f"{label + ':':<{LABEL_WIDTH}}{text}"


def wrapped_line(label: str, text: str) -> list[str]:
    """A sentence as closing lines; without a label it brings its own."""
    return textwrap.wrap(
        labelled_line(label, text) if label else text,
        width=LINE_WIDTH,
        subsequent_indent=" " * LABEL_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 80 where it is none, unless COLUMNS says otherwise."""
    return shutil.get_terminal_size((LINE_WIDTH, 24)).columns


def columns(stream: TextIO, *, default: int = LINE_WIDTH) -> int:
    """Columns of the terminal that a stream is; ``default`` where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or default
    return default


def erase_line(stream: TextIO) -> None:
    """Erase the line of a terminal that the cursor is on: a bar, and the terminal's own ^C."""
    if stream.isatty() and (width := columns(stream, default=0)):
        write_line(f"\r{' ' * (width - 1)}\r", stream, end="")


def shortened_in_middle(text: str, length: int) -> str:
    """The text with its middle left out where it is longer.

    >>> shortened_in_middle("optimizer=adamw width=64", 12)
    'optimi…th=64'
    """
    if len(text) <= length:
        return text
    num_last = (length - 1) // 2
    return f"{text[: length - 1 - num_last]}…{text[len(text) - num_last :]}"


def write_line(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Print and flush; a stream whose reader is gone (``| head -2``, a closed terminal) raises nothing."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, end=end, flush=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        with contextlib.suppress(OSError, ValueError):
            silence(stream)


def write_error(text: str) -> None:
    """Print a message on standard error, whose lines are broken between words on a terminal."""
    write_line(fitted(text, sys.stderr), sys.stderr)


def fitted(text: str, stream: TextIO) -> str:
    """Text whose lines are broken between words where a terminal is too narrow, and continue indented."""
    if not stream.isatty():
        return text
    return "\n".join(_broken(line, columns(stream)) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip(" -")))
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def silence(stream: TextIO) -> None:
    """Discard what is buffered: neither the next line nor the end of the interpreter may fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def shown_path(path: Path) -> str:
    """A path as text: relative to the current directory where it is inside it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "job"), counted(2, "job")
    ('1 job', '2 jobs')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
