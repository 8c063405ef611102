"""The picture of regret against steps spent: ``score_oracle.py --figure PATH`` draws it on the test jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from oracle.bowls import bowl, interval_of_mean, noise_floor
from oracle.comparisons import Regrets
from oracle.lr_free import LR_FREE
from oracle.replay import MissingError
from oracle.scores import (
    SWEEP_SEEDS,
    Measured,
    alternative_lrs,
    lr_free_losses,
    resampled_regrets,
    rule_lrs,
    told_range_test,
)

from lrrunner.records import Training

TRAINING = Training(num_steps=400, schedule="constant")
SWEEP_LENGTHS = (30, 50, 100, 200, 400, 1000)
TOTALS = (300, 600, 1200)
TICKS = (30, 50, 100, 300, 600, 1200)
LEVELS_END, LABELS_X = 1350, 1700
LOWEST = 1e-3
"""What the axis shows of a mean that is lower, or negative."""
LABEL_DISTANCE = 0.05
"""Between two labels, as a share of the axis."""
DASHES = {"noise floor": ":", "Prodigy": (0, (6, 2)), "schedule-free AdamW": (0, (3, 3)), "usual LR": "-."}


class Series(NamedTuple):
    """How a way to find an LR is drawn.

    Attributes:
        label: What is written at its end.
        rules: Steps in all -> rule.
        colour: From the colour-blind safe palette of Okabe and Ito 2008.
        marker: Of its points.
        shift: Factor on the steps, so that intervals stand beside each other.
    """

    label: str
    rules: Mapping[int, str]
    colour: str
    marker: str
    shift: float = 1.0


SERIES = (
    Series("lrrunner, one sweep", {n: f"sweep of {n}" for n in SWEEP_LENGTHS}, "#D55E00", "o", 1.0),
    Series("lrrunner, confirmed", {n: f"auto, confirmed with {n - 100} steps" for n in TOTALS}, "#000000", "s", 1.0),
    Series("successive halving", {n: f"{n} steps of successive halving" for n in TOTALS}, "#0072B2", "^", 1.06),
    Series("grid", {n: f"{n} steps of coarse grid" for n in TOTALS}, "#009E73", "v", 0.94),
    Series("random search", {n: f"{n} steps of random search" for n in TOTALS}, "#CC79A7", "D", 1.12),
    Series("ignite", {100: "peer: ignite"}, "#56B4E9", "P", 1.08),
    Series("fastai valley", {100: "peer: fastai_valley"}, "#E69F00", "X", 0.93),
)
LEVELS = {"usual LR": "the optimizer's usual LR", **{name: name for name in LR_FREE}}
"""What needs no search -> its rule; drawn from side to side."""


def draw_steps(group: Sequence[Measured], path: Path) -> None:
    """Mean regret of trainings of 400 steps over the steps that were spent on finding the LR, with 95 % intervals."""
    draw(*regrets_by_steps(group), path)


def regrets_by_steps(group: Iterable[Measured]) -> tuple[Regrets, float]:
    """Regrets of every rule in the picture, on the jobs that have them all, and their mean noise floor."""
    found: dict[str, dict[str, Any]] = {}
    floors = []
    for job, store in group:
        oracle = bowl(store, 400, "constant")
        if oracle is None:
            continue
        try:
            lrs = rule_lrs(store, job, TRAINING)
            for total_steps in TOTALS:
                lrs |= alternative_lrs(store, job, TRAINING, total_steps=total_steps)
            for num_steps in SWEEP_LENGTHS:
                tests = [told_range_test(store, job, num_steps, seed, TRAINING) for seed in SWEEP_SEEDS]
                lrs[f"sweep of {num_steps}"] = [test.suggestion.lr for test in tests]
        except MissingError:
            continue
        shown = {rule for series in SERIES for rule in series.rules.values()} | set(LEVELS.values())
        lrs = {rule: values for rule, values in lrs.items() if rule in shown}
        if shown - set(LR_FREE) <= set(lrs):
            floors.append(noise_floor(oracle))
            for rule, values in resampled_regrets(oracle, lrs, lr_free_losses(store, 400, "constant")).items():
                found.setdefault(rule, {})[job.name] = values
    return found, float(np.nanmean(floors))


def draw(regrets: Regrets, floor: float, path: Path) -> None:
    """Draw what ``regrets_by_steps`` found."""
    with plt.rc_context({"font.size": 15, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(9, 6.4))
        axes.set(xscale="log", yscale="log", xlim=(26, 8000))
        axes.set_xlabel("training steps spent on finding the LR", loc="left")
        axes.set_ylabel("mean regret")
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"])
        axes.minorticks_off()
        ends = [end for series in SERIES if (end := _draw_series(axes, series, regrets)) is not None]
        levels = {label: max(LOWEST, _summary(regrets[rule])[0]) for label, rule in LEVELS.items() if rule in regrets}
        for label, level in {**levels, "noise floor": floor}.items():
            axes.plot([26, LEVELS_END], [level, level], color="0.45", lw=1.5, ls=DASHES[label], zorder=0)
            ends.append(End(LEVELS_END, level, label, "0.25"))
        _label(axes, ends)
        figure.tight_layout()
        figure.savefig(path, dpi=100)
        plt.close(figure)


class End(NamedTuple):
    """Where a line ends, and what is written there."""

    x: float
    y: float
    label: str
    colour: str


def _draw_series(axes: Any, series: Series, regrets: Regrets) -> End | None:
    """Points with intervals; where its label goes, unless that is written at a single point."""
    steps = np.array(list(series.rules)) * series.shift
    means, low, high = np.array([_summary(regrets[rule]) for rule in series.rules.values()]).T
    axes.vlines(steps, low, high, color=series.colour, lw=1.6, alpha=0.55)
    axes.plot(steps, means, color=series.colour, marker=series.marker, ms=9, lw=2.4)
    if len(steps) > 1:
        return End(float(steps[-1]), float(means[-1]), series.label, series.colour)
    side = "right" if series.shift < 1 else "left"
    axes.text(steps[0], high[0] * 1.06, series.label, color="0.25", ha=side, fontsize=14)
    return None


def _label(axes: Any, ends: Sequence[End]) -> None:
    """Write labels one above the other, each as near to its end as the others let it, with a line from there."""
    ends = sorted(ends, key=lambda end: end.y)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    heights = np.exp(spread([math.log(end.y) for end in ends], LABEL_DISTANCE * math.log(top / bottom)))
    for end, height in zip(ends, heights, strict=True):
        axes.text(LABELS_X, height, end.label, color=end.colour, va="center", fontsize=14)
        axes.plot([end.x, LABELS_X * 0.97], [end.y, height], color=end.colour, lw=0.9, ls=":")


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Increasing heights, moved apart to at least a distance, those that were too near alike to both sides.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    clusters: list[tuple[float, int]] = []  # middle and size
    for height in heights:
        middle, size = height, 1
        while clusters and middle - clusters[-1][0] < distance * (size + clusters[-1][1]) / 2:
            other, other_size = clusters.pop()
            middle, size = (middle * size + other * other_size) / (size + other_size), size + other_size
        clusters.append((middle, size))
    return [round(middle + distance * (i - (size - 1) / 2), 6) for middle, size in clusters for i in range(size)]


def _summary(by_job: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean over jobs, and its 95 % interval."""
    return float(np.mean([values[0] for values in by_job.values()])), *interval_of_mean(by_job)
