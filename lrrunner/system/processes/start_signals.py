"""SIGINT and SIGTERM while a process starts: it ends with a message, since there is nothing to save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lrrunner.system.exit_codes import signal_exit_code

START_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_is_starting = False


def end_start() -> None:
    """From here on there may be something to save, and another handler takes the signals."""
    global _is_starting
    _is_starting = False


@contextmanager
def signals_end_start(report: Callable[[], None]) -> Iterator[None]:
    """Until :func:`end_start`, SIGINT and SIGTERM end this process with 128 + the signal's number and no traceback.

    A thread reads the wake-up file descriptor: an import or a rendezvous that blocks runs no signal handler.

    Args:
        report: Called from the thread just before the process ends; prints what was interrupted.
    """
    global _is_starting
    _is_starting = True
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    old_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    numbers = [number for number in START_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    old_handlers = {number: signal.signal(number, _handle) for number in numbers}
    thread = threading.Thread(target=_watch, args=(read_fd, report), name="start-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end_start()
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(write_fd)
        thread.join()
        os.close(read_fd)


def _handle(number: int, frame: FrameType | None) -> None:
    """End the process where nobody else does: its work is done, only the interpreter has yet to end."""
    if not _is_starting:
        os._exit(signal_exit_code(number))


def _watch(read_fd: int, report: Callable[[], None]) -> None:
    while numbers := os.read(read_fd, 64):
        for number in numbers:
            if number in START_SIGNALS and _is_starting:
                try:
                    report()
                finally:
                    os._exit(signal_exit_code(number))
