"""Progress of long work on standard error: one bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from lrrunner.records import Progress
from lrrunner.system.output.terminal import columns, erase_line, shortened_in_middle, write_line

BAR_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt}  {remaining} left"
FIRST_BAR_FORMAT = BAR_FORMAT.replace("{remaining}", "--:--")
"""Of a first step, which says nothing of the time left."""

MIN_LABEL = 8
UNKNOWN_WIDTH = 100
ECHO_COLUMNS = 3
"""Left free at the end of a line: the terminal's ^C would begin another one, and the bar would stay above it."""
LINE_INTERVAL_S = 30.0


class ProgressDisplay(Protocol):
    """Shows where a job is."""

    def show(self, progress: Progress) -> None:
        """Show the newest state."""
        ...

    def announce(self, text: str) -> None:
        """Show what is waited for before there is progress."""
        ...

    def cleared(self) -> AbstractContextManager[None]:
        """Printed text within this context does not run into the bar."""
        ...

    def clear(self) -> None:
        """Remove the bar."""
        ...


def progress_display(*, quiet: bool = False, position: int = 0, stream: TextIO | None = None) -> ProgressDisplay:
    """The display that fits the stream.

    Args:
        quiet: Show nothing.
        position: Line of the bar, from 0 at the top, where several are shown.
        stream: Where it is shown; None is standard error.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return NoDisplay()
    return BarDisplay(stream, position=position) if stream.isatty() else LineDisplay(stream)


class NoDisplay:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Show nothing."""

    def announce(self, text: str) -> None:
        """Show nothing."""

    def cleared(self) -> AbstractContextManager[None]:
        """Nothing to clear."""
        return nullcontext()

    def clear(self) -> None:
        """Nothing to clear."""


class ForwardingDisplay(NoDisplay):
    """Hands progress on to a display elsewhere.

    Args:
        send: Receives the newest state; None when there is none to show.
    """

    def __init__(self, send: Callable[[Progress | None], None]) -> None:
        self._send = send

    def show(self, progress: Progress) -> None:
        """Send the state."""
        self._send(progress)

    def clear(self) -> None:
        """Send that there is nothing to show."""
        self._send(None)


class LineDisplay(NoDisplay):
    """Prints a line every half a minute, for logs and pipes; work that is shorter prints none.

    Args:
        stream: Where it prints.
        clock: Time in seconds.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._written_at = clock()
        self._begun: tuple[str, float, int] = ("", self._written_at, 0)

    def show(self, progress: Progress) -> None:
        """Print the state if the last line is old enough."""
        if progress.label != self._begun[0]:
            self._begun = (progress.label, self._clock(), progress.step)
        self._write_rarely(
            f"{progress.label}: {progress.step} of {progress.num_steps}, {self._with_time_left(progress)}"
        )

    def announce(self, text: str) -> None:
        """Print the text if the last line is old enough."""
        self._write_rarely(text)

    def _with_time_left(self, progress: Progress) -> str:
        _, since, first = self._begun
        num_done = progress.step - first
        if num_done < 1:
            return progress.detail
        left_s = (self._clock() - since) / num_done * (progress.num_steps - progress.step)
        return f"{progress.detail}, {tqdm.format_interval(left_s)} left"

    def _write_rarely(self, text: str) -> None:
        if self._clock() - self._written_at >= LINE_INTERVAL_S:
            self._written_at = self._clock()
            write_line(f"lrrunner: {text}", self._stream)


class BarDisplay:
    """A bar on one line of a terminal.

    Args:
        stream: The terminal.
        position: Line of the bar, from 0 at the top, where several are shown.
    """

    def __init__(self, stream: TextIO, *, position: int = 0) -> None:
        self._stream, self._position = stream, position
        self._bar: Any = None
        self._label: str | None = None

    def show(self, progress: Progress) -> None:
        """Advance the bar; another label begins another bar in its place."""
        is_new = progress.label != self._label
        if is_new:
            self._replace(progress.label, total=progress.num_steps, initial=progress.step, bar_format=FIRST_BAR_FORMAT)
        elif progress.step > self._bar.initial:
            self._bar.bar_format = BAR_FORMAT
        self._bar.set_description_str(self._description(progress), refresh=is_new)
        self._bar.update(progress.step - self._bar.n)

    def announce(self, text: str) -> None:
        """Show the text in place of a bar."""
        if text != self._label:
            self._replace(text, total=None, initial=0, bar_format="{desc}")
            self._bar.set_description_str(text)

    def cleared(self) -> AbstractContextManager[None]:
        """Printed text within this context does not run into any bar."""
        return self._cleared()

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        with tqdm.external_write_mode(file=self._stream):
            erase_line(self._stream)  # the terminal echoes ^C after the bar
            yield

    def clear(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            if self._position == 0:
                erase_line(self._stream)
        self._bar = self._label = None

    def _description(self, progress: Progress) -> str:
        """Label and values, as far as the line has room for them beside the count and the time left."""
        count = f" / {progress.num_steps}/{progress.num_steps}  00:00 left"
        room = self._width() - len(count)
        label = shortened_in_middle(progress.label, max(MIN_LABEL, room - len(progress.detail) - 2))
        return f"{label}  {progress.detail}".rstrip()[: max(room, MIN_LABEL)]

    def _width(self) -> int:
        return columns(self._stream, default=UNKNOWN_WIDTH) - ECHO_COLUMNS

    def _replace(self, label: str, *, total: int | None, initial: int, bar_format: str) -> None:
        self.clear()
        self._label = label
        self._bar = tqdm(
            total=total,
            initial=initial,
            bar_format=bar_format,
            file=self._stream,
            position=self._position,
            dynamic_ncols=True,
            leave=False,
            delay=1e-9,  # else it is drawn before it has a description
        )
        self._bar.dynamic_ncols = lambda stream: (self._width(), None)
