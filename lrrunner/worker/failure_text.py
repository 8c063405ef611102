"""The cause of a failure as one line."""

from __future__ import annotations

from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT

MAX_LENGTH = 300

LOST_CONNECTION_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""Parts of torch's messages when another rank has died."""

TIMEOUT_MESSAGES = ("Timed out waiting", "timed out after", "Watchdog caught collective operation timeout")
"""Parts of torch's messages when another rank does not join a collective."""


def failure_text(error: BaseException) -> str:
    """Type and message of an exception; whether it only follows from the failure of another rank.

    >>> failure_text(ValueError("two\\n  lines"))
    'ValueError: two lines'
    >>> failure_text(RuntimeError("Broken pipe"))
    'another rank is gone, its connection was lost (Broken pipe)'
    """
    text = " ".join(str(error).split())[:MAX_LENGTH]
    if isinstance(error, RuntimeError) and any(part in text for part in LOST_CONNECTION_MESSAGES):
        return f"{ANOTHER_RANK_IS_GONE}, its connection was lost ({text})"
    if isinstance(error, RuntimeError) and any(part in text for part in TIMEOUT_MESSAGES):
        return f"{ANOTHER_RANK_IS_SILENT}, a collective timed out ({text})"
    return f"{type(error).__name__}: {text}"
