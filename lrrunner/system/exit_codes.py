"""Exit codes of every process that runs our code. Standard library only."""

from __future__ import annotations

import signal

OK = 0
"""The sweep ran to its end, with or without a suggestion."""

FAILED = 1
"""The sweep failed."""

CONFIG_ERROR = 2
"""The configuration is wrong."""


UNREPORTED = 4
"""A supervised rank could not report how its job ended, since its mailbox cannot be written."""


def signal_exit_code(number: int) -> int:
    """Exit code of a process that a signal has ended.

    >>> signal_exit_code(signal.SIGTERM), signal_exit_code(signal.SIGINT)
    (143, 130)
    """
    return 128 + number


TERMINATED = signal_exit_code(signal.SIGTERM)
"""Ended by SIGTERM, the signal that launchers and schedulers send."""
