"""Message and position of an exception that somebody else's code has raised. Standard library only."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from pathlib import Path

from lrrunner.system.output.terminal import shown_path

INSTALLED = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(str(sys.modules["lrrunner"].__file__)).resolve().parent),
)
"""Folders of Python, of installed packages and of this one: what is elsewhere is the user's."""

GENERATED = ("torchinductor_", "site-packages", "dist-packages")
"""Parts of paths of files that nobody edits."""

_QUOTED_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
"""Of the traceback in a message, with which a worker of a data loader ends."""


def error_message(error: BaseException) -> str:
    """As ``str(error)``, also for an exception whose ``__str__`` raises one.

    >>> error_message(ValueError("too large"))
    'too large'
    """
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - whatever it raises, the first failure is what counts
        return f"(its message cannot be shown: {type(second).__name__})"


def user_position(error: BaseException) -> str:
    """The innermost line of the user's own code that an exception came through, as `` at file:line in function``.

    Empty where there is none, as for an exception that was never raised.
    """
    frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    frames += _QUOTED_FRAME.findall(error_message(error))
    for file, line, function in reversed(frames):
        if _is_users(file):
            return f" at {shown_path(Path(file))}:{line} in {function}"
    return ""


def _is_users(file: str) -> bool:
    path = Path(file)
    return (
        path.is_file()
        and not any(part in file for part in GENERATED)
        and not any(path.resolve().is_relative_to(folder) for folder in INSTALLED)
    )
