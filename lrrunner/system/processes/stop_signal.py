"""Requests to stop a rank: a flag that the loop reads, and a thread for when the loop cannot read it."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from lrrunner.system.exit_codes import signal_exit_code
from lrrunner.system.processes.start_signals import end_start

STUCK_AFTER_S = 10.0
"""A rank that needs longer for its next step hangs in a collective, where Python runs no signal handler."""

SECOND_INTERRUPT_AFTER_S = 1.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Schedulers send SIGUSR2 as a warning; a launcher that passes it on ends its ranks soon after."""

SAVE_WITHIN_S = 25.0
"""Launchers kill their ranks 30 seconds after the signal."""


_open = False


def _reset_in_child() -> None:
    """Forked workers of a DataLoader would write their own Ctrl-C to the rank's wake-up descriptor."""
    if _open:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_in_child)


class StopSignal:
    """SIGTERM, SIGUSR2 and SIGINT as a request to stop after the current step; a second SIGINT stops at once.

    A rank that is blocked in a collective runs no signal handler, so a thread reads the wake-up file descriptor. It
    ends the process when the loop does not stop in time, and when the parent that launched the rank is gone.

    Args:
        on_stuck: Called from the thread just before it ends the process, to record the end; returns the exit code, None
            for that of the signal.
        orphaned: Whether no process waits for this one any more, checked twice a second; counts as a request to stop.
    """

    def __init__(self, *, on_stuck: Callable[[str], int | None], orphaned: Callable[[], bool]) -> None:
        self._on_stuck = on_stuck
        self._orphaned = orphaned
        self._signal: int | None = None
        self._requested_at: float | None = None
        self._interrupts = 0
        self._last_interrupt = -math.inf
        self._nothing_to_save = threading.Event()
        self._loop_ended = threading.Event()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        global _open
        _open = True
        end_start()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._old_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        self._thread = threading.Thread(target=self._watch, name="stop-signal", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _open
        _open = False
        self._closed.set()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.write(self._write_fd, b"\0")
        self._thread.join()
        os.close(self._read_fd)
        os.close(self._write_fd)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._requested_at is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 143 for SIGTERM."""
        return signal_exit_code(self._signal or signal.SIGTERM)

    @contextmanager
    def nothing_to_save(self) -> Iterator[None]:
        """Within this context, before the first step, a request ends the process at once."""
        self._nothing_to_save.set()
        try:
            yield
        finally:
            self._nothing_to_save.clear()

    def loop_ended(self) -> None:
        """The sweep has ended; only saving remains."""
        self._loop_ended.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._request(number)

    def _request(self, number: int) -> None:
        self._signal = self._signal or number
        self._requested_at = self._requested_at or time.monotonic()

    def _watch(self) -> None:
        while not self._closed.is_set():
            ready, _, _ = select.select([self._read_fd], [], [], 0.5)
            for number in os.read(self._read_fd, 64) if ready else b"":
                if number in STOP_SIGNALS:
                    self._request(number)
                    self._count_interrupt(number)
            if self._orphaned():
                self._request(signal.SIGTERM)
            if not self._closed.is_set() and self._is_overdue():
                code = None
                try:
                    code = self._on_stuck(f"stopped by {signal.Signals(self._signal or signal.SIGTERM).name}")
                finally:  # a disk that is full must not keep a stuck rank alive
                    os._exit(self.exit_code if code is None else code)

    def _count_interrupt(self, number: int) -> None:
        """Count a Ctrl-C; a launcher forwards the one that the terminal has sent already, which is not a second one."""
        now = time.monotonic()
        if number == signal.SIGINT and now - self._last_interrupt > SECOND_INTERRUPT_AFTER_S:
            self._interrupts += 1
            self._last_interrupt = now

    def _is_overdue(self) -> bool:
        if self._requested_at is None:
            return False
        if self._nothing_to_save.is_set():
            return True
        limit = SAVE_WITHIN_S if self._loop_ended.is_set() else STUCK_AFTER_S
        return self._interrupts > 1 or time.monotonic() - self._requested_at > limit
