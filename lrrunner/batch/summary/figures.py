"""The figures of a batch: all curves in one, and suggested LRs against a swept number. No torch, no pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrrunner.batch.summary.summary_table import SweptCategories, SweptPoint
from lrrunner.core.curve import Curve
from lrrunner.core.power_law import PowerLaw

WIDTH_PX, HEIGHT_PX, DPI = 900, 560, 100
INK, MUTED, GRID = "#222222", "#5A5A5A", "#E4E4E4"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5A5A5A", "#8C6BB1")
"""Palette of Okabe and Ito; line styles distinguish jobs of the same colour."""
STYLES = ("-", "--", ":", "-.")
MAX_LEGEND = 16
MAX_LABEL = 56
BATCH_SIZE = "batch_size"
"""Part of the keys of batch sizes."""
DOT_POINTS = 11.0
"""Size of the first dot at a suggested LR."""


@matplotlib.style.context("default")
def overlay_figure(curves: Sequence[tuple[str, Curve, float | None]], *, title: str) -> Figure:
    """Smoothed loss against learning rate for every job, with a dot at each suggested LR; 900 x 560 px.

    Jobs may differ in the scale of their loss (another vocabulary, another loss function), so each curve is scaled to 1
    at its initial loss and 0 at its lowest.

    Args:
        curves: Label, curve and suggested LR of each job.
        title: One line.
    """
    figure, axes = _figure(title)
    dots: list[tuple[float, float]] = []
    for number, (label, curve, lr) in enumerate(curves):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        lowest = float(curve.smoothed.min())
        fall = (curve.smoothed - lowest) / (curve.level - lowest or 1.0)
        shown = label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
        text = shown if lr is not None else f"{shown} (no suggestion)"
        (line,) = axes.plot(curve.lr, fall, color=colour, ls=style, lw=1.8, label=text if number < MAX_LEGEND else "")
        line.set_alpha(1.0 if lr is not None else 0.35)
        if lr is not None:
            height = float(np.interp(np.log(lr), np.log(curve.lr), fall))
            num_below = sum(_is_near((lr, height), dot) for dot in dots)
            dots.append((lr, height))
            size = DOT_POINTS / 1.35**num_below  # equal suggestions show as rings
            axes.plot([lr], [height], color=colour, marker="o", markersize=size, markeredgecolor="white", zorder=4)
    axes.set_ylim(-0.05, 1.25)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (log scale)", color=INK)
    axes.set_ylabel("smoothed loss: 1 where it begins, 0 at its lowest", color=INK)
    _legend(axes, more=len(curves) - MAX_LEGEND)
    return figure


@matplotlib.style.context("default")
def scaling_figure(key: str, points: Sequence[SweptPoint], law: PowerLaw | None) -> Figure:
    """Suggested LR with its interval against a swept number, both on log scales; 900 x 560 px.

    The fitted power law is drawn through each group with the band of its exponent's 95 % interval; linear and
    square-root scaling, rules for batch sizes, go through the middle of the first group where the number is one.

    Args:
        key: Configuration key of the swept number.
        points: At least one.
        law: The fit, if there is one.
    """
    fit = f"{law}, 95 % interval" if law is not None else "too few points for a power law"
    figure, axes = _figure(f"suggested LR against {key}\n{fit}")
    groups = list(dict.fromkeys(point.group for point in points))
    for number, group in enumerate(groups):
        members = sorted((point for point in points if point.group == group), key=lambda point: point.value)
        colour = COLOURS[number % len(COLOURS)]
        _draw_points(axes, members, colour=colour)
        if law is not None and group in law.scales:
            _draw_law(axes, members, law, colour=colour)
        if number == 0 and BATCH_SIZE in key:
            _draw_rules(axes, members)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"{key} (log scale)", color=INK)
    axes.set_ylabel("suggested LR (log scale)", color=INK)
    _plain_ticks(axes, sorted({point.value for point in points}))
    _legend(axes)
    return figure


@matplotlib.style.context("default")
def category_figure(key: str, categories: SweptCategories) -> Figure:
    """Suggested LR with its interval against the values of a key that are names; 900 x 560 px.

    Args:
        key: The configuration key.
        categories: Its values and the suggested LRs.
    """
    figure, axes = _figure(f"suggested LR against {key}")
    groups = list(dict.fromkeys(point.group for point in categories.points))
    for number, group in enumerate(groups):
        shift = 0.5 * ((number + 0.5) / len(groups) - 0.5)  # beside each other, within half of the space
        members = [replace(point, value=point.value + shift) for point in categories.points if point.group == group]
        _draw_points(axes, members, colour=COLOURS[number % len(COLOURS)], in_legend=number < MAX_LEGEND)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(categories.names) - 0.5)
    axes.set_xticks(range(len(categories.names)), labels=categories.names, parse_math=False)
    axes.set_xlabel(key, color=INK)
    axes.set_ylabel("suggested LR (log scale)", color=INK)
    _legend(axes, more=len(groups) - MAX_LEGEND)
    return figure


def _is_near(dot: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two dots hide each other: within a tenth of a decade, and a twentieth of the height."""
    return abs(np.log10(dot[0] / other[0])) < 0.1 and abs(dot[1] - other[1]) < 0.05


def _draw_points(axes: Axes, points: Sequence[SweptPoint], *, colour: str, in_legend: bool = True) -> None:
    """The suggested LRs of one group, with their intervals."""
    x, lr = _coordinates(points)
    low, high = np.array([point.interval for point in points]).T
    errors = [np.maximum(lr - low, 0), np.maximum(high - lr, 0)]
    label = (points[0].group or "suggested LR and its interval") if in_legend else None
    axes.errorbar(x, lr, yerr=errors, color=colour, marker="o", ls="none", capsize=3, label=label)


def _draw_law(axes: Axes, points: Sequence[SweptPoint], law: PowerLaw, *, colour: str) -> None:
    """The fitted power law through one group, with the band of its exponent's interval."""
    x, _ = _coordinates(points)
    scale = law.scales[points[0].group]
    line = np.geomspace(x.min(), x.max(), 50)
    axes.plot(line, scale * line**law.exponent, color=colour, lw=2)
    centre = np.exp(np.log(x).mean())
    ends = [scale * centre**law.exponent * (line / centre) ** end for end in law.interval]
    axes.fill_between(line, np.minimum(*ends), np.maximum(*ends), color=colour, alpha=0.13, lw=0)


def _draw_rules(axes: Axes, points: Sequence[SweptPoint]) -> None:
    """Linear and square-root scaling through the middle of the points."""
    x, lr = _coordinates(points)
    line = np.geomspace(x.min(), x.max(), 50)
    centre, middle = np.exp(np.log(x).mean()), np.exp(np.log(lr).mean())
    for exponent, style, label in ((1.0, "--", "linear scaling"), (0.5, ":", "square-root scaling")):
        axes.plot(line, middle * (line / centre) ** exponent, color=MUTED, ls=style, lw=1.3, label=label)


def _coordinates(points: Sequence[SweptPoint]) -> tuple[np.ndarray, np.ndarray]:
    """Swept values and suggested LRs."""
    return np.array([point.value for point in points]), np.array([point.lr for point in points])


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the swept values themselves, where they fit."""
    if len(values) <= 12:
        axes.set_xticks(values, labels=[f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.8)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    return figure, axes


def _legend(axes: Axes, *, more: int = 0) -> None:
    title = f"and {more} more" if more > 0 else None
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor=GRID, title=title, title_fontsize=8)
