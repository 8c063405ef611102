"""Trackers beside MLflow (``tracking.also``), as Accelerate wraps them; MLflow and run directory stay the record."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrrunner.records import RangeTestResult, Step
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.plain_values import flattened
from lrrunner.tracking.names.metric_names import result_metrics, result_tags, step_point

FOLDER = "trackers"
"""Folder of the run directory for trackers that write files."""

logger = logging.getLogger(__name__)


def tracker_errors(names: Sequence[str]) -> list[str]:
    """Which of the trackers are not installed."""
    if not names:
        return []
    from accelerate.tracking import get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    return [
        f"tracking.also must name installed trackers, got {name}; pip install {name}, or leave it out"
        for name in names
        if name not in available
    ]


class OtherTrackers:
    """Logs a run to further trackers. One that fails is left alone, with a warning: it must not cost the sweep.

    Args:
        names: Accelerate's names of the trackers.
        project: Name of their project.
        directory: Run directory.
        redactor: Masks secrets.
    """

    def __init__(self, names: Sequence[str], *, project: str, directory: Path, redactor: Redactor) -> None:
        self._names, self._project, self._directory, self._redactor = names, project, directory, redactor
        self._trackers: dict[str, Any] = {}
        self._num_points = 0

    def start(self, config: Mapping[str, Any]) -> None:
        """Start the trackers and log the configuration."""
        values = flattened(self._redactor.tree(config))
        for name in self._names:
            self._guarded(name, functools.partial(self._start, name, values))

    def log_step(self, step: Step, *, prefix: str = "") -> None:
        """Log a step of the sweep or, with a prefix, of a confirmation run; steps are numbered through."""
        values = step_point(step).values
        if not prefix:
            values = {**values, "sweep_pass": step.sweep_pass, "repeat": step.repeat}
        self._log({f"{prefix}{key}": value for key, value in values.items() if math.isfinite(value)})

    def finish(self, test: RangeTestResult | None) -> None:
        """Log the result, if there is one, and end the trackers."""
        if test is not None:
            self._log({**result_metrics(test), **result_tags(test)})
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)
        self._trackers.clear()

    def _start(self, name: str, values: Mapping[str, str]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = self._directory / FOLDER
        tracker = kind(self._project, folder) if kind.requires_logging_directory else kind(self._project)
        if hasattr(tracker, "start"):  # versions before it start when they are made
            tracker.start()
        tracker.store_init_configuration(dict(values))
        self._trackers[name] = tracker

    def _log(self, values: Mapping[str, Any]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, functools.partial(tracker.log, dict(values), step=self._num_points))
        self._num_points += 1

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - trackers raise what they like
            self._trackers.pop(name, None)
            reason = self._redactor.text(f"{type(error).__name__}: {error}")
            logger.warning("tracking.also: %s failed (%s) and is left alone", name, reason)
