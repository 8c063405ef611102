"""The files of a run directory: their names, and which of them are kept with the run in MLflow."""

from __future__ import annotations

from pathlib import Path

from lrrunner.system.atomic_files import is_partial

CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.yaml"
STATUS_FILE = "status.json"
RECORDS_FILE = "records.csv"
TRIAL_RECORDS_FILE = "trial_records.csv"
TRIALS_FILE = "trials.csv"
SUGGESTION_FILE = "suggestion.json"
NOTE_FILE = "note.md"
FIGURE_FILE = "lr_sweep.png"
RANKS_FOLDER = "ranks"
"""Logs and output of each rank."""
CHECKPOINT_FOLDER = "checkpoints"


def artifacts(directory: Path) -> list[Path]:
    """The complete files of a run directory, without its checkpoints."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not is_partial(path) and CHECKPOINT_FOLDER not in path.relative_to(directory).parts
    )
