"""The cause of a failure as one line."""

from __future__ import annotations

import re
from collections.abc import Callable

from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT, WORKER_WAS_ENDED
from lrrunner.system.output.error_message import error_message, user_position
from lrrunner.training.torch_messages import NEEDS_FLOATS, NEEDS_INDICES, SHAPES_DIFFER, UNUSED_PARAMETERS

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
    kind, reason = _kind_and_reason(error, message)
    text = masked(" ".join(reason.split()))[:MAX_LENGTH]
    if isinstance(error, RuntimeError) and any(part in text for part in LOST_CONNECTION_MESSAGES):
        return f"{ANOTHER_RANK_IS_GONE}, its connection was lost ({text})"
    if isinstance(error, RuntimeError) and any(part in text for part in TIMEOUT_MESSAGES):
        return f"{ANOTHER_RANK_IS_SILENT}, a collective timed out ({text})"
    if isinstance(error, RuntimeError) and WORKER_ENDED_MESSAGE.search(text):
        return f"{WORKER_WAS_ENDED} ({text})"
    hint = next((f"; {hint}" for pattern, hint in HINTS if re.search(pattern, message)), "")
    position = user_position(error)
    if not position and re.search(SHAPES_DIFFER, message):
        hint = "; compare the shapes of data.train's inputs and target with what model and loss expect"
    return f"{kind}{text}{position and ','}{position}{hint}"


def _kind_and_reason(error: BaseException, message: str) -> tuple[str, str]:
    """Type and message; of an error in a worker of a data loader, which quotes a traceback, its last line.

    >>> quoted = "Caught it.\\nOriginal Traceback (most recent call last):\\n  File ...\\nKeyError: 1\\n"
    >>> _kind_and_reason(KeyError(), quoted)
    ('in a worker of the data loader: ', 'KeyError: 1')
    """
    _, is_quoted, stack = message.partition("Original Traceback (most recent call last):")
    lines = stack.strip().splitlines()
    if is_quoted and lines:
        return "in a worker of the data loader: ", lines[-1]
    return f"{type(error).__name__}: ", message
