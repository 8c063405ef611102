"""The panel of a sweep's figure that shows confirmation runs: the loss at the end of each, over its learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrunner.core.confirmation import differences
from lrrunner.records import RangeTestResult, Trial, TrialOutcome
from lrrunner.reporting.figure_style import (
    BOTTOM_PX,
    CURVE,
    EDGE_PX,
    INK,
    LINE_PX,
    MUTED,
    NORMAL,
    STOPPED,
    add_panel,
    draw_suggestion,
    finish_panel,
    lr_limits,
    write_line,
)

LENGTH_COLOURS = (CURVE, "#B8860B", "#A0428A", "#5A5A5A")
LENGTH_MARKERS = "osD^"

OUTLIER_FALLS = 10.0
"""A run that lies this many times as far above the best one as the median run does leaves the panel at the top."""


def draw_trials(figure: Figure, test: RangeTestResult, *, top_px: int, bottom_px: int) -> None:
    """Draw one curve a trial length, diverged runs at the top edge, and the suggestion as in the curve's panel.

    Args:
        figure: The figure.
        test: Its trials, suggestion and confirmation.
        top_px: Pixels from the top where the panel begins, with its heading.
        bottom_px: Pixels from the top where it ends, with its legend.
    """
    confirmation = test.confirmation
    schedule = f" of a {confirmation.schedule} schedule" if confirmation is not None else ""
    heading = f"confirmation runs: {_monitored(test)} at the end{schedule}"
    write_line(figure, heading, y_px=top_px + EDGE_PX, size=NORMAL + 1, weight="bold")
    axes = add_panel(figure, top_px=top_px + EDGE_PX + LINE_PX + 10, bottom_px=bottom_px - BOTTOM_PX)
    sweep_lr = confirmation.sweep.lr if confirmation is not None else None
    suggested = (test.suggestion.lr, *(test.suggestion.interval or ()))
    lrs = [trial.lr for trial in test.trials] + [lr for lr in (sweep_lr, *suggested) if lr is not None]
    limits = lr_limits(lrs, margin=0.08)
    axes.set_xlim(*limits)
    _draw_finished(axes, [trial for trial in test.trials if trial.outcome == TrialOutcome.FINISHED])
    diverged = [trial.lr for trial in test.trials if trial.outcome == TrialOutcome.DIVERGED]
    if diverged:
        _mark_at_top(axes, diverged, colour=STOPPED, marker="X", label="diverged")
    if sweep_lr is not None:
        axes.axvline(sweep_lr, color=MUTED, lw=1.4, ls=(0, (2, 2)), zorder=2, label="sweep alone", gid="sweep alone")
    is_confirmed = confirmation is not None and confirmation.measured_steps is not None
    draw_suggestion([axes], test.suggestion, label="confirmed lr" if is_confirmed else "suggested lr")
    finish_panel(figure, axes, lr_limits=limits, loss=_monitored(test), legend_px=bottom_px)


def _monitored(test: RangeTestResult) -> str:
    return test.confirmation.monitored if test.confirmation is not None else "loss"


def _draw_finished(axes: Axes, finished: Sequence[Trial]) -> None:
    """Draw loss over LR, one curve for each length, with the standard errors of the differences from the best run."""
    if not finished:
        axes.set_yticks([])
        text = axes.text(0.5, 0.5, "no run has finished", transform=axes.transAxes, ha="center")
        text.set(color=INK, size=NORMAL)
        return
    losses = np.array([trial.loss for trial in finished])
    lowest, highest = float(losses.min()), float(losses.max())
    highest = min(highest, lowest + OUTLIER_FALLS * float(np.median(losses) - lowest)) if len(losses) > 2 else highest
    least = 1e-3 * abs(lowest) or 1.0
    axes.set_ylim(lowest - max(0.1 * (highest - lowest), least), highest + max(0.25 * (highest - lowest), least))
    for i, num_steps in enumerate(sorted({trial.num_steps for trial in finished})):
        group = sorted((trial for trial in finished if trial.num_steps == num_steps), key=lambda trial: trial.lr)
        axes.plot(
            [trial.lr for trial in group],
            [trial.loss for trial in group],
            color=LENGTH_COLOURS[i % len(LENGTH_COLOURS)],
            marker=LENGTH_MARKERS[i % len(LENGTH_MARKERS)],
            ms=7,
            lw=1.6,
            label=f"{num_steps} steps",
            zorder=4,
        )
    for trial, difference in zip(finished, differences(finished), strict=True):
        if difference is not None and difference.error > 0:  # the best run has none, and NaN is none
            ends = [trial.loss - difference.error, trial.loss + difference.error]
            axes.plot([trial.lr, trial.lr], ends, color=INK, lw=1.0, marker="_", zorder=5, gid="difference error")
    beyond = [trial.lr for trial in finished if trial.loss > axes.get_ylim()[1]]
    if beyond:
        _mark_at_top(axes, beyond, colour=CURVE, marker="^", label="far above")


def _mark_at_top(axes: Axes, lrs: Sequence[float], *, colour: str, marker: str, label: str) -> None:
    """Mark runs whose loss is beyond the axis."""
    edge = axes.get_xaxis_transform()
    axes.plot(
        lrs,
        [0.93] * len(lrs),
        transform=edge,
        color=colour,
        marker=marker,
        ms=9,
        ls="",
        zorder=5,
        label=label,
        gid=label,
    )
