"""The picture of the regret benchmark on 19 jobs: every rule's LR over a job's oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

COLUMNS = 4
MARKS = {
    "auto": ("C3", "-"),
    "peer: fastai_valley": ("C0", "--"),
    "peer: fastai_minimum": ("C2", "--"),
    "peer: torch_lr_finder": ("C4", ":"),
    "peer: ignite": ("C5", ":"),
    "peer: lightning": ("C6", ":"),
    "peer: luz_gugger": ("C7", ":"),
    "minimum": ("C8", "-."),
    "steepest": ("C9", "-."),
}


def draw_jobs(jobs: dict[str, tuple[dict[str, Any], dict[str, float | None]]], folder: Path) -> None:
    """One panel a job: validation loss over LR by schedule, and where each rule of sweep seed 0 lands."""
    rows = math.ceil(len(jobs) / COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=(4.2 * COLUMNS, 2.7 * rows), squeeze=False)
    for axes in panels.flat[len(jobs) :]:
        axes.axis("off")
    for axes, (name, (job, found)) in zip(panels.flat, jobs.items(), strict=False):
        for (schedule, losses), marker in zip(job["losses"].items(), "os", strict=True):
            means = np.mean(np.array(losses, dtype=float), axis=1)
            means[means > job["start"]] = job["start"]
            axes.semilogx(job["lrs"], means, f"{marker}-", ms=2.5, lw=1, color="0.25", alpha=0.9, label=schedule)
        for rule, (colour, style) in MARKS.items():
            if (lr := found.get(rule)) is not None:
                axes.axvline(lr, color=colour, ls=style, lw=2 if rule == "auto" else 1.1, label=rule)
        axes.set_title(f"{name}, {job['num_steps']} steps", fontsize=9)
        axes.set_xlim(job["lrs"][0] / 10, job["lrs"][-1] * 3)
        axes.tick_params(labelsize=7)
    handles = {text: line for axes in panels.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, fontsize=9)
    figure.supxlabel("learning rate", y=0.045)
    figure.supylabel("validation loss at the end of the training")
    figure.tight_layout(rect=(0.01, 0.055, 1, 1))
    figure.savefig(folder / "regret_jobs.png", dpi=60)
    plt.close(figure)
