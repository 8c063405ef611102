"""Progress is one bar on a terminal, a line now and then in a log, and nothing where it is not wanted."""

from __future__ import annotations

import io
import os

import pytest

from lrrunner.records import Progress
from lrrunner.reporting.progress_display import BarDisplay, ForwardingDisplay, LineDisplay, progress_display


class Terminal(io.StringIO):
    """Text that counts as a terminal."""

    def isatty(self) -> bool:
        return True


def at(step: int, *, label: str = "LR sweep") -> Progress:
    return Progress(label=label, step=step, num_steps=100, detail="lr 1.0e-03  loss 0.5")


def test_a_terminal_shows_label_values_and_count_in_one_line_of_80_columns() -> None:
    """The last line drawn is the newest state, and clearing leaves nothing of it."""
    stream = Terminal()
    display = progress_display(stream=stream)
    assert isinstance(display, BarDisplay)
    display.announce("starting 2 ranks ...")
    for step in (10, 45):
        display.show(at(step))
    display.clear()
    drawn = [line.strip() for line in stream.getvalue().split("\r") if line.strip()]
    assert drawn[0] == "starting 2 ranks ..."
    assert drawn[1].startswith("LR sweep  lr 1.0e-03  loss 0.5 ")
    assert " 10/100  " in drawn[1]
    assert drawn[1].endswith(" left")
    assert "\n" not in stream.getvalue().strip()


def test_the_first_step_says_nothing_of_the_time_left() -> None:
    """A question mark is no time."""
    stream = Terminal()
    display = BarDisplay(stream)
    for _ in range(2):  # a supervisor shows what it last heard of
        display.show(at(1))
    display.clear()
    assert "--:-- left" in stream.getvalue()
    assert "?" not in stream.getvalue()


def test_a_long_label_leaves_room_for_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not fit was cut off at the end of the line, which is the time left; ^C would begin another line."""
    stream = Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((80, 24)))
    display = BarDisplay(stream)
    display.show(at(45, label="a_very_long_name: " * 6))
    display.clear()
    drawn = [line.strip() for line in stream.getvalue().split("\r") if line.strip()]
    assert "…" in drawn[0]
    assert "lr 1.0e-03  loss 0.5 " in drawn[0]
    assert drawn[0].endswith(" 45/100  --:-- left")
    assert len(drawn[0]) == 77


def test_another_part_begins_another_bar_in_its_place() -> None:
    """A bar that stands still at the end of the last pass would be wrong."""
    stream = Terminal()
    display = BarDisplay(stream)
    display.show(at(100))
    display.show(at(1, label="trial 1"))
    display.clear()
    drawn = [line.strip() for line in stream.getvalue().split("\r") if line.strip()]
    assert drawn[-1].startswith("trial 1  lr")
    assert " 1/100  " in drawn[-1]


def test_a_log_gets_a_line_every_half_a_minute() -> None:
    """Short work prints none; long work shows that it is alive, and for how much longer."""
    stream, now = io.StringIO(), [0.0]
    display = LineDisplay(stream, clock=lambda: now[0])
    display.announce("starting 2 ranks ...")
    display.show(at(0))
    now[0] = 29.0
    display.show(at(20))
    assert stream.getvalue() == ""
    now[0] = 40.0
    display.show(at(40))
    now[0] = 41.0
    display.show(at(41))
    assert stream.getvalue() == "lrrunner: LR sweep: 40 of 100, lr 1.0e-03  loss 0.5, 01:00 left\n"


def test_quiet_shows_nothing_even_on_a_terminal() -> None:
    """As ``-q`` asks for."""
    stream = Terminal()
    display = progress_display(quiet=True, stream=stream)
    display.announce("starting 2 ranks ...")
    display.show(at(1))
    with display.cleared():
        display.clear()
    assert stream.getvalue() == ""


def test_progress_is_handed_on_and_taken_back() -> None:
    """A rank hands its progress to the process that owns the terminal."""
    sent: list[Progress | None] = []
    display = ForwardingDisplay(sent.append)
    display.show(at(1))
    display.clear()
    assert sent == [at(1), None]
