"""The panel of a sweep's figure that shows the LR of every suggestion rule, one row a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from lrrunner.records import RangeTestResult
from lrrunner.reporting.figure_style import GRID, MUTED, SMALL

RING_POINTS = 16
"""Diameter of a ring that has all the weight."""

RING: dict[str, Any] = {"color": MUTED, "marker": "o", "markerfacecolor": "none", "ls": "none", "zorder": 3}


def rule_lrs(test: RangeTestResult) -> tuple[dict[str, float | None], str]:
    """LR of every rule, and the name of the row whose LR is suggested.

    Confirmation runs have a row of their own if they decided.
    """
    suggestion = test.suggestion
    if test.confirmation is None or test.confirmation.measured_steps is None:
        return suggestion.candidates, suggestion.method
    return {"confirmed": suggestion.lr, **suggestion.candidates}, "confirmed"


def draw_rules(axes: Axes, lrs: Mapping[str, float | None], *, suggested: str, suggested_colour: str) -> None:
    """Draw each rule's name, a dot at its LR, and the LR as text. Rules tend to agree: rows keep their names apart.

    Args:
        axes: The panel.
        lrs: LR of every rule; None for a rule that found none.
        suggested: The rule whose LR is suggested.
        suggested_colour: Colour of its row.
    """
    axes.set_ylim(len(lrs) - 0.5, -0.5)
    axes.set_yticks(range(len(lrs)), labels=list(lrs), size=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    axes.grid(axis="y", color=GRID, lw=0.8)
    for row, (name, lr) in enumerate(lrs.items()):
        is_suggested = name == suggested
        colour, weight = (suggested_colour, "bold") if is_suggested else (MUTED, "normal")
        axes.get_yticklabels()[row].set(color=colour, weight=weight)
        lr_text = "none" if lr is None else f"{lr:.1e}"
        label = axes.text(1.01, row, lr_text, transform=axes.get_yaxis_transform(), va="center_baseline")
        label.set(color=colour, weight=weight, size=SMALL)
        if lr is not None:
            axes.plot([lr], [row], color=colour, marker="o", markersize=7 if is_suggested else 5, zorder=4)


def draw_evidence(axes: Axes, evidence: Mapping[str, Mapping[str, float]], *, row: int, legend: Axes) -> None:
    """Draw what `auto` is the mean of as rings in its row, their areas by weight.

    Args:
        axes: The panel of the rules.
        evidence: As in :class:`lrrunner.records.Suggestion`.
        row: Row of `auto`.
        legend: Axes whose legend explains the rings.
    """
    for name, each in evidence.items():
        size = RING_POINTS * math.sqrt(each["weight"])
        axes.plot([each["lr"]], [row], gid=f"evidence {name}", markersize=size, **RING)
    if evidence:
        legend.plot([], [], markersize=RING_POINTS / 2, label="evidence of auto, by weight", **RING)
