"""Reading a run directory back: what a supervisor, a summary and a late upload know of a run. No torch."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrrunner.config.schema import Config
from lrrunner.config.serialization import config_from
from lrrunner.records import NoiseScale, RangeTestResult, Step, Stop, StopReason, Suggestion, Verdict
from lrrunner.system.atomic_files import write_json

INTEGERS = ("sweep_pass", "repeat", "step", "timestamp_ms")


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run directory holds; parts are missing where the run did not come to them.

    Attributes:
        path: The directory.
        status: status.json.
        config: config.yaml, secrets masked.
        overrides: overrides.yaml, secrets masked.
        steps: records.csv.
        trial_steps: Records of each confirmation run, by its number.
        trials: The end of each confirmation run, as a step.
        test: The range test, once there is a suggestion; without its passes and confirmation runs.
        note: note.md; empty before the run's end.
    """

    path: Path
    status: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]
    steps: tuple[Step, ...]
    trial_steps: dict[int, list[Step]]
    trials: list[Step]
    test: RangeTestResult | None
    note: str

    @property
    def job(self) -> Config:
        """The typed job."""
        return config_from(self.config)

    @property
    def best_loss(self) -> float | None:
        """Lowest smoothed loss."""
        return min((step.smoothed_loss for step in self.steps if math.isfinite(step.smoothed_loss)), default=None)


def read_run(path: Path) -> RunFiles:
    """Read what there is."""
    status = _json(path / "status.json")
    steps = tuple(Step(**_values(row)) for row in _rows(path / "records.csv"))
    trial_steps = _trial_steps(path)
    suggestion = _json(path / "suggestion.json")
    return RunFiles(
        path=path,
        status=status,
        config=_yaml(path / "config.yaml") or {},
        overrides=_yaml(path / "overrides.yaml") or [],
        steps=steps,
        trial_steps=trial_steps,
        trials=_trials(path, trial_steps),
        note=_text(path / "note.md"),
        test=_range_test(suggestion, steps) if suggestion else None,
    )


def shown_path(path: Path) -> str:
    """Relative to the current directory where it lies below it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def read_status(path: Path) -> dict[str, Any]:
    """status.json of a run directory, empty where there is none."""
    return _json(path / "status.json")


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run directory, empty where there is none."""
    content = _yaml(path / "config.yaml")
    return content if isinstance(content, dict) else {}


def write_status(path: Path, **changes: Any) -> None:
    """Correct status.json from outside, where the run's own process could not; nothing without a run directory."""
    if not path.is_dir():
        return
    write_json(path / "status.json", read_status(path) | changes, durable=True)


def _range_test(content: dict[str, Any], steps: tuple[Step, ...]) -> RangeTestResult:
    interval = content["interval"]
    suggestion = Suggestion(
        lr=content["lr"],
        method=content["method"],
        verdict=Verdict(content["verdict"]),
        reason=content["reason"],
        interval=None if interval is None else (interval[0], interval[1]),
        candidates=content["candidates"],
    )
    curve_pass = next((number for number, item in enumerate(content.get("passes", ())) if item["is_curve"]), None)
    stop = Stop(
        reason=StopReason(content["stop_reason"]),
        step=content["stop_step"],
        ranks=tuple(content.get("stop_ranks", ())),
        sweep_pass=curve_pass or 0,
    )
    return RangeTestResult(
        steps=steps,
        stops=(stop,),
        suggestion=suggestion,
        world_size=content["world_size"],
        global_batch_size=content["global_batch_size"],
        curve_pass=curve_pass,
        noise_scale=NoiseScale(**content["noise_scale"]) if "noise_scale" in content else None,
    )


def _trial_steps(path: Path) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for row in _rows(path / "trial_records.csv"):
        found.setdefault(int(row.pop("trial")), []).append(Step(**_values(row)))
    return found


def _trials(path: Path, trial_steps: dict[int, list[Step]]) -> list[Step]:
    """The end of each trial, at the time of its last step."""
    ends = []
    for row in _rows(path / "trials.csv"):
        number, steps = int(row["trial"]), trial_steps.get(int(row["trial"]), [])
        time_ms = steps[-1].timestamp_ms if steps else 0
        ends.append(Step(step=number, lr=float(row["lr"]), loss=float(row["loss"]), timestamp_ms=time_ms))
    return ends


def _rows(path: Path) -> list[dict[str, str]]:
    """Whole rows; the last one may be cut off where the machine died."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except OSError:
        return []


def _values(row: dict[str, str]) -> dict[str, Any]:
    values = {name: _value(name, text) for name, text in row.items()}
    return values if values.get("val_loss", 0.0) is not None else values | {"is_monitored": False}


def _value(name: str, text: str) -> Any:
    if name == "skipped":
        return text == "1"
    if name == "val_loss" and not text:
        return None
    return int(text) if name in INTEGERS else float(text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
