"""MLflow's client, none of whose calls takes longer than it may: a call runs in a thread that nobody has to wait for.

MLflow and its database drivers wait and try again on their own, for minutes, and nothing interrupts them. A call that
is given up may still take effect later; every call can be repeated, since it carries its own times.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lrrunner.system.processes.interrupt_counter import num_interrupts

T = TypeVar("T")

THREAD_NAME = "lrrunner-mlflow"
POLL_S = 0.05
MIN_BYTES_PER_S = 1e6
"""A file may take this much longer."""

QUIET_LOGGERS = ("mlflow", "alembic", "sqlalchemy", "urllib3", "urllib3.connectionpool", "urllib3.util.retry")
"""They report each attempt of a call; how it ended is reported once, by us."""

logger = logging.getLogger(__name__)


class BoundedClient:
    """The methods of a client, each of which raises TimeoutError where it takes too long.

    A call begins when the one before it has ended, also one that was given up: a store is not asked twice at once.

    Args:
        client: MLflow's client.
        timeout_s: Seconds that a call may take.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._last = _ended()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            timeout_s = self._timeout_s + (_file_size(arguments) / MIN_BYTES_PER_S if name == "log_artifact" else 0)
            _wait(self._last, timeout_s)
            self._last = threading.Event()
            return within(timeout_s, lambda: method(*arguments, **keywords), ended=self._last)

        return call


def within(timeout_s: float, function: Callable[[], T], *, ended: threading.Event | None = None) -> T:
    """What a function returns, or raises.

    Args:
        timeout_s: Seconds that it may take.
        function: Called in another thread, which goes on when it is given up.
        ended: Set when the function has ended.

    Raises:
        TimeoutError: it takes longer.
        InterruptedError: a signal has asked this process to stop meanwhile.
    """
    ended = threading.Event() if ended is None else ended
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    _wait(ended, timeout_s)
    if errors:
        raise errors[0]
    return results[0]


def keep_attempts_off_the_terminal() -> None:
    """Log what MLflow and its libraries report from the threads of this module to our own logger, as information."""
    for name in QUIET_LOGGERS:
        for target in (logging.getLogger(name), *logging.getLogger(name).handlers):
            if _to_own_log not in target.filters:
                target.addFilter(_to_own_log)


def _to_own_log(record: logging.LogRecord) -> bool:
    """A filter: whether a record is for the terminal. Our own pass, since a handler may be that of the root too."""
    if record.threadName != THREAD_NAME or record.name == logger.name:
        return True
    with contextlib.suppress(Exception):  # a record of others that cannot be formatted
        logger.info("%s: %s", record.name, record.getMessage())
    return False


def _wait(ended: threading.Event, timeout_s: float) -> None:
    deadline, known = time.monotonic() + timeout_s, num_interrupts()
    while not ended.wait(POLL_S):  # in short turns, so that signals are handled meanwhile
        if num_interrupts() > known:
            raise InterruptedError("interrupted")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer within {timeout_s:.3g} s")


def _ended() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def _file_size(arguments: tuple[Any, ...]) -> int:
    """Size of the file that ``log_artifact(run_id, path, ...)`` uploads."""
    with contextlib.suppress(OSError, IndexError):
        return Path(arguments[1]).stat().st_size
    return 0
