"""What the panels of a figure share: sizes, colours, axes and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import blended_transform_factory

from lrrunner.records import Suggestion, Verdict

WIDTH_PX, DPI = 900, 100
LEFT_PX, RIGHT_PX, BOTTOM_PX = 100, 72, 70
EDGE_PX, LINE_PX, ROW_PX = 14, 18, 15
SMALL, NORMAL, LARGE = 9, 10, 13

LABELLED_MANTISSAS = (1.0, 2.0, 5.0)
"""Of ticks on a log axis; labels of the others run into each other."""

MAX_LINE_CHARACTERS = 250
"""More never fit, and each that is too many costs a measurement of the line."""

# Okabe and Ito's palette, for colour-blind readers; line styles differ as well, for print in grey.
CURVE, RAW, SUGGESTED, STOPPED = "#0072B2", "#94BFDC", "#00795A", "#C04A00"
DOUBTFUL = "#8A6100"
"""Of an LR whose verdict is not ok."""

INK, MUTED, GRID, EARLIER = "#222222", "#5A5A5A", "#E4E4E4", "#BDBDBD"


def height_px(figure: Figure) -> int:
    """Height of a figure in pixels."""
    return round(figure.get_figheight() * DPI)


def write_line(
    figure: Figure, text: str, *, y_px: int, size: int = NORMAL, weight: str = "normal", colour: str = INK
) -> int:
    """Write one line of a heading, shortened to the width of the figure.

    Returns:
        Pixels from the top where the next line may begin.
    """
    line = " ".join(text.split())[:MAX_LINE_CHARACTERS]
    position = (EDGE_PX / WIDTH_PX, 1 - y_px / height_px(figure))
    # A model's name may hold dollar signs: it is never mathematics.
    artist = figure.text(*position, line, size=size, weight=weight, color=colour, va="top", parse_math=False)
    while line and artist.get_window_extent().width > WIDTH_PX - 2 * EDGE_PX:
        line = line[:-1]
        artist.set_text(f"{line}…")
    return y_px + LINE_PX + 2 * (size - NORMAL)


def add_panel(figure: Figure, *, top_px: int, bottom_px: int, sharex: Axes | None = None) -> Axes:
    """Add a panel as wide as every other one, with a log x axis, between two heights in pixels from the top."""
    width = 1 - (LEFT_PX + RIGHT_PX) / WIDTH_PX
    height = height_px(figure)
    box = (LEFT_PX / WIDTH_PX, 1 - bottom_px / height, width, (bottom_px - top_px) / height)
    axes = figure.add_axes(box, sharex=sharex)
    axes.set_xscale("log")
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(EARLIER)
    return axes


def finish_panel(figure: Figure, axes: Axes, *, lr_limits: tuple[float, float], loss: str, legend_px: int) -> None:
    """Set limits, grid and labels of a panel that shows losses, and put the legend below it.

    Args:
        figure: The figure.
        axes: The panel.
        lr_limits: Limits of the x axis.
        loss: Label of the y axis.
        legend_px: Pixels from the top where the legend ends.
    """
    axes.set_xlim(*lr_limits)
    axes.grid(color=GRID, lw=0.8)
    axes.tick_params(which="both", labelsize=SMALL, color=EARLIER, labelcolor=INK)
    axes.xaxis.set_major_formatter(_PlainExponents())
    axes.xaxis.set_minor_formatter(_PlainExponents())
    axes.yaxis.set_major_formatter("{x:.6g}")
    axes.set_xlabel("learning rate (log scale)", size=NORMAL, color=INK)
    axes.set_ylabel(loss, size=NORMAL, color=INK)
    x_of_figure = blended_transform_factory(figure.transFigure, axes.transAxes)
    axes.yaxis.set_label_coords(2 * EDGE_PX / WIDTH_PX, 0.5, transform=x_of_figure)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(handles, labels, loc="lower center", ncols=6, fontsize=SMALL, frameon=False)
    y_of_figure = blended_transform_factory(axes.transAxes, figure.transFigure)
    legend.set_bbox_to_anchor((0.5, 1 - legend_px / height_px(figure)), transform=y_of_figure)


def draw_suggestion(panels: Sequence[Axes], suggestion: Suggestion, *, label: str | None = "") -> str:
    """Draw the suggested LR and its interval through every panel.

    Args:
        panels: The panels.
        suggestion: The suggestion.
        label: Its entry in the legend; None is the suggestion as text, empty for no entry.

    Returns:
        Both as text; empty without a suggestion.
    """
    if suggestion.lr is None:
        return ""
    text = f"suggested lr {suggestion.lr:.1e}"
    if suggestion.interval is not None:
        low, high = suggestion.interval
        text += f"   [{low:.1e}, {high:.1e}]"
    colour, line_style = suggestion_style(suggestion)
    for axes in panels:
        if suggestion.interval is not None:
            axes.axvspan(low, high, color=colour, alpha=0.13, lw=0, zorder=0, gid="interval")
        shown = text if label is None else label
        axes.axvline(suggestion.lr, color=colour, ls=line_style, lw=2, zorder=3, gid="suggestion", label=shown)
    return text


class SuggestionStyle(NamedTuple):
    """How a suggested LR is drawn.

    Attributes:
        colour: Of line, interval and label.
        line_style: Of the line.
    """

    colour: str
    line_style: str


def suggestion_style(suggestion: Suggestion) -> SuggestionStyle:
    """A solid green line only where the verdict is ok."""
    is_ok = suggestion.verdict == Verdict.OK
    return SuggestionStyle(SUGGESTED, "-") if is_ok else SuggestionStyle(DOUBTFUL, "--")


def lr_limits(lrs: Sequence[float], *, margin: float = 0.04) -> tuple[float, float]:
    """Limits of a log axis that holds all of these LRs, with a margin as a share of their range in decades."""
    low, high = np.log10([min(lrs, default=1e-7), max(lrs, default=10.0)])
    margin_decades = margin * (high - low) or 1.0
    return float(10 ** (low - margin_decades)), float(10 ** (high + margin_decades))


class _PlainExponents(LogFormatter):
    """Numbers as on standard output (1e-03); raised exponents would be smaller than 9 points."""

    def __call__(self, x: float, pos: Any = None) -> str:
        """The label of a tick at ``x``; empty if labels would overlap."""
        if not super().__call__(x, pos):
            return ""
        mantissa, exponent = f"{x:.2e}".split("e")
        if float(mantissa) not in LABELLED_MANTISSAS:
            return ""
        return f"{x:.3g}" if x >= 1 else f"{float(mantissa):g}e{exponent}"
