"""Which job of a batch reached the lowest loss, where losses can be compared at all. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from lrrunner.batch.ledger import Entry

COMPARED_LOSS = "lowest smoothed loss of its sweep"
"""What ``best_loss`` is. It ranks jobs; the loss that a training reaches is another, lower one."""

MEASURE_SECTIONS = ("experiment", "data", "loss", "objective", "sweep")
"""Sections that change what a loss measures, or how many samples and LRs it was measured with."""


def best_entry(entries: Sequence[Entry]) -> Entry | None:
    """The job with the lowest loss, of those with a suggestion; None if there are not two of them, or they differ in
    what the loss measures."""
    comparable = [entry for entry in entries if entry.lr is not None and entry.best_loss is not None]
    if len(comparable) < 2 or different_measures(entries):
        return None
    return min(comparable, key=_best_loss)


def why_no_best(entries: Sequence[Entry]) -> str:
    """Why jobs with a loss are not ranked; empty where they are, or where there are not two of them."""
    keys = different_measures(entries)
    if not keys or sum(entry.best_loss is not None and entry.lr is not None for entry in entries) < 2:
        return ""
    return f"losses do not compare where jobs differ in {', '.join(keys)}"


def different_measures(entries: Sequence[Entry]) -> list[str]:
    """Keys in which jobs differ, and that change what the loss measures: data, batch size, loss function, seed, ..."""
    found: dict[str, set[str | None]] = {}
    for entry in entries:
        for key, value in parsed_overrides(entry).items():
            if key.replace("/", ".").partition(".")[0] in MEASURE_SECTIONS:
                found.setdefault(key, set()).add(value)
    for entry in entries:
        for key in found.keys() - parsed_overrides(entry).keys():
            found[key].add(None)
    return [key for key, values in found.items() if len(values) > 1]


def parsed_overrides(entry: Entry) -> dict[str, str]:
    """Key -> value, as typed."""
    return dict(override.lstrip("+~").partition("=")[::2] for override in entry.overrides)


def _best_loss(entry: Entry) -> float:
    assert entry.best_loss is not None
    return entry.best_loss
