"""The figure of a range test, and its PNG. Drawn without pyplot, whose state belongs to the user."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrrunner.config.schema import Config, batch_summary, target_name
from lrrunner.core.curve import curve_from_steps
from lrrunner.records import RangeTestResult, Suggestion, Verdict
from lrrunner.reporting.curve_panel import draw_losses, draw_stop
from lrrunner.reporting.figure_style import (
    BOTTOM_PX,
    DPI,
    EDGE_PX,
    LARGE,
    LINE_PX,
    MUTED,
    NORMAL,
    ROW_PX,
    STOPPED,
    WIDTH_PX,
    add_panel,
    draw_suggestion,
    finish_panel,
    lr_limits,
    suggestion_style,
    write_line,
)
from lrrunner.reporting.rule_panel import draw_evidence, draw_rules, rule_lrs
from lrrunner.reporting.trial_panel import draw_trials
from lrrunner.system.atomic_files import atomic_file

SWEEP_PX, TRIALS_PX = 560, 300

MAX_REASON_CHARACTERS = 122
"""Of one line."""


def job_figure(test: RangeTestResult, job: Config) -> Figure:
    """The figure of a job's range test, titled with its model, optimizer and data. See :func:`lr_sweep_figure`."""
    kind = "LR range test" if test.confirmation is None else "LR range test with confirmation runs"
    return lr_sweep_figure(
        test,
        beta=job.sweep.smoothing,
        title=f"{target_name(job.model)} with {target_name(job.optimizer)} on {target_name(job.data.train)}",
        subtitle=f"{kind}, {batch_summary(job, world_size=test.world_size)}",
    )


@matplotlib.style.context("default")  # a user's own style must not reach the figure
def lr_sweep_figure(test: RangeTestResult, *, beta: float, title: str, subtitle: str = "") -> Figure:
    """Loss against learning rate, 900 x 560 px: the curve, its suggested LR, and where the sweep stopped.

    Confirmation runs have a panel of 300 px below.

    The loss axis follows the initial level and the lowest smoothed loss, so that a divergence leaves the
    figure at the top instead of flattening the rest. Each rule's LR has a row above the curve. A verdict
    that is not ok is written out with its reason. Degenerate sweeps (no point, one point, a constant) are
    drawn as far as possible.

    Args:
        test: Records, stops and suggestion; the pass that counts is the curve, others are its background.
        beta: Memory of the causal EMA in [0, 1), as for the suggestion.
        title: One line, model and optimizer for example; shortened with an ellipsis if it does not fit.
        subtitle: One line, global batch, world size and steps for example.

    Returns:
        A figure on the Agg canvas, for ``save_png``.
    """
    height_px = SWEEP_PX + (TRIALS_PX if test.trials else 0)
    figure = _NotebookFigure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    top_px = _draw_heading(figure, test.suggestion, title=title, subtitle=subtitle)
    _draw_panels(figure, test, beta=beta, top_px=top_px)
    if test.trials:
        draw_trials(figure, test, top_px=SWEEP_PX, bottom_px=height_px)
    return figure


def draw_sweep(axes: Axes, test: RangeTestResult, *, beta: float) -> None:
    """Draw the curve, its suggested LR and the stop on axes of the user's, in the user's style.

    Args:
        axes: Where to draw; they get a log scale. Title and figure stay as they are.
        test: As for :func:`lr_sweep_figure`.
        beta: As for :func:`lr_sweep_figure`.
    """
    axes.set_xscale("log")
    draw_losses(axes, test, curve_from_steps(test.curve_steps, beta=beta))
    axes.set_xlim(*_lr_limits(test))
    draw_suggestion([axes], test.suggestion, label=None)
    if test.steps and test.stops:
        draw_stop(axes, test.curve_stop, test.curve_steps)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel(test.monitored)
    axes.legend(fontsize="small")


class _NotebookFigure(Figure):
    """A figure that a notebook shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI)
        return content.getvalue()


@matplotlib.style.context("default")  # a user's savefig settings must not change the size
def save_png(figure: Figure, path: Path) -> None:
    """Write the figure to ``path``; a reader sees the old figure or the new one, never a part."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _draw_heading(figure: Figure, suggestion: Suggestion, *, title: str, subtitle: str) -> int:
    """Write title, subtitle, and a verdict that is not ok.

    Returns:
        Pixels from the top where the panels may begin, below a free line for the suggestion's label.
    """
    y = write_line(figure, title, y_px=EDGE_PX, size=LARGE, weight="bold") + 3
    if subtitle:
        y = write_line(figure, subtitle, y_px=y, colour=MUTED)
    if suggestion.lr is None:
        y = write_line(figure, "no suggested lr", y_px=y + 10, size=LARGE, weight="bold", colour=STOPPED) + 2
    if suggestion.lr is None or suggestion.verdict != Verdict.OK:
        verdict = "" if suggestion.verdict is None else f"verdict {suggestion.verdict}: "
        reason = f"{verdict}{suggestion.reason}"
        for line in textwrap.wrap(reason, width=MAX_REASON_CHARACTERS):
            y = write_line(figure, line, y_px=y + 2)
    return y + 10 if suggestion.lr is None else y + LINE_PX + 10


def _draw_panels(figure: Figure, test: RangeTestResult, *, beta: float, top_px: int) -> None:
    """Draw the rules' panel, if any rule has found an LR, and the curve's panel below it."""
    lrs, suggested = rule_lrs(test)
    has_rules = any(lr is not None for lr in lrs.values())
    curve_top_px = top_px + ROW_PX * len(lrs) * has_rules
    axes = add_panel(figure, top_px=curve_top_px, bottom_px=SWEEP_PX - BOTTOM_PX)
    draw_losses(axes, test, curve_from_steps(test.curve_steps, beta=beta))
    panels = [axes]
    if has_rules:
        panels.insert(0, add_panel(figure, top_px=top_px, bottom_px=curve_top_px, sharex=axes))
        draw_rules(panels[0], lrs, suggested=suggested, suggested_colour=suggestion_style(test.suggestion).colour)
        if "auto" in lrs:
            draw_evidence(panels[0], test.suggestion.evidence, row=list(lrs).index("auto"), legend=axes)
    finish_panel(figure, axes, lr_limits=_lr_limits(test), loss=test.monitored, legend_px=SWEEP_PX)
    _draw_labelled_suggestion(panels, test.suggestion)
    if test.steps and test.stops:
        draw_stop(axes, test.curve_stop, test.curve_steps)


def _draw_labelled_suggestion(panels: Sequence[Axes], suggestion: Suggestion) -> None:
    """Draw the suggestion and its interval through every panel, and their values above the topmost."""
    text = draw_suggestion(panels, suggestion)
    if suggestion.lr is None:
        return
    top = panels[0]
    x = top.transAxes.inverted().transform(top.transData.transform((suggestion.lr, 0)))[0]
    align = "left" if x < 0.25 else "right" if x > 0.75 else "center"
    edge = top.get_xaxis_transform()
    label = top.annotate(text, (suggestion.lr, 1), (0, 4), xycoords=edge, textcoords="offset points", ha=align)
    label.set(color=suggestion_style(suggestion).colour, weight="bold", size=NORMAL + 1)


def _lr_limits(test: RangeTestResult) -> tuple[float, float]:
    """Limits that hold every step and every rule's LR, with space for the label of the stop."""
    lrs = [step.lr for step in test.steps]
    lrs += [lr for lr in (test.suggestion.lr, *test.suggestion.candidates.values()) if lr is not None]
    return lr_limits(lrs)
