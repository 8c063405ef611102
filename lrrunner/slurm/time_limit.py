"""The time limit of a job, which must exceed the warning that Slurm sends before it. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lrrunner.errors import ConfigError

TIME_OPTIONS = ("--time", "-t")
SIGNAL_OPTIONS = ("--signal",)
DEFAULT_WARNING_S = 60
"""Slurm's own, for ``--signal`` without a time."""


def check_time_limit(script: str, options: Sequence[str], environ: Mapping[str, str]) -> None:
    """Refuse a limit at or below the warning: the ranks would be asked to stop as soon as they have begun.

    Args:
        script: Text of the batch script, whose own options count where the others are silent.
        options: Options of ``sbatch``.
        environ: May set a limit for ``sbatch``, which takes precedence over the script.

    Raises:
        ConfigError: the limit cannot fit.
    """
    own = re.findall(r"^#SBATCH\s+(\S+)", script, re.MULTILINE)
    limit = _value(options, TIME_OPTIONS) or environ.get("SBATCH_TIMELIMIT") or _value(own, TIME_OPTIONS)
    signal = _value(options, SIGNAL_OPTIONS) or environ.get("SBATCH_SIGNAL") or _value(own, SIGNAL_OPTIONS)
    limit_s = None if limit is None else seconds(limit)
    if limit_s is None or signal is None:
        return
    _, at, text = signal.partition("@")
    warning_s = int(text) if at and text.isdecimal() else DEFAULT_WARNING_S
    if limit_s <= warning_s:
        raise ConfigError(
            [
                f"--time must exceed the warning of {warning_s} s before the limit (--signal), got {limit}, which is "
                f"{limit_s} s; give it the time of the sweep and {warning_s} s"
            ]
        )


def seconds(limit: str) -> int | None:
    """A limit as ``sbatch`` takes it, in seconds; None for one that is none, or has no end.

    >>> [seconds(text) for text in ("2", "2:30", "1:00:00", "1-2", "1-2:30", "1-2:30:15", "UNLIMITED", "0")]
    [120, 150, 3600, 93600, 95400, 95415, None, None]
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if found is None:
        return None
    days, *numbers = found.groups()
    first, second, third = (int(number or 0) for number in numbers)
    if days is not None:  # days-hours[:minutes[:seconds]]
        total = 86400 * int(days) + 3600 * first + 60 * second + third
    elif numbers[2] is not None:  # hours:minutes:seconds
        total = 3600 * first + 60 * second + third
    else:  # minutes[:seconds]
        total = 60 * first + second
    return total or None  # 0 asks for no limit


def _value(options: Sequence[str], names: Sequence[str]) -> str | None:
    """The value of the last option of these names, in any of its forms."""
    found = None
    for option, following in zip(options, [*options[1:], ""], strict=False):
        for name in names:
            if option == name:
                found = following
            elif option.startswith(f"{name}="):
                found = option.partition("=")[2]
            elif not name.startswith("--") and option.startswith(name):
                found = option.removeprefix(name)
    return found
