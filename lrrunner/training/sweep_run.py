"""One repeat of a sweep: run the LR schedule step by step, record each step, and decide whether to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lrrunner.core.noise_scale import gradient_variance
from lrrunner.core.smoothing import Ema
from lrrunner.core.stop_rules import StopRule
from lrrunner.errors import UnreducedGradientError
from lrrunner.records import Step, Stop, StopReason
from lrrunner.training.collectives import Collective
from lrrunner.training.evaluation import Evaluation
from lrrunner.training.state.checkpoints import Checkpoints, UnfinishedRepeat
from lrrunner.training.state.snapshot import RngState, Snapshot, seed_rngs
from lrrunner.training.step.step_table import StepReading
from lrrunner.training.step.train_step import PendingStep, TrainStep
from lrrunner.training.trainable import Batches

MAX_SKIPS_IN_A_ROW = 10
"""A gradient scaler that starts at 2**16 has lowered its scale to 64 by then: further overflows have another cause."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep does, apart from what it trains. A short training under an LR schedule has such a plan, too.

    Attributes:
        lrs: LR schedule: the base learning rate of every step.
        beta: Memory of the causal EMA that serves the stop rule.
        new_stop_rule: Makes a fresh stop rule for each repeat.
        repeats: How often the schedule is run, each time from the same initial state with another data order.
        first_repeat: Number of the first repeat.
        seed: Fixes data order and random numbers, together with the number of the repeat.
        sync_every_step: Read each step before the next one starts, also on a GPU.
        sweep_pass: Number of this pass among those of auto-range.
        name: Distinguishes it from other plans of the same run, in checkpoints.
        evaluate_every: Steps from one evaluation to the next, if the sweep monitors an evaluation.
    """

    lrs: Sequence[float]
    beta: float
    new_stop_rule: Callable[[], StopRule]
    repeats: int = 1
    first_repeat: int = 0
    seed: int = 0
    sync_every_step: bool = False
    sweep_pass: int = 0
    name: str = "sweep"
    evaluate_every: int = 1

    @property
    def key_prefix(self) -> str:
        """What the checkpoint keys of all its repeats begin with."""
        return f"{self.name}/{self.sweep_pass}/"

    def key(self, repeat: int) -> str:
        """Checkpoint key of one repeat."""
        return f"{self.key_prefix}{repeat}"


class SweepRun:
    """One repeat of a sweep. Every rank must make one and run it, with the same plan.

    Args:
        train_step: Does the steps.
        plan: LR schedule, smoothing and stop rule.
        repeat: Number of the repeat.
        collective: The world this rank belongs to.
        on_step: Called with each new record as soon as it is read.
        started: ``time.perf_counter()`` at which elapsed times begin.
        checkpoints: Saves the state in the middle of the repeat; None saves nothing.
        evaluate: Measures the monitored loss, if that is not the training loss; steps must then not be read late.

    Attributes:
        steps: Records of the repeat so far, those of a previous attempt included.
    """

    def __init__(
        self,
        train_step: TrainStep,
        plan: SweepPlan,
        *,
        repeat: int,
        collective: Collective,
        on_step: Callable[[Step], None],
        started: float,
        checkpoints: Checkpoints | None = None,
        evaluate: Callable[[], Evaluation] | None = None,
    ) -> None:
        self._train_step = train_step
        self._plan = plan
        self._repeat = repeat
        self._collective = collective
        self._on_step = on_step
        self._started = started
        self._checkpoints = checkpoints
        self._evaluate = evaluate
        self.steps: list[Step] = []
        self._ema = Ema(plan.beta)
        self._stop_rule = plan.new_stop_rule()
        self._skips_in_a_row = 0
        self._save_requested = self._has_diverged = False

    def run(self, batches: Batches) -> Stop:
        """Train step by step until the schedule ends or a step ends it."""
        self._seed()
        return self._run(batches(self._repeat), first_index=0)

    def resume(self, batches: Batches, unfinished: UnfinishedRepeat) -> Stop:
        """Continue from a checkpoint as if the repeat had never been interrupted.

        What follows from the records (average, stop rule, index, position in the data) is rebuilt from them.
        """
        self._seed()
        if self._collective.world_size > 1:
            self._train_step.discard_pass(batches(self._repeat))
        self._started = min(self._started, time.perf_counter() - unfinished.steps[-1].elapsed_s)
        for step in unfinished.steps:
            self._replay(step)
        if self._has_diverged:  # at the very step after which it was interrupted
            return self._stop(StopReason.DIVERGED, unfinished.steps[-1].step)
        self._seed()  # loader workers draw their own seed from this rank's generator
        stream = batches(self._repeat, len(self.steps))
        self._train_step.reference_items = unfinished.restore(self._snapshot(), self._train_step.device)
        return self._run(stream, first_index=sum(not step.skipped for step in self.steps))

    def _seed(self) -> None:
        seed_rngs(self._plan.seed, self._repeat, self._collective.rank)

    def _snapshot(self) -> Snapshot:
        trainable = self._train_step.trainable
        return Snapshot(trainable.model, trainable.optimizer, trainable.scaler)

    def _replay(self, step: Step) -> None:
        """Update the state of the decisions by a step of a previous attempt."""
        self.steps.append(step)
        self._skips_in_a_row = self._skips_in_a_row + 1 if step.skipped else 0
        if (monitored := step.monitored_loss) is not None:
            self._ema.update(monitored)
            self._has_diverged = self._diverges(monitored, step.loss)

    def _run(self, batches: Iterator[Any], *, first_index: int) -> Stop:
        lrs = self._plan.lrs
        pending: PendingStep | None = None
        index = first_index
        while index < len(lrs):
            try:
                issued = self._train_step.run(index, lrs[index], batches)
            except Exception:
                # If the step before was bad, that is the reason, and this error its consequence.
                stop = self._settle(pending) if pending is not None else None
                if stop is not None:
                    return stop
                raise
            settled, pending = (pending, issued) if self._train_step.reads_late else (issued, None)
            stop = self._settle(settled) if settled is not None else None
            if self._save_requested and (stop is None or stop.reason == StopReason.INTERRUPTED):
                stop, pending = self._save(pending, stop), None
            if stop is not None:
                return stop
            index += not issued.skipped
        stop = self._settle(pending) if pending is not None else None
        return stop or self._stop(StopReason.END_OF_SCHEDULE, len(lrs) - 1)

    def _save(self, pending: PendingStep | None, stop: Stop | None) -> Stop | None:
        """Save the state; all ranks are here, after the same step.

        A pending step has changed the model already, so that its record belongs to the checkpoint.
        """
        if pending is not None and not self._has_diverged:
            stop = self._settle(pending) or stop
            if stop is not None and stop.reason != StopReason.INTERRUPTED:
                return stop
        assert self._checkpoints is not None
        self._checkpoints.save(
            self._plan.key(self._repeat),
            self.steps,
            self._snapshot(),
            rng=RngState.capture(self._train_step.device),
            reference_items=self._train_step.reference_items,
        )
        return stop

    def _settle(self, step: PendingStep) -> Stop | None:
        """Read a step, record it, and decide; the values are the same on every rank, and so is the decision."""
        reading = step.read()
        if self._train_step.gradients_must_agree and (norms := reading.gradient_disagreement):
            raise UnreducedGradientError(norms, step=step.index)
        if not reading.num_items:
            return self._settle_without_items(step, reading)
        loss, bad_ranks = reading.loss, reading.non_finite_ranks
        finite = math.isfinite(loss) and not bad_ranks
        in_gradient = finite and not step.skipped and not math.isfinite(reading.grad_norm)
        evaluation = self._evaluation(step) if finite and not in_gradient else None
        monitored = loss if self._evaluate is None else None
        if evaluation is not None:
            monitored, bad_ranks = evaluation.loss, evaluation.non_finite
            finite = math.isfinite(monitored)
        if step.skipped or not finite:
            monitored = None
        if monitored is not None:
            self._ema.update(monitored)
        self._record(step, reading, evaluation, finite=finite, skipped=step.skipped)
        self._skips_in_a_row = self._skips_in_a_row + 1 if step.skipped else 0
        if in_gradient:
            return self._stop(StopReason.NON_FINITE, step.index, reading.bad_gradient_ranks, in_gradient=True)
        if not finite or self._skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            in_evaluation = not finite and evaluation is not None
            in_buffer = not finite and evaluation is None and math.isfinite(loss)
            return self._stop(
                StopReason.NON_FINITE, step.index, bad_ranks, in_evaluation=in_evaluation, in_buffer=in_buffer
            )
        self._has_diverged = monitored is not None and self._diverges(monitored, loss)
        return self._decision(step, reading)

    def _settle_without_items(self, step: PendingStep, reading: StepReading) -> Stop | None:
        """A step that no rank had any items for is skipped: no point of the curve. Too many in a row end the sweep."""
        self._record(step, reading, None, finite=False, skipped=True)
        self._skips_in_a_row += 1
        if self._skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            return self._stop(StopReason.NO_ITEMS, step.index)
        return self._decision(step, reading)

    def _evaluation(self, step: PendingStep) -> Evaluation | None:
        """The evaluation after a step; None if none is due."""
        is_due = not step.skipped and step.index % self._plan.evaluate_every == 0
        return self._evaluate() if self._evaluate is not None and is_due else None

    def _record(
        self, step: PendingStep, reading: StepReading, evaluation: Evaluation | None, *, finite: bool, skipped: bool
    ) -> None:
        record = Step(
            sweep_pass=self._plan.sweep_pass,
            repeat=self._repeat,
            step=step.index,
            lr=self._plan.lrs[step.index],
            loss=reading.loss,
            smoothed_loss=self._ema.value if finite and self._ema.num_updates else math.nan,
            grad_norm=reading.grad_norm,
            num_items=reading.num_items,
            skipped=skipped,
            elapsed_s=time.perf_counter() - self._started,
            timestamp_ms=time.time_ns() // 1_000_000,
            val_loss=None if evaluation is None else evaluation.loss,
            val_items=None if evaluation is None else evaluation.num_items,
            is_monitored=self._evaluate is None or evaluation is not None,
            gradient_variance=_gradient_variance(reading) if self._train_step.is_probed else None,
        )
        self.steps.append(record)
        self._on_step(record)

    def _decision(self, step: PendingStep, reading: StepReading) -> Stop | None:
        """What the ranks ask for after a finite step, and whether it ends the repeat."""
        self._save_requested = self._checkpoints is not None and reading.save_requested
        if reading.stopping_ranks:
            return self._stop(StopReason.INTERRUPTED, step.index, reading.stopping_ranks)
        return self._stop(StopReason.DIVERGED, step.index) if self._has_diverged else None

    def _diverges(self, monitored: float, training_loss: float) -> bool:
        """Update the stop rule; returns whether it fires.

        A rise must exceed the noise of the training loss, also if another loss is monitored: evaluations of always the
        same samples have no noise, so that any rise would exceed it.
        """
        return self._stop_rule.update(monitored, self._ema.value, noisy_loss=training_loss)

    def _stop(self, reason: StopReason, index: int, ranks: tuple[int, ...] = (), **where: bool) -> Stop:
        return Stop(
            reason=reason,
            step=index,
            ranks=ranks,
            repeat=self._repeat,
            sweep_pass=self._plan.sweep_pass,
            **where,
            is_partial=0 < len(ranks) < self._collective.world_size,
        )


def _gradient_variance(reading: StepReading) -> float:
    """From what the probes of all ranks report; NaN without items."""
    if not reading.num_items:
        return math.nan
    squares, num_parts = reading.spare_sums
    return gradient_variance(
        squares / reading.num_items, reading.grad_norm, num_items=reading.num_items, num_parts=num_parts
    )
