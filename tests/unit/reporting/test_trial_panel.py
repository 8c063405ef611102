"""Confirmation runs are compared by length and loss."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from lrrunner.records import Trial
from lrrunner.reporting.sweep_figure import save_png
from tests.unit.reporting.figures import (
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    confirmed_figure,
    curve_axes,
    png_size,
    texts,
    trial,
    trial_axes,
    with_gid,
)


def test_confirmation_runs_have_a_panel_with_one_curve_per_length(tmp_path: Path) -> None:
    """A run of 300 steps is lower than one of 100 for another reason than its learning rate."""
    figure = confirmed_figure(*FINISHED, INTERRUPTED)
    lines: dict[Any, Any] = {line.get_label(): line for line in trial_axes(figure).lines}
    assert list(lines["100 steps"].get_xdata()) == [3.8e-4, 1.2e-3, 3.8e-3]
    assert list(lines["100 steps"].get_ydata()) == [0.9, 0.4, 0.3]
    assert list(lines["300 steps"].get_xdata()) == [3.8e-3]
    assert "confirmation runs: validation loss at the end of a cosine schedule" in texts(figure)
    save_png(figure, tmp_path / "lr_sweep.png")
    assert png_size(tmp_path / "lr_sweep.png") == (900, 860)


def test_the_panel_of_runs_shows_what_was_chosen_and_what_the_sweep_suggested() -> None:
    """How far confirmation has moved the answer."""
    figure = confirmed_figure(*FINISHED)
    axes = trial_axes(figure)
    assert axes in {artist.axes for artist in with_gid(figure, "suggestion")}
    assert axes in {artist.axes for artist in with_gid(figure, "interval")}
    (alone,) = with_gid(figure, "sweep alone")
    assert alone.get_xdata()[0] == 1.2e-3


def test_a_diverged_run_is_marked_at_the_top_and_one_far_above_too() -> None:
    """Neither has a place on an axis that shows the differences that matter."""
    figure = confirmed_figure(*FINISHED, DIVERGED, trial(6, 2e-2, 1e7))
    (mark,) = with_gid(figure, "diverged")
    assert list(mark.get_xdata()) == [4e-2]
    (above,) = with_gid(figure, "far above")
    assert list(above.get_xdata()) == [2e-2]
    assert trial_axes(figure).get_ylim()[1] < 3
    assert trial_axes(figure).get_xlim()[1] > 4e-2


@pytest.mark.parametrize(
    "trials",
    [(DIVERGED,), (INTERRUPTED,), FINISHED[:1], FINISHED[:2], (trial(0, 1e-3, 0.0), trial(1, 2e-3, 0.0))],
    ids=["diverged", "interrupted", "one", "two", "zero"],
)
def test_degenerate_runs_are_drawn_without_a_warning(trials: tuple[Trial, ...], tmp_path: Path) -> None:
    """pytest turns each warning into an error."""
    save_png(confirmed_figure(*trials), tmp_path / "lr_sweep.png")
    assert (tmp_path / "lr_sweep.png").stat().st_size > 1000


def test_no_texts_of_the_panel_of_runs_overlap() -> None:
    """Heading, axis labels and legend are below the sweep's own legend."""
    figure = confirmed_figure(*FINISHED, DIVERGED)
    figure.canvas.draw()
    axes = trial_axes(figure)
    legends = [panel.get_legend() for panel in (axes, curve_axes(figure))]
    texts = [axes.xaxis.label, axes.yaxis.label, curve_axes(figure).xaxis.label, *figure.texts]
    texts += [text for legend in legends if legend is not None for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(box.x0 >= 0 and box.x1 <= 900 and box.y0 >= 0 and box.y1 <= 860 for box in boxes)


def test_differences_from_the_best_run_have_their_standard_errors() -> None:
    """Runs that the evaluated batches cannot tell apart look so."""
    best = dataclasses.replace(trial(0, 1e-3, 0.4), batch_losses=(0.3, 0.5))
    worse = dataclasses.replace(trial(1, 3e-3, 0.6), batch_losses=(0.4, 0.8))
    (error,) = with_gid(confirmed_figure(best, worse), "difference error")
    assert list(error.get_xdata()) == [3e-3, 3e-3]
    assert error.get_ydata() == pytest.approx([0.5, 0.7])
