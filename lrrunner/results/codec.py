"""Steps and trials as rows of CSV files, made from their fields. No torch.

The writer, the reader and the records of the library call all take their columns from here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from lrrunner.config.schema import Monitor, SweepConfig
from lrrunner.records import Step, Trial
from lrrunner.system.plain_values import field_types

DERIVED = "is_monitored"
"""No column: false where there is a column ``val_loss`` and it is empty."""

STEP_COLUMNS = tuple(name for name, kind in field_types(Step).items() if kind in (int, float, bool) and name != DERIVED)
"""Columns of records.csv that every sweep has."""

TRIAL_STEP_COLUMNS = ("trial", *(name for name in STEP_COLUMNS if name not in ("sweep_pass", "repeat")))
"""Columns of trial_records.csv; ``trial`` is the number of the confirmation run."""

TRIAL_COLUMNS = ("trial", "schedule", *(name for name in field_types(Trial) if name != "trial"))
"""Columns of trials.csv; all confirmation runs of a job have one schedule."""


def optional_step_columns(sweep: SweepConfig) -> tuple[str, ...]:
    """Columns of records.csv that only some sweeps have: what a validation monitor or the noise scale measures.

    >>> optional_step_columns(SweepConfig(monitor=Monitor.val))
    ('val_loss', 'val_items')
    """
    of_monitor = ("val_loss", "val_items") if sweep.monitor == Monitor.val else ()
    of_noise_scale = ("gradient_variance",) if sweep.noise_scale else ()
    return of_monitor + of_noise_scale


def cells(record: Step | Trial, columns: Sequence[str]) -> list[str]:
    """Fields of a record as text that gives the same number back."""
    values = map(functools.partial(getattr, record), columns)
    return [float.__repr__(value) if type(value) is float else _text(value) for value in values]


def step_from(row: Mapping[str, str]) -> Step:
    """The step of a row of records.csv or trial_records.csv."""
    return Step(**_values(Step, row), is_monitored=row.get("val_loss") != "")


def trial_from(row: Mapping[str, str]) -> Trial:
    """The trial of a row of trials.csv."""
    return Trial(**_values(Trial, row))


def _values(kind: type, row: Mapping[str, str]) -> dict[str, Any]:
    return {name: _value(kind, row[name]) for name, kind in field_types(kind).items() if name in row}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return float.__repr__(value)
    return str(value.value if isinstance(value, Enum) else value)


def _value(kind: Any, text: str) -> Any:
    if kind == float | None:
        return float(text) if text else None
    if kind == tuple[float, ...]:
        return tuple(map(float, text.split()))
    return text == "1" if kind is bool else kind(text)
