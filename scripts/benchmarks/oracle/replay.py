"""What lrrunner would have recorded and suggested, from sweeps that were measured to the end of their ladder."""

from __future__ import annotations

import math
from typing import NamedTuple

from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.core.range_extension import MAX_PASSES, curve_pass, extension
from lrrunner.core.smoothing import Ema
from lrrunner.core.stop_rules import stop_rule
from lrrunner.core.suggestion_rules import DEFAULT_TRAINING, suggest
from lrrunner.records import Step, Stop, StopReason, Suggestion, Training
from oracle.store import Ladder, Store

BETA = 0.9
START_LR, END_LR = 1e-7, 10.0


class MissingError(LookupError):
    """A sweep has not been measured.

    Attributes:
        ladder: Its ladder.
    """

    def __init__(self, ladder: Ladder) -> None:
        super().__init__(f"sweep {ladder} was not measured; run measure_oracle.py")
        self.ladder = ladder


class RangeTest(NamedTuple):
    """What lrrunner records in one pass, and suggests."""

    steps: list[Step]
    stop: Stop
    suggestion: Suggestion


def range_test(
    store: Store,
    num_steps: int,
    seed: int,
    *,
    optimizer: OptimizerClass | None = None,
    training: Training = DEFAULT_TRAINING,
) -> RangeTest:
    """The pass that lrrunner's suggestion comes from, by default: its range extended where that is due."""
    low, high = START_LR, END_LR
    passes: list[RangeTest] = []
    for _ in range(MAX_PASSES):
        steps, stop = stopped(store, Ladder(low, high, num_steps, seed))
        suggestion = suggest(steps, [stop], beta=BETA, optimizer=optimizer, training=training)
        passes.append(RangeTest(steps, stop, suggestion))
        wider = extension(steps, [stop], suggestion, start_lr=low, end_lr=high, linear=False, beta=BETA)
        if wider is None:
            break
        low, high = wider.start_lr, wider.end_lr
    return passes[curve_pass([test.suggestion for test in passes], interrupted=False)]


def stopped(store: Store, ladder: Ladder) -> tuple[list[Step], Stop]:
    """The records that lrrunner's own stop rule leaves of a sweep.

    Raises:
        MissingError: The sweep was not measured.
    """
    if ladder not in store.sweeps:
        raise MissingError(ladder)
    average, rule = Ema(BETA), stop_rule("range", factor=2.0, num_steps=ladder.num_steps)
    lrs = exponential_lr(start_lr=ladder.start_lr, end_lr=ladder.end_lr, num_steps=ladder.num_steps).tolist()
    steps: list[Step] = []
    for i, (lr, loss, norm) in enumerate(zip(lrs, *(c.tolist() for c in store.sweeps[ladder]), strict=False)):
        if not math.isfinite(loss):
            steps.append(Step(step=i, lr=lr, loss=math.inf))
            return steps, Stop(reason=StopReason.NON_FINITE, step=i)
        steps.append(Step(step=i, lr=lr, loss=loss, smoothed_loss=average.update(loss), grad_norm=norm))
        if rule.update(loss, average.value):
            return steps, Stop(reason=StopReason.DIVERGED, step=i)
    reason = StopReason.END_OF_SCHEDULE if len(steps) == ladder.num_steps else StopReason.DIVERGED
    return steps, Stop(reason=reason, step=len(steps) - 1)
