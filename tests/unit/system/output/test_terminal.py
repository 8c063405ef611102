"""Neither a closed pipe nor a closed terminal ends the work at once."""

from __future__ import annotations

import io
import os
import signal

import pytest

from lrrunner.system.output.terminal import fitted, write_line
from lrrunner.system.processes.interrupt_counter import InterruptCounter


def test_a_closed_pipe_raises_nothing() -> None:
    """`lrrunner -m ... | head -2` closes the pipe after two lines; the batch continues."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        write_line("read", stream)
        os.close(reading)
        write_line("not read", stream)
        write_line("nor this", stream)
    write_line("after its end", stream)


def test_a_closed_terminal_is_a_request_to_stop() -> None:
    """Treated as SIGTERM, at which ranks save; ignored under nohup."""
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


def test_a_message_is_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal breaks words where its width ends; a log has one line to search for."""
    message = "the configuration is wrong\n  - model.width must be a number, got wide; see conf/README.md"
    assert fitted(message, io.StringIO()) == message
    monkeypatch.setattr("lrrunner.system.output.terminal.columns", lambda stream: 40)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert fitted(message, terminal).split("\n") == [
        "the configuration is wrong",
        "  - model.width must be a number, got",
        "    wide; see conf/README.md",
    ]
