"""batch.json: what makes a directory a batch of ours, and what a later process must know of it. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

STATE_FILE = "batch.json"
LOCK_FILE = ".lock"


def read_state(directory: Path) -> dict[str, Any]:
    """What batch.json says; empty where there is none."""
    try:
        content: dict[str, Any] = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def update_state(directory: Path, **changes: Any) -> dict[str, Any]:
    """Change fields of batch.json, readable by its owner alone.

    Returns:
        All fields.
    """
    state = read_state(directory) | changes
    partial = directory / f".{STATE_FILE}.part"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(state, indent=2) + "\n")
    partial.replace(directory / STATE_FILE)
    return state
