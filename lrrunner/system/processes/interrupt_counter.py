"""Signals that ask a supervisor to stop: the first one to save and stop, the second one to stop at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from lrrunner.system.exit_codes import signal_exit_code
from lrrunner.system.processes.start_signals import end_start

_num_interrupts = 0


def num_interrupts() -> int:
    """Signals that any counter of this process has counted so far: what waits can give up when another one comes."""
    return _num_interrupts


class InterruptCounter:
    """Counts SIGINT, SIGTERM, SIGUSR2 and SIGHUP (a closed terminal, as SIGTERM) instead of ending the process."""

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None

    def __enter__(self) -> Self:
        end_start()
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        self._old_handlers = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal."""
        return signal_exit_code(self.signal or signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        global _num_interrupts
        _num_interrupts += 1
        self.count += 1
        self.signal = self.signal or (signal.SIGTERM if number == signal.SIGHUP else number)
