"""The cause of a failure as one line."""

from __future__ import annotations

import re
from collections.abc import Callable

from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT, WORKER_WAS_ENDED
from lrrunner.system.output.error_message import error_message, user_position
from lrrunner.training.torch_messages import NEEDS_FLOATS, NEEDS_INDICES, UNUSED_PARAMETERS

MAX_LENGTH = 600

LOST_CONNECTION_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""Parts of torch's messages when another rank has died."""

TIMEOUT_MESSAGES = ("Timed out waiting", "timed out after", "Watchdog caught collective operation timeout")
"""Parts of torch's messages when another rank does not join a collective."""


WORKER_ENDED_MESSAGE = re.compile(r"^DataLoader worker .* killed by signal: Terminated")
"""Torch's message when a launcher that ends its ranks has ended a worker before the rank itself."""

HINTS = (
    (UNUSED_PARAMETERS, "set train.ddp.find_unused_parameters=true"),
    (NEEDS_INDICES, "the loss needs class indices: convert the target in data.train"),
    (NEEDS_FLOATS, "the loss needs a floating-point target: convert it in data.train"),
)
"""Patterns of torch's messages, and what helps in a configuration of lrrunner."""


def failure_text(error: BaseException, *, masked: Callable[[str], str] = str) -> str:
    """Type, message and position of an exception; whether it only follows from the failure of another rank.

    Args:
        error: The exception.
        masked: Masks secrets; called before a long message is cut, since half a secret would not be recognised.

    >>> failure_text(ValueError("two\\n  lines"))
    'ValueError: two lines'
    >>> failure_text(RuntimeError("Broken pipe"))
    'another rank is gone, its connection was lost (Broken pipe)'
    >>> failure_text(RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")).partition(" (")[0]
    'a worker of the data loader was ended from outside'
    >>> failure_text(RuntimeError("expected scalar type Long but found Float")).partition("; ")[2]
    'the loss needs class indices: convert the target in data.train'
    """
    message = error_message(error)
    text = masked(" ".join(_without_traceback(message).split()))[:MAX_LENGTH]
    if isinstance(error, RuntimeError) and any(part in text for part in LOST_CONNECTION_MESSAGES):
        return f"{ANOTHER_RANK_IS_GONE}, its connection was lost ({text})"
    if isinstance(error, RuntimeError) and any(part in text for part in TIMEOUT_MESSAGES):
        return f"{ANOTHER_RANK_IS_SILENT}, a collective timed out ({text})"
    if isinstance(error, RuntimeError) and WORKER_ENDED_MESSAGE.search(text):
        return f"{WORKER_WAS_ENDED} ({text})"
    hint = next((f"; {hint}" for pattern, hint in HINTS if re.search(pattern, message)), "")
    position = user_position(error)
    return f"{type(error).__name__}: {text}{position and ','}{position}{hint}"


def _without_traceback(message: str) -> str:
    """The message of an error from a worker of a data loader, which quotes the worker's whole traceback.

    >>> _without_traceback("Caught it.\\nOriginal Traceback (most recent call last):\\n  File ...\\nKeyError: 1\\n")
    'Caught it. KeyError: 1'
    """
    head, quoted, stack = message.partition("Original Traceback (most recent call last):")
    lines = stack.strip().splitlines()
    return f"{head.strip()} {lines[-1]}" if quoted and lines else message
