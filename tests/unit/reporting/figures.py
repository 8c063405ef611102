"""Sweeps and their figures."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from lrrunner.records import (
    Confirmation,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    Trial,
    TrialOutcome,
    Verdict,
)
from lrrunner.reporting.sweep_figure import lr_sweep_figure

SUGGESTION = Suggestion(
    lr=1.2e-3,
    method="auto",
    verdict=Verdict.OK,
    reason="the loss falls, and diverges at a larger learning rate",
    interval=(6.1e-4, 2.4e-3),
    candidates={"auto": 1.2e-3, "steepest": 1.1e-3, "minimum": 1.3e-3, "valley": 1.2e-3, "slide": None},
)
NOTHING = Suggestion(
    lr=None,
    method="auto",
    verdict=Verdict.FLAT,
    reason="the loss does not respond to the learning rate; raise sweep.end_lr",
    candidates={"auto": None, "steepest": None},
)
END = Stop(reason=StopReason.END_OF_SCHEDULE, step=99)


def u_curve(lr: float) -> float:
    """2.3 at the start, 0.3 around 1e-1, steep beyond 1."""
    x = math.log10(lr)
    return 2.3 - 2 / (1 + math.exp(-3 * (x + 2.5))) + math.exp(5 * x)


def records(
    loss: Callable[[float], float], *, num_steps: int = 100, repeat: int = 0, sweep_pass: int = 0
) -> list[Step]:
    """One pass from 1e-7 to 10, with a little noise."""
    noise = np.random.default_rng(repeat).normal(scale=0.02, size=num_steps)
    lrs = np.geomspace(1e-7, 10, num_steps) if num_steps > 1 else [1e-7]
    return [
        Step(sweep_pass=sweep_pass, repeat=repeat, step=i, lr=float(lr), loss=loss(float(lr)) + float(noise[i]))
        for i, lr in enumerate(lrs)
    ]


def sweep_figure(
    steps: Sequence[Step],
    *,
    stops: Sequence[Stop] = (END,),
    suggestion: Suggestion = SUGGESTION,
    title: str = "MLP, AdamW",
) -> Figure:
    """The figure of a sweep with a suggestion at 1.2e-3 by default."""
    test = RangeTestResult(
        steps=tuple(steps), stops=tuple(stops), suggestion=suggestion, world_size=2, global_batch_size=64
    )
    return lr_sweep_figure(test, beta=0.9, title=title, subtitle="global batch 64, 2 ranks, 100 steps")


def curve_axes(figure: Figure) -> Axes:
    """The panel of the loss."""
    return next(axes for axes in figure.axes if axes.get_ylabel() == "loss")


def with_gid(figure: Figure, gid: str) -> list[Any]:
    """Artists with this id, in all panels."""
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def texts(figure: Figure) -> list[str]:
    """Every text in the figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def line(figure: Figure, label: str) -> Any:
    """A curve by its name in the legend."""
    return next(line for line in curve_axes(figure).lines if line.get_label() == label)


def trial(number: int, lr: float, loss: float, *, num_steps: int = 100, outcome: str = "finished") -> Trial:
    return Trial(
        trial=number, lr=lr, num_steps=num_steps, num_steps_run=num_steps, loss=loss, outcome=TrialOutcome(outcome)
    )


FINISHED = (trial(0, 1.2e-3, 0.4), trial(1, 3.8e-4, 0.9), trial(2, 3.8e-3, 0.3), trial(3, 3.8e-3, 0.2, num_steps=300))
DIVERGED = trial(4, 4e-2, math.inf, outcome="diverged")
INTERRUPTED = trial(5, 2e-2, math.nan, outcome="interrupted")


def confirmed_figure(*trials: Trial, measured_steps: int | None = 100) -> Figure:
    """The figure of a confirmed sweep: 1.2e-3 became 3.1e-3."""
    found = dataclasses.replace(SUGGESTION, lr=3.1e-3, interval=(2e-3, 5e-3))
    compared = Confirmation(
        schedule="cosine",
        monitored="validation loss",
        horizon=10_000,
        budget_steps=500,
        sweep=SUGGESTION,
        measured_steps=measured_steps,
    )
    test = RangeTestResult(
        steps=tuple(records(u_curve)), stops=(END,), suggestion=found, world_size=2, global_batch_size=64,
        trials=trials, confirmation=compared,
    )  # fmt: skip
    return lr_sweep_figure(test, beta=0.9, title="MLP, AdamW")


def trial_axes(figure: Figure) -> Axes:
    """The panel of the confirmation runs."""
    return next(axes for axes in figure.axes if axes.get_ylabel() == "validation loss")


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the header (IHDR) of a PNG."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height
