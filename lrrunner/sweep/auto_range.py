"""The passes of a range test: one, or up to three if the LR range of the first one was wrong."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lrrunner.config.schema import Config, Monitor, SweepConfig, SweepMode
from lrrunner.core.data_fault import data_fault, fault_suggestion, suspected_fault
from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.lr_schedules import SWEEP_SCHEDULES
from lrrunner.core.range_extension import (
    MAX_PASSES,
    Extension,
    curve_pass,
    extension,
    range_below,
    with_end_named,
)
from lrrunner.core.stop_rules import stop_rule
from lrrunner.core.suggestion_rules import DEFAULT_TRAINING, suggest
from lrrunner.core.trial_planning import trial_start
from lrrunner.records import Step, Stop, StopReason, Suggestion, SweepPass, Training
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import SweepResult
from lrrunner.training.sweep_run import SweepPlan

RunPass = Callable[[int, float, float], SweepResult]
"""(number of the pass, first LR, last LR) -> its records. Every rank must call this."""


class Passes(NamedTuple):
    """What all passes recorded.

    Attributes:
        steps: Records of all passes, in order.
        stops: Where each repeat ended.
        passes: Range and suggestion of each pass.
        curve_pass: Number of the pass whose curve counts.
        training: The training that the suggestions are for.
        trial_start: Where confirmation runs begin; None where they could show nothing.
    """

    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]
    passes: tuple[SweepPass, ...]
    curve_pass: int
    training: Training = DEFAULT_TRAINING
    trial_start: Suggestion | None = None

    @property
    def suggestion(self) -> Suggestion:
        """What the curve that counts supports."""
        return self.passes[self.curve_pass].suggestion

    @property
    def curve_steps(self) -> list[Step]:
        """Records of the curve that counts."""
        return [step for step in self.steps if step.sweep_pass == self.curve_pass]

    @property
    def interruption(self) -> Stop | None:
        """The stop of an interrupted sweep."""
        return next((stop for stop in self.stops if stop.reason == StopReason.INTERRUPTED), None)


def run_passes(
    run_pass: RunPass,
    job: Config,
    *,
    collective: Collective,
    training: Training = DEFAULT_TRAINING,
    highest_lr: float = math.inf,
    optimizer: OptimizerClass | None = None,
    on_extension: Callable[[Extension], None] = lambda extension: None,
    locate: Callable[[Stop, Sequence[Step]], str] = lambda stop, steps: "",
) -> Passes:
    """Sweep, and sweep extended ranges while these are needed and allowed. Every rank must call this.

    All ranks hold the same records. Still rank 0 decides for all: a matrix product may differ in its last bit between
    two kinds of processor, and ranks that decide differently would wait for each other for ever.

    Args:
        run_pass: Runs one pass from the initial state.
        job: LR range, whether it may be extended, and the suggestion rule.
        collective: The world this rank belongs to.
        training: The training that the LR is for.
        highest_lr: LR that no extended range exceeds.
        optimizer: Class of the optimizer; None if it is not known.
        on_extension: Called before each further pass.
        locate: Describes which samples a stop's ranks were at; called on rank 0 with the stop and the records.
    """
    steps: tuple[Step, ...] = ()
    stops: tuple[Stop, ...] = ()
    passes: list[SweepPass] = []
    sweep, method = job.sweep, job.suggestion.method
    low, high = sweep.start_lr, sweep.end_lr
    while True:
        result = run_pass(len(passes), low, high)
        found: tuple[Suggestion, Extension | None] | None = None
        if collective.rank == 0:
            fault = data_fault(result.steps, result.stops, earlier_stops=stops)
            if fault is not None:
                where = locate(fault, result.steps)
                found = fault_suggestion(fault, result.steps, method=method, location=where), None
            else:
                suggestion = suggest(
                    result.steps,
                    result.stops,
                    method=method,
                    beta=sweep.smoothing,
                    optimizer=optimizer,
                    training=training,
                )
                suggestion = with_end_named(suggestion, result.stops, end_lr=high)
                found = suggestion, _extension(result, suggestion, job, low, high, highest_lr)
                if sweep.auto_range and not passes and (suspect := suspected_fault(result.steps, result.stops)):
                    found = found[0], range_below(suspect, low, high)
        steps, stops = steps + result.steps, stops + result.stops
        suggestion, wider = collective.broadcast(found)
        passes.append(SweepPass(start_lr=low, end_lr=high, suggestion=suggestion))
        if wider is None or len(passes) == MAX_PASSES:
            break
        passes[-1] = dataclasses.replace(passes[-1], extension=wider.reason)
        on_extension(wider)
        low, high = wider.start_lr, wider.end_lr
    interrupted = any(stop.reason == StopReason.INTERRUPTED for stop in stops)
    chosen = curve_pass([each.suggestion for each in passes], interrupted=interrupted)
    start = trial_start(passes[chosen].suggestion, optimizer=optimizer, training=training)
    return Passes(steps, stops, tuple(passes), chosen, training, start)


def sweep_plan(sweep: SweepConfig, number: int, *, start_lr: float, end_lr: float) -> SweepPlan:
    """The plan of one pass."""
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


def _extension(
    result: SweepResult, suggestion: Suggestion, job: Config, low: float, high: float, highest_lr: float
) -> Extension | None:
    """The range of the next pass."""
    sweep = job.sweep
    if not sweep.auto_range:
        return None
    return extension(
        result.steps,
        result.stops,
        suggestion,
        start_lr=low,
        end_lr=high,
        linear=sweep.mode == SweepMode.linear,
        beta=sweep.smoothing,
        highest_lr=highest_lr,
    )
