"""The ladders of a range test: one, or up to three where the first one's range was wrong."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from lrrunner.config.schema import Monitor, SweepConfig, SweepMode
from lrrunner.core.lr_schedules import SWEEP_SCHEDULES
from lrrunner.core.range_extension import MAX_PASSES, Extension, curve_pass, extension
from lrrunner.core.stop_rules import stop_rule
from lrrunner.core.suggestion_rules import suggest
from lrrunner.records import Step, Stop, StopReason, Suggestion, SweepPass
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import SweepPlan, SweepResult

Climb = Callable[[int, float, float], SweepResult]
"""(number of the pass, first LR, last LR) -> its records. Every rank must call this."""


class Passes(NamedTuple):
    """Records of all passes in order, where each repeat ended, the ladders, and the one to believe."""

    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]
    ladders: tuple[SweepPass, ...]
    curve_pass: int

    @property
    def suggestion(self) -> Suggestion:
        """What the ladder to believe supports."""
        return self.ladders[self.curve_pass].suggestion

    @property
    def curve_steps(self) -> list[Step]:
        """Records of the ladder to believe."""
        return [step for step in self.steps if step.sweep_pass == self.curve_pass]

    @property
    def interruption(self) -> Stop | None:
        """The stop of an interrupted sweep."""
        return next((stop for stop in self.stops if stop.reason == StopReason.INTERRUPTED), None)


def run_passes(
    climb: Climb,
    sweep: SweepConfig,
    *,
    method: str,
    collective: Collective,
    on_extension: Callable[[Extension], None] = lambda extension: None,
) -> Passes:
    """Climb the ladder, and extended ones while they are needed and allowed. Every rank must call this.

    Every rank holds the same records; still rank 0 alone judges them and tells the others, since a matrix product may
    differ in its last bit between two kinds of processor, and ranks that decide differently wait for ever.

    Args:
        climb: Runs one pass from the initial state.
        sweep: The ladder, and whether it may be extended.
        method: Name of the suggestion rule.
        collective: The world this rank belongs to.
        on_extension: Called before each further pass.
    """
    steps: tuple[Step, ...] = ()
    stops: tuple[Stop, ...] = ()
    ladders: list[SweepPass] = []
    low, high = sweep.start_lr, sweep.end_lr
    while True:
        result = climb(len(ladders), low, high)
        steps, stops = steps + result.steps, stops + result.stops
        judged = _judged(result, sweep, method, low, high) if collective.rank == 0 else None
        suggestion, wider = collective.broadcast(judged)
        ladders.append(SweepPass(start_lr=low, end_lr=high, suggestion=suggestion))
        if wider is None or len(ladders) == MAX_PASSES:
            break
        ladders[-1] = dataclasses.replace(ladders[-1], extension=wider.reason)
        on_extension(wider)
        low, high = wider.start_lr, wider.end_lr
    interrupted = any(stop.reason == StopReason.INTERRUPTED for stop in stops)
    chosen = curve_pass([ladder.suggestion for ladder in ladders], interrupted=interrupted)
    return Passes(steps, stops, tuple(ladders), chosen)


def sweep_plan(sweep: SweepConfig, number: int, *, start_lr: float, end_lr: float) -> SweepPlan:
    """The ladder of one pass."""
    every = 1 if sweep.monitor == Monitor.train else sweep.val_every
    return SweepPlan(
        lrs=SWEEP_SCHEDULES[sweep.mode.value](start_lr=start_lr, end_lr=end_lr, num_steps=sweep.num_steps).tolist(),
        beta=sweep.smoothing,
        new_stop_rule=functools.partial(
            stop_rule, sweep.stop_rule.value, factor=sweep.diverge_factor, num_steps=-(-sweep.num_steps // every)
        ),
        repeats=sweep.repeats,
        seed=sweep.seed,
        sync_every_step=sweep.sync_every_step,
        sweep_pass=number,
        evaluate_every=every,
    )


def _judged(
    result: SweepResult, sweep: SweepConfig, method: str, low: float, high: float
) -> tuple[Suggestion, Extension | None]:
    """What one pass supports, and which range comes next."""
    suggestion = suggest(result.steps, result.stops, method=method, beta=sweep.smoothing)
    if not sweep.auto_range:
        return suggestion, None
    linear = sweep.mode == SweepMode.linear
    wider = extension(
        result.steps, result.stops, suggestion, start_lr=low, end_lr=high, linear=linear, beta=sweep.smoothing
    )
    return suggestion, wider
