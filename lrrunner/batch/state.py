"""batch.json: what makes a directory a batch directory, and what a later process must know of the batch. No torch."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from lrrunner.results.run_state import RunState
from lrrunner.system.atomic_files import read_json, write_json
from lrrunner.version import __version__

STATE_FILE = "batch.json"
SALT_BYTES = 16


def read_state(directory: Path) -> dict[str, Any]:
    """The fields of batch.json; empty where there is none."""
    return read_json(directory / STATE_FILE) or {}


def update_state(directory: Path, **changes: Any) -> dict[str, Any]:
    """Change fields of batch.json, readable by its owner alone.

    Returns:
        All fields.
    """
    state = read_state(directory) | changes
    write_json(directory / STATE_FILE, state, private=True)
    return state


def begin(directory: Path, *, num_jobs: int) -> str:
    """Mark the directory as that of a running batch.

    Returns:
        The salt of the batch's keys; a resumed batch keeps its own.
    """
    salt = str(read_state(directory).get("salt") or secrets.token_hex(SALT_BYTES))
    update_state(directory, lrrunner=__version__, salt=salt, num_jobs=num_jobs, state=RunState.RUNNING)
    return salt
