"""Whoever stops listening stops no work."""

from __future__ import annotations

import os
import signal

from lrrunner.system.interrupt_counter import InterruptCounter
from lrrunner.system.terminal import write_line


def test_a_reader_that_has_gone_costs_nothing() -> None:
    """`lrrunner -m ... | head -2` closes the pipe after two lines; the batch goes on."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        write_line("heard", stream)
        os.close(reading)
        write_line("not heard", stream)
        write_line("nor this", stream)
    write_line("after its end", stream)


def test_a_closed_terminal_is_a_request_to_stop() -> None:
    """Taken for SIGTERM, which ranks know how to save at; under nohup it is none."""
    with InterruptCounter() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert (interrupts.count, interrupts.signal, interrupts.exit_code) == (1, signal.SIGTERM, 143)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptCounter() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.count == 0
    finally:
        signal.signal(signal.SIGHUP, old)
