"""The files that sum up a batch: summary.csv, summary.png and a figure for each swept number. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lrrunner.batch.ledger import Entry
from lrrunner.batch.summary import summary_table
from lrrunner.core.curve import Curve, curve_from_steps
from lrrunner.core.power_law import power_law
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import RunState
from lrrunner.system.atomic_files import write_text


def write_summary(directory: Path, entries: Sequence[Entry]) -> list[Path]:
    """Write summary.csv and the figures.

    Args:
        directory: The batch directory.
        entries: The last ledger line of each job, in the order of the grid.

    Returns:
        The figures.
    """
    write_text(directory / "summary.csv", summary_table.csv_text(entries))
    from lrrunner.batch.summary.figures import category_figure, overlay_figure, scaling_figure
    from lrrunner.reporting.sweep_figure import save_png

    batch_title = summary_table.batch_name([entry.overrides for entry in entries])
    figures = []
    curves = list(_curves(directory, entries))
    if curves:
        figures.append(directory / "summary.png")
        save_png(overlay_figure(curves, title=batch_title), figures[-1])
    for key, points in summary_table.swept_numbers(entries).items():
        values, lrs = np.array([point.value for point in points]), np.array([point.lr for point in points])
        law = power_law(values, lrs, [point.group for point in points])
        figures.append(directory / f"lr_against_{slug(key)}.png")
        save_png(scaling_figure(key, points, law), figures[-1])
    for key, categories in summary_table.swept_categories(entries).items():
        figures.append(directory / f"lr_against_{slug(key)}.png")
        save_png(category_figure(key, categories), figures[-1])
    return figures


def slug(key: str) -> str:
    """A configuration key as part of a file's name; the whole of it, since two keys may end alike.

    >>> slug("optimizer.weight_decay"), slug("db/size")
    ('optimizer_weight_decay', 'db_size')
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_")


def _curves(directory: Path, entries: Sequence[Entry]) -> Iterator[tuple[str, Curve, float | None]]:
    """Label, curve and suggested LR of each finished job that has a curve."""
    for entry, label in zip(entries, summary_table.short_entry_labels(entries), strict=True):
        if entry.run_dir is None or entry.state != RunState.FINISHED:
            continue
        run = read_run(directory / entry.run_dir)
        curve = curve_from_steps(run.test.curve_steps if run.test else run.records.steps, beta=run.job.sweep.smoothing)
        if curve is not None:
            yield label, curve, entry.lr
