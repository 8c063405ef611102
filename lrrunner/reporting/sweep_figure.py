"""The picture of a sweep: records -> Figure -> PNG. Alone in importing matplotlib, and never its pyplot."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrrunner.config.schema import Config, batch_summary
from lrrunner.core.curve import Curve, curve_from_steps, pooled
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.records import RangeTestResult, Step, Stop, StopReason, Suggestion, Verdict
from lrrunner.reporting.figure_style import (
    BOTTOM_PX,
    CURVE,
    DPI,
    EARLIER,
    EDGE_PX,
    GRID,
    LARGE,
    LINE_PX,
    MUTED,
    NORMAL,
    RAW,
    ROW_PX,
    SMALL,
    STOPPED,
    SUGGESTED,
    WIDTH_PX,
    add_axes,
    draw_suggestion,
    frame,
    lr_limits,
    write,
)
from lrrunner.reporting.trial_panel import draw_trials
from lrrunner.system.atomic_files import atomic_file

SWEEP_PX, TRIALS_PX = 560, 300


def job_figure(test: RangeTestResult, job: Config) -> Figure:
    """The picture of a job's range test, under the names of its model and optimizer. See :func:`lr_sweep_figure`."""
    names = [str(part["_target_"]).rpartition(".")[2] for part in (job.model, job.optimizer)]
    return lr_sweep_figure(
        test,
        beta=job.sweep.smoothing,
        title=" with ".join(names),
        subtitle=batch_summary(job, world_size=test.world_size),
    )


@matplotlib.style.context("default")  # a user's own style must not reach the picture
def lr_sweep_figure(test: RangeTestResult, *, beta: float, title: str, subtitle: str = "") -> Figure:
    """Loss against learning rate, 900 x 560 px: the curve, what it suggests, where it stopped.

    Confirmation runs have a panel of 300 px below.

    The loss axis follows the initial level and the lowest smoothed loss, so that a divergence leaves the
    picture at the top instead of flattening the rest. Each rule's LR has a row above the curve. Where the
    verdict is not ok, it and its reason are written out. Degenerate sweeps (no point, one point, a constant)
    draw what there is.

    Args:
        test: Records, stops and suggestion; the pass that was believed is the curve, others are its background.
        beta: Memory of the causal EMA in [0, 1), as for the suggestion.
        title: One line, say model and optimizer; cut with an ellipsis where it does not fit.
        subtitle: One line, say global batch, world size, steps.

    Returns:
        A figure on the Agg canvas, for ``save_png``.
    """
    whole_px = SWEEP_PX + (TRIALS_PX if test.trials else 0)
    figure = _Picture(figsize=(WIDTH_PX / DPI, whole_px / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    top_px = _draw_heading(figure, test.suggestion, title=title, subtitle=subtitle)
    candidates, chosen = _candidates(test)
    found = any(lr is not None for lr in candidates.values())
    curve_top_px = top_px + ROW_PX * len(candidates) * found
    axes = add_axes(figure, top_px=curve_top_px, bottom_px=SWEEP_PX - BOTTOM_PX)
    _draw_losses(axes, test, curve_from_steps(test.curve_steps, beta=beta))
    panels = [axes]
    if found:
        panels.insert(0, add_axes(figure, top_px=top_px, bottom_px=curve_top_px, sharex=axes))
        _draw_candidates(panels[0], candidates, method=chosen)
    frame(figure, axes, lr_limits=_lr_limits(test), loss=test.monitored, legend_px=SWEEP_PX)
    _draw_suggestion(panels, test.suggestion)
    if test.steps and test.stops:
        _draw_stop(axes, test.curve_stop, test.curve_steps)
    if test.trials:
        draw_trials(figure, test, top_px=SWEEP_PX, bottom_px=whole_px)
    return figure


class _Picture(Figure):
    """A figure that a notebook shows, although pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI)
        return content.getvalue()


@matplotlib.style.context("default")  # a user's savefig settings must not change the size
def save_png(figure: Figure, path: Path) -> None:
    """Write the figure to ``path``; readers see the whole old picture or the whole new one."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def loss_limits(curve: Curve | None, *, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    """Bottom and top of the loss axis: the fall of the curve and its noise, whatever a divergence reached.

    Args:
        curve: The curve, or None where there are fewer than two points.
        low: Lowest raw loss by rung, shape (T,). An outlier counts down to one fall below the curve.
        high: Highest raw loss by rung, shape (T,). The first is that of the initial weights, so no divergence.
    """
    first = float(high[0]) if len(high) else 0.0
    if curve is None:
        least = 0.1 * abs(first) or 1.0
        return first - least, first + least
    lowest = min(curve.level, float(curve.smoothed.min()))
    depth = max(curve.level - lowest, 4 * curve.noise)
    lowest = min(lowest, max(float(low.min()), lowest - depth))
    highest = max(curve.level, first)
    fall = highest - lowest
    least = 1e-3 * abs(curve.level) or 1.0  # keeps tick labels within six digits
    return lowest - max(0.1 * fall, least), highest + max(0.3 * fall, 4 * curve.noise, least)


def repeat_range(steps: Sequence[Step]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lowest and highest raw loss by rung over repeats.

    A repeat that stopped holds its last loss, as in ``pooled``, whose mean therefore stays within the range.

    Args:
        steps: Records of one pass.

    Returns:
        Learning rates, minima and maxima, each of shape (T,).
    """
    points = [step for step in steps if step.monitored_loss is not None and step.is_finite]
    lr_by_rung = {step.step: step.lr for step in sorted(points, key=lambda step: step.step)}
    column = {rung: i for i, rung in enumerate(lr_by_rung)}
    row = {repeat: i for i, repeat in enumerate(sorted({step.repeat for step in points}))}
    losses = np.full((len(row), len(column)), np.nan)
    for step in points:
        losses[row[step.repeat], column[step.step]] = step.monitored_loss
    for i in range(1, len(column)):
        losses[:, i] = np.where(np.isnan(losses[:, i]), losses[:, i - 1], losses[:, i])
    keep = np.isfinite(losses).all(axis=0)
    kept = losses[:, keep]
    lr = np.array(list(lr_by_rung.values()))[keep]
    return lr, kept.min(axis=0, initial=np.inf), kept.max(axis=0, initial=-np.inf)


def _draw_heading(figure: Figure, suggestion: Suggestion, *, title: str, subtitle: str) -> int:
    """Title, subtitle, and the verdict where it needs words.

    Returns:
        Pixels from the top where the panels may begin, a line for the suggestion's label left free.
    """
    y = write(figure, title, y_px=EDGE_PX, size=LARGE, weight="bold") + 3
    if subtitle:
        y = write(figure, subtitle, y_px=y, colour=MUTED)
    words = f"verdict {suggestion.verdict}: {suggestion.reason}"
    if suggestion.lr is None:
        y = write(figure, "no suggested lr", y_px=y + 10, size=LARGE, weight="bold", colour=STOPPED) + 2
    if suggestion.lr is None or suggestion.verdict != Verdict.OK:
        for line in textwrap.wrap(words, width=122):
            y = write(figure, line, y_px=y + 2)
    return y + 10 if suggestion.lr is None else y + LINE_PX + 10


def _draw_losses(axes: Axes, test: RangeTestResult, curve: Curve | None) -> None:
    """Other passes, raw losses, their range over repeats, and the smoothed curve."""
    final = test.curve_steps
    lr, low, high = repeat_range(final)
    if not len(lr):
        _say_empty(axes)
        return
    bottom, top = loss_limits(curve, low=low, high=high)
    axes.set_ylim(bottom, top)
    others = sorted({step.sweep_pass for step in test.steps} - {final[0].sweep_pass})
    words = "earlier passes" if not others or others[-1] < final[0].sweep_pass else "other passes"
    for number in others:
        other_lr, other_loss, _ = pooled(step for step in test.steps if step.sweep_pass == number)
        axes.plot(other_lr, other_loss, color=EARLIER, lw=1, label=words if number == others[0] else "")
    num_repeats = len({step.repeat for step in final})
    if num_repeats > 1:
        words = f"range over {num_repeats} repeats"
        axes.fill_between(lr, low, high, color=CURVE, alpha=0.15, lw=0, label=words)
    lr, loss, _ = pooled(final)
    dot = 5.0 if len(lr) < 20 else 2.5 if len(lr) <= 200 else 0.0
    words = "mean raw loss" if num_repeats > 1 else "raw loss"
    axes.plot(lr, loss, color=RAW, lw=1.1, marker="o", markersize=dot, label=words)
    if curve is not None:
        words = "smoothed loss, divergence capped" if loss.max() > top else "smoothed loss"
        axes.plot(curve.lr, curve.smoothed, color=CURVE, lw=2.4, label=words)


def _say_empty(axes: Axes) -> None:
    axes.set_yticks([])
    place, white = axes.transAxes, {"facecolor": "white", "lw": 0}
    words = axes.text(0.5, 0.5, "no finite loss to draw", transform=place, ha="center", bbox=white, zorder=5)
    words.set(color=MUTED, size=NORMAL)


def _candidates(test: RangeTestResult) -> tuple[dict[str, float | None], str]:
    """Every rule's LR on the sweep and the one that counts; where runs confirmed it, theirs does."""
    suggestion = test.suggestion
    if test.confirmation is None or test.confirmation.measured_steps is None:
        return suggestion.candidates, suggestion.method
    return {"confirmed": suggestion.lr, **suggestion.candidates}, "confirmed"


def _draw_candidates(axes: Axes, candidates: Mapping[str, float | None], *, method: str) -> None:
    """One row a rule: name, dot, LR in figures. Rules tend to agree, and rows keep their names apart."""
    axes.set_ylim(len(candidates) - 0.5, -0.5)
    axes.set_yticks(range(len(candidates)), labels=list(candidates), size=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    axes.grid(axis="y", color=GRID, lw=0.8)
    for row, (name, lr) in enumerate(candidates.items()):
        chosen = name == method
        colour, weight = (SUGGESTED, "bold") if chosen else (MUTED, "normal")
        axes.get_yticklabels()[row].set(color=colour, weight=weight)
        figures = "none" if lr is None else f"{lr:.1e}"
        beside = axes.text(1.01, row, figures, transform=axes.get_yaxis_transform(), va="center_baseline")
        beside.set(color=colour, weight=weight, size=SMALL)
        if lr is not None:
            axes.plot([lr], [row], color=colour, marker="o", markersize=7 if chosen else 5, zorder=4)


def _draw_suggestion(panels: Sequence[Axes], suggestion: Suggestion) -> None:
    """The line and its interval through every panel, their values above the topmost."""
    words = draw_suggestion(panels, suggestion)
    if suggestion.lr is None:
        return
    top = panels[0]
    x = top.transAxes.inverted().transform(top.transData.transform((suggestion.lr, 0)))[0]
    align = "left" if x < 0.25 else "right" if x > 0.75 else "center"
    edge = top.get_xaxis_transform()
    label = top.annotate(words, (suggestion.lr, 1), (0, 4), xycoords=edge, textcoords="offset points", ha=align)
    label.set(color=SUGGESTED, weight="bold", size=NORMAL + 1)


def _draw_stop(axes: Axes, stop: Stop, final: Sequence[Step]) -> None:
    """Where the ladder ended and why, upright on the far side of the line, below a curve that has diverged."""
    lr = min(final, key=lambda step: abs(step.step - stop.step)).lr
    colour = MUTED if stop.reason == StopReason.END_OF_SCHEDULE else STOPPED
    axes.axvline(lr, color=colour, lw=1.4, ls=(0, (2, 2)), zorder=3, gid="stop")
    words = axes.annotate(
        textwrap.shorten(str(stop), width=36, placeholder=" …"),  # many ranks may be to blame
        (lr, 0.03),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        rotation=90,
        va="bottom",
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
    )
    words.set(color=colour, size=NORMAL)


def _lr_limits(test: RangeTestResult) -> tuple[float, float]:
    """Every rung and every rule's LR, with room on the right for the words at the stop."""
    lrs = [step.lr for step in test.steps]
    lrs += [lr for lr in (test.suggestion.lr, *test.suggestion.candidates.values()) if lr is not None]
    return lr_limits(lrs)
