"""The figures of a batch show what they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrrunner.batch.summary.figures import category_figure, overlay_figure, scaling_figure
from lrrunner.batch.summary.summary_table import SweptCategories, SweptPoint
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.power_law import power_law
from lrrunner.reporting.sweep_figure import save_png
from tests.unit.core.curves import fall_and_blow_up, records, sweep_lrs

VALUES = (16.0, 64.0, 256.0, 1024.0)


def points(group: str, scale: float) -> list[SweptPoint]:
    return [
        SweptPoint(value=x, lr=scale * x**0.5, interval=(scale * x**0.5 / 2, scale * x), group=group) for x in VALUES
    ]


def test_every_curve_and_every_suggestion_is_drawn(tmp_path: Path) -> None:
    """A job without a suggestion has a curve and no dot; a legend that is too long is cut and says so."""
    curve = curve_from_steps(records(sweep_lrs(), fall_and_blow_up(sweep_lrs())), beta=0.9)
    assert curve is not None
    figure = overlay_figure([(f"model.width={i}", curve, 1e-3 if i else None) for i in range(20)], title="20 sweeps")
    (axes,) = figure.axes
    assert len(axes.lines) == 20 + 19
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][:2] == ["model.width=0 (no suggestion)", "model.width=1"]
    assert len(legend.get_texts()) == 16
    assert legend.get_title().get_text() == "and 4 more"
    save_png(figure, tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 10_000


@pytest.mark.parametrize("fitted", [True, False])
def test_the_law_is_in_the_title_and_the_rules_are_drawn(fitted: bool) -> None:
    """Linear and square-root scaling for comparison, whether or not there is a fit."""
    both = points("optimizer=sgd", 0.1) + points("optimizer=adamw", 0.001)
    x, lr = np.array([point.value for point in both]), np.array([point.lr for point in both])
    law = power_law(x, lr, [point.group for point in both]) if fitted else None
    figure = scaling_figure("data.global_batch_size", both, law)
    (axes,) = figure.axes
    assert ("lr ~ x^0.50 [0.50, 0.50]" in axes.get_title(loc="left")) == fitted
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) == {"optimizer=sgd", "optimizer=adamw", "linear scaling", "square-root scaling"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "64", "256", "1024"]
    assert len(axes.collections) == 2 + 2 * fitted


def test_rules_for_batch_sizes_are_drawn_for_batch_sizes() -> None:
    """Nobody claims that the LR grows with the width of a layer, or with its weight decay."""
    for key, num_rules in (("data.global_batch_size", 2), ("model.hidden_features", 0), ("optimizer.weight_decay", 0)):
        (axes,) = scaling_figure(key, points("optimizer=sgd", 0.1), None).axes
        labels = axes.get_legend_handles_labels()[1]
        assert sum("scaling" in label for label in labels) == num_rules


def test_names_are_the_ticks_and_groups_stand_beside_each_other(tmp_path: Path) -> None:
    """Two groups with the same LR must not hide each other."""
    group_points = [
        SweptPoint(value=float(i), lr=1e-3, interval=(5e-4, 2e-3), group=group) for group in "ab" for i in (0, 1)
    ]
    figure = category_figure("optimizer", SweptCategories(names=["sgd", "adamw"], points=group_points))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["sgd", "adamw"]
    assert axes.get_legend_handles_labels()[1] == ["a", "b"]
    x = [np.asarray(line.get_xdata())[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(set(x)) == 2
    save_png(figure, tmp_path / "categories.png")
