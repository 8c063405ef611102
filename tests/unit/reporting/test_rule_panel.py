"""Every rule has its row."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.unit.reporting.figures import (
    FINISHED,
    SUGGESTION,
    confirmed_figure,
    curve_axes,
    records,
    sweep_figure,
    texts,
    trial,
    u_curve,
)


def test_every_candidate_has_a_name_a_dot_and_a_number() -> None:
    """Four rules within a tenth of a decade stay legible, and a rule that found nothing says so."""
    figure = sweep_figure(records(u_curve))
    strip = figure.axes[1]
    assert [label.get_text() for label in strip.get_yticklabels()] == list(SUGGESTION.candidates)
    dots = {(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in list[Any](strip.lines) if dot.get_marker() == "o"}
    assert dots == {(1.2e-3, 0), (1.1e-3, 1), (1.3e-3, 2), (1.2e-3, 3)}
    lrs = [text.get_text() for text in strip.texts]
    assert lrs[:5] == ["1.2e-03", "1.1e-03", "1.3e-03", "1.2e-03", "none"]


def test_rules_beyond_the_swept_lrs_are_within_the_figure() -> None:
    """`minimum` divides by ten and may end below the first step."""
    outside = dataclasses.replace(SUGGESTION, lr=2e-8, interval=(1e-8, 4e-8), candidates={"minimum": 2e-8})
    left, right = curve_axes(sweep_figure(records(u_curve), suggestion=outside)).get_xlim()
    assert left < 2e-8
    assert right > 10


def test_runs_that_confirmed_nothing_have_no_row_among_the_rules() -> None:
    """The chosen LR is the sweep's own rule's then."""
    names = {
        label.get_text()
        for figure in (confirmed_figure(*FINISHED, measured_steps=None),)
        for axes in figure.axes
        for label in axes.get_yticklabels()
    }
    assert SUGGESTION.method in names
    assert "confirmed" not in names


def test_the_confirmed_lr_is_above_the_rules_of_the_sweep() -> None:
    """Otherwise the row in bold would be the one that the runs have just replaced."""
    figure = confirmed_figure(trial(0, 1e-2, 0.5), trial(1, 3e-2, 0.4))
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()] + texts(figure)
    assert "confirmed" in names
