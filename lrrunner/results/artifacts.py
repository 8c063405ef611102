"""The files of a run directory that are kept with the run in MLflow."""

from __future__ import annotations

from pathlib import Path

from lrrunner.system.atomic_files import is_partial

CHECKPOINT_FOLDER = "checkpoints"
FIGURE = "lr_sweep.png"


def artifacts(directory: Path) -> list[Path]:
    """The complete files of a run directory, without its checkpoints."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not is_partial(path) and CHECKPOINT_FOLDER not in path.relative_to(directory).parts
    )
