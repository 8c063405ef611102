"""Where log records go: warnings to the terminal in one line, everything to the rank's own file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

from lrrunner.redaction import RedactingFormatter, Redactor

package_logger = logging.getLogger("lrrunner")


def speak_on_stderr(redactor: Redactor) -> None:
    """Warnings reach the terminal as one line each; tracebacks and information go to the rank's log only."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(RedactingFormatter("lrrunner: %(message)s", redactor))
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # it logs what stage B reports in its own words


@contextlib.contextmanager
def early_log() -> Iterator[MemoryHandler]:
    """Keep log records until there is a directory to write them to."""
    handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    package_logger.addHandler(handler)
    try:
        yield handler
    finally:
        package_logger.removeHandler(handler)


def log_to(directory: Path, rank: int, redactor: Redactor, early: MemoryHandler) -> None:
    """ranks/<rank>.log, made when there is something to write; on a node without the directory, nowhere."""
    if not directory.is_dir():
        return
    handler = logging.FileHandler(directory / "ranks" / f"{rank}.log", delay=True, encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", redactor))
    package_logger.addHandler(handler)
    early.setTarget(handler)
    early.flush()
