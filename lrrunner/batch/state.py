"""batch.json: what makes a directory a batch of ours, and what a later process must know of it. No torch."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lrrunner.config.schema import Config
from lrrunner.config.serialization import to_plain
from lrrunner.system.atomic_files import read_json, write_json

STATE_FILE = "batch.json"
LOCK_FILE = ".lock"


SALT_BYTES = 16

NOT_OF_THE_JOB = ("tracking", "run")
NOT_OF_THE_JOB_IN_LAUNCH = ("concurrent", "timeout_s")


def job_key(config: Config, *, salt: str) -> str:
    """What a job computes, as a name that is the same in a later process: secrets count, but cannot be read from it.

    Where and how long it runs and where it is recorded do not count, nor in which words it was asked for.

    Args:
        config: Configuration, secrets unmasked.
        salt: The batch's own, so that short secrets cannot be found by trying.
    """
    counted = {key: value for key, value in to_plain(config).items() if key not in NOT_OF_THE_JOB}
    counted["launch"] = {k: v for k, v in counted["launch"].items() if k not in NOT_OF_THE_JOB_IN_LAUNCH}
    text = json.dumps(counted, sort_keys=True, default=str)
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()[:32]


def unique_keys(keys: Sequence[str], *, earlier: Sequence[str] = ()) -> list[str]:
    """The keys, with a number behind those that were there before: a grid may ask for one job twice."""
    counts = Counter(key.partition("-")[0] for key in earlier)
    unique = []
    for key in keys:
        counts[key] += 1
        unique.append(key if counts[key] == 1 else f"{key}-{counts[key]}")
    return unique


@contextmanager
def batch_lock(directory: Path) -> Iterator[None]:
    """Two processes at one batch would run, or report, everything twice.

    Raises:
        BlockingIOError: another process has it.
    """
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{directory} still works; wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def read_state(directory: Path) -> dict[str, Any]:
    """What batch.json says; empty where there is none."""
    return read_json(directory / STATE_FILE) or {}


def update_state(directory: Path, **changes: Any) -> dict[str, Any]:
    """Change fields of batch.json, readable by its owner alone.

    Returns:
        All fields.
    """
    state = read_state(directory) | changes
    write_json(directory / STATE_FILE, state, private=True)
    return state
