"""Reading a run directory back: what a supervisor, a summary and a late upload know of a run. No torch."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrrunner.config.schema import Config
from lrrunner.records import RangeTestResult, Step, lowest_smoothed_loss
from lrrunner.results.artifacts import (
    CONFIG_FILE,
    NOTE_FILE,
    OVERRIDES_FILE,
    RECORDS_FILE,
    SUGGESTION_FILE,
    TRIAL_RECORDS_FILE,
    TRIALS_FILE,
)
from lrrunner.results.codec import step_from, trial_from
from lrrunner.results.recorder import RunRecords
from lrrunner.results.run_state import RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.results.suggestion_file import range_test_from
from lrrunner.system.atomic_files import read_json
from lrrunner.system.plain_values import from_plain


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run directory holds; parts are missing where the run ended before.

    Attributes:
        path: The directory.
        status: status.json.
        config: config.yaml, secrets masked.
        overrides: overrides.yaml, secrets masked.
        records: Steps of the sweep, confirmation runs and their steps.
        test: The range test, once there is a suggestion.
        note: note.md; empty before the run's end.
    """

    path: Path
    status: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]
    records: RunRecords
    test: RangeTestResult | None
    note: str

    @property
    def job(self) -> Config:
        """The typed job."""
        return from_plain(Config, self.config)

    @property
    def state(self) -> RunState | None:
        """The state of the run; None without a status."""
        return state_in(self.status)

    @property
    def best_loss(self) -> float | None:
        """Lowest smoothed loss."""
        return lowest_smoothed_loss(self.records.steps)


def read_run(path: Path) -> RunFiles:
    """Read what there is."""
    records = RunRecords(
        steps=[step_from(row) for row in _rows(path / RECORDS_FILE)],
        trial_steps=_trial_steps(path),
        trials=[trial_from(row) for row in _rows(path / TRIALS_FILE)],
    )
    suggestion = read_json(path / SUGGESTION_FILE)
    return RunFiles(
        path=path,
        status=read_status(path),
        config=read_config(path),
        overrides=_yaml(path / OVERRIDES_FILE) or [],
        records=records,
        note=_text(path / NOTE_FILE),
        test=range_test_from(suggestion, tuple(records.steps), tuple(records.trials)) if suggestion else None,
    )


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run directory, empty where there is none."""
    content = _yaml(path / CONFIG_FILE)
    return content if isinstance(content, dict) else {}


def _trial_steps(path: Path) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for row in _rows(path / TRIAL_RECORDS_FILE):
        found.setdefault(int(row["trial"]), []).append(step_from(row))
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Complete rows; the last one may be incomplete where the machine died."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
