"""The directory of a batch: a new one or one to resume, and never two processes in it. No torch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lrrunner.batch import ledger
from lrrunner.batch.state import STATE_FILE
from lrrunner.config.schema import RunConfig
from lrrunner.errors import ConfigError

LOCK_FILE = ".lock"


def is_batch(directory: Path) -> bool:
    """Whether a directory holds a batch."""
    return any((directory / name).exists() for name in (STATE_FILE, ledger.FILE_NAME))


def batch_directory(run: RunConfig) -> Path:
    """The directory of the batch; a new one is made.

    Args:
        run: Section ``run`` of the batch's configuration.

    Raises:
        ConfigError: ``run.resume`` names no batch, or ``run.dir`` cannot take a new one.
    """
    if run.resume is None:
        return _new_directory(run.dir)
    if not is_batch(Path(run.resume)):
        raise ConfigError(
            [f"run.resume must name a batch directory, got {run.resume}; leave it out to begin a new one"]
        )
    return Path(run.resume).resolve()


def _new_directory(name: str | None) -> Path:
    default = f"batch-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    directory = Path(name or Path("runs") / default).resolve()
    if is_batch(directory):
        raise ConfigError([f"run.dir must not hold a batch yet, got {directory}; go on with run.resume={directory}"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in directory.iterdir() if path.name != LOCK_FILE)
    except OSError as error:
        raise ConfigError(
            [f"run.dir must be a writable directory, got {directory} ({error.strerror}); choose another directory"]
        ) from None
    if others:
        raise ConfigError(
            [
                f"run.dir must be new or empty for a batch, got {directory} with {others[0]} in it; "
                "choose another directory"
            ]
        )
    return directory


@contextmanager
def batch_lock(directory: Path) -> Iterator[None]:
    """Hold the directory for this process: two would run, or upload, everything twice.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{directory} is still running; wait for its end") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_batch(directory: Path, run: RunConfig) -> Iterator[None]:
    """:func:`batch_lock` for the command that runs the batch.

    Raises:
        ConfigError: another process runs a batch there.
    """
    key = "run.dir" if run.resume is None else "run.resume"
    with ExitStack() as stack:
        try:
            stack.enter_context(batch_lock(directory))
        except BlockingIOError:
            raise ConfigError(
                [
                    f"{key} must name a directory where no batch is running, got {directory}; wait for its end, "
                    f"then go on with run.resume={directory}"
                ]
            ) from None
        yield
