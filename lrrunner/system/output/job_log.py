"""Logging of one job: warnings to the terminal in one line, everything to the rank's own file."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from lrrunner.system.output.redaction import RedactingFormatter, Redactor
from lrrunner.system.output.terminal import columns

package_logger = logging.getLogger("lrrunner")


def wake_loggers() -> None:
    """Enable the package's loggers again: Hydra's `disabled` logging disables every logger that exists."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == package_logger.name:
            logger.disabled = False


class _Terminal(logging.StreamHandler[TextIO]):
    """Standard error: a record does not run into a progress bar, and lines of a terminal are broken between words."""

    def format(self, record: logging.LogRecord) -> str:
        """The text, wrapped on a terminal."""
        text = super().format(record)
        if not self.stream.isatty():
            return text
        return textwrap.fill(text, columns(self.stream), break_long_words=False, break_on_hyphens=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record above the bars."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _LogFile(logging.FileHandler):
    """A file that may fail, on a full disk, without a message from logging for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if the file takes it."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Drop the record: what fails is said once, where it matters."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            super().close()


class JobLog:
    """Log handlers of one job on one rank, removed at its end.

    Warnings are printed as one line each; tracebacks and information go to the rank's file only, and are kept until the
    run directory exists.

    Args:
        redactor: Masks secrets in everything logged.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._terminal = _Terminal()
        self._terminal.setLevel(logging.WARNING)
        self._terminal.setFormatter(RedactingFormatter("lrrunner: %(message)s", redactor))
        self._early = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handlers: list[logging.Handler] = [self._terminal, self._early]
        self._propagated = True

    def __enter__(self) -> Self:
        for handler in self._handlers:
            package_logger.addHandler(handler)
        package_logger.setLevel(logging.INFO)
        self._propagated, package_logger.propagate = package_logger.propagate, False
        logging.getLogger("hydra").setLevel(logging.CRITICAL)  # it would also log errors that stage B reports
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler in self._handlers:
            package_logger.removeHandler(handler)
            handler.close()
        package_logger.propagate = self._propagated

    def write_to(self, directory: Path, rank: int) -> None:
        """Write to ranks/<rank>.log, created with its first record; on a node without the directory, to no file."""
        package_logger.removeHandler(self._early)
        if not directory.is_dir():
            return
        handler = _LogFile(directory / "ranks" / f"{rank}.log", delay=True, encoding="utf-8")
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", self._redactor))
        package_logger.addHandler(handler)
        self._handlers.append(handler)
        self._early.setTarget(handler)
        self._early.flush()
