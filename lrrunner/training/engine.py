"""Runs a sweep on one rank: every repeat of its LR schedule, from the same initial state.

Its collaborators are arguments, and it never asks whether it is distributed. One step is in ``train_step``; what is
decided after each step is in ``sweep_run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from lrrunner.records import Step, Stop, StopReason
from lrrunner.training.collectives import Collective
from lrrunner.training.evaluation import Evaluation
from lrrunner.training.state.checkpoints import Checkpoints
from lrrunner.training.step.gradient_probe import GradientProbe
from lrrunner.training.step.step_table import Request
from lrrunner.training.step.train_step import TrainStep
from lrrunner.training.sweep_run import SweepPlan, SweepRun
from lrrunner.training.trainable import Batches, Trainable, preserved


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """What all sweeps and confirmation runs of a job share on one rank.

    Attributes:
        collective: The world this rank belongs to.
        stop_requested: Whether this rank was asked to stop. All ranks then stop after the same step.
        checkpoints: Saves the state of the run, and holds that of a previous attempt; None saves nothing.
        set_timeout: Limits every later collective to so many seconds; does nothing in a world that is not ours.
    """

    collective: Collective
    stop_requested: Callable[[], bool] = lambda: False
    checkpoints: Checkpoints | None = None
    set_timeout: Callable[[float], None] = lambda timeout_s: None

    def request(self) -> Request:
        """What this rank asks of all ranks after the current step."""
        if self.stop_requested():
            return Request.STOP
        return Request.SAVE if self.checkpoints is not None and self.checkpoints.due() else Request.NONE


class SweepResult(NamedTuple):
    """Records of all repeats in order, and where each repeat ended."""

    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]


def run_sweep(
    trainable: Trainable,
    plan: SweepPlan,
    batches: Batches,
    *,
    context: RankContext,
    on_step: Callable[[Step], None] = lambda step: None,
    on_end: Callable[[Stop], None] = lambda stop: None,
    started: float | None = None,
    evaluate: Callable[[], Evaluation] | None = None,
    probe: GradientProbe | None = None,
) -> SweepResult:
    """Run a sweep on this rank, together with all others. Every rank must call this.

    Model, optimizer, scaler and random number generators are restored afterwards, on every rank, also after an
    exception. Repeats that a previous attempt has finished are not run again; one that it was interrupted in continues
    there.

    Args:
        trainable: What to train.
        plan: LR schedule, repeats and stop rule.
        batches: Repeat number, first step -> endless micro-batches of this rank.
        context: World, stop requests and checkpoints of this rank.
        on_step: Called with each new record as soon as it is read; the same records on every rank.
        on_end: Called on every rank when a repeat has ended, while its model is still the trained one.
        started: ``time.perf_counter()`` at which elapsed times begin; None is now.
        evaluate: Measures the loss that is monitored instead of the training loss, after a step; the same on every
            rank. It must leave everything as it was.
        probe: Measures the noise of the gradient, on every rank or on none.

    Raises:
        Exception: whatever model, objective, data or optimizer raise.
    """
    started = time.perf_counter() if started is None else started
    checkpoints = context.checkpoints
    steps: list[Step] = []
    stops: list[Stop] = []
    with preserved(trainable) as snapshot, probe or nullcontext():
        for repeat in range(plan.first_repeat, plan.first_repeat + plan.repeats):
            key = plan.key(repeat)
            if checkpoints is not None and (finished := checkpoints.finished(key)) is not None:
                steps += finished.steps
                stops.append(finished.stop)
                continue
            if repeat > plan.first_repeat:
                snapshot.restore()
            trainable.train()
            run = SweepRun(
                _train_step(trainable, context, sync=plan.sync_every_step or evaluate is not None, probe=probe),
                plan,
                repeat=repeat,
                collective=context.collective,
                on_step=on_step,
                started=started,
                checkpoints=checkpoints,
                evaluate=evaluate,
            )
            unfinished = None if checkpoints is None else checkpoints.unfinished(key)
            stop = run.run(batches) if unfinished is None else run.resume(batches, unfinished)
            steps += run.steps
            stops.append(stop)
            on_end(stop)
            if stop.reason == StopReason.INTERRUPTED:
                break
            if checkpoints is not None:
                checkpoints.finish(key, run.steps, stop)
    return SweepResult(tuple(steps), tuple(stops))


def _train_step(trainable: Trainable, context: RankContext, *, sync: bool, probe: GradientProbe | None) -> TrainStep:
    return TrainStep(
        trainable, collective=context.collective, request=context.request, sync_every_step=sync, probe=probe
    )
