"""Confirmation runs: short real trainings around the sweep's suggestion, each from the initial state."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lrrunner.core.confirmation import PlannedTrial
from lrrunner.core.lr_schedules import TRAINING_SCHEDULES
from lrrunner.core.stop_rules import trial_stop_rule
from lrrunner.records import Step, Stop, StopReason, Trial, TrialOutcome
from lrrunner.training.checkpoints import Checkpoints
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import SweepPlan, run_sweep
from lrrunner.training.evaluation import Evaluation
from lrrunner.training.trainable import Batches, Trainable, preserved

DATA_ORDER = 1_000_000
"""Number of the data order that all trials share: no repeat of a sweep has it."""

MIN_EVALUATED, EVALUATED_BATCHES = 2048, 20
"""An evaluation takes the larger of so many samples and so many global batches, or all there are: enough for the
standard error of a mean to be a fiftieth of the samples' own spread."""

MAX_EVALUATION_PASSES = 100
"""But at most so many forward passes of each rank, since small batches would make evaluating dearer than training."""


Plan = Callable[[Sequence[Trial], float], PlannedTrial | None]
"""(trials so far, initial loss) -> the next one, or None when the budget is spent or nothing is left to learn."""


def num_evaluated(global_batch_size: int, *, accumulation_steps: int) -> int:
    """How many samples an evaluation takes at most; independent of the number of ranks.

    >>> num_evaluated(64, accumulation_steps=1), num_evaluated(512, accumulation_steps=2)
    (2048, 10240)
    >>> num_evaluated(4, accumulation_steps=1)
    400
    """
    wanted = max(MIN_EVALUATED, EVALUATED_BATCHES * global_batch_size)
    return min(wanted, MAX_EVALUATION_PASSES * global_batch_size // accumulation_steps)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials have in common.

    Attributes:
        schedule: One of ``TRAINING_SCHEDULES``.
        beta: Memory of the causal EMA that serves the stop.
        seed: Fixes data order and random numbers.
        sync_every_step: As for the sweep.
    """

    schedule: str
    beta: float
    seed: int = 0
    sync_every_step: bool = False


class Trials(NamedTuple):
    """All trials in order, and what kept them from going on.

    Attributes:
        trials: Each trial, the interrupted one included.
        interruption: Where a rank's wish to stop ended them.
        trouble: Why there are none, in words; empty where there are.
        initial_loss: What their losses are compared with: the same loss before any training.
    """

    trials: tuple[Trial, ...] = ()
    interruption: Stop | None = None
    trouble: str = ""
    initial_loss: float = math.nan


class Listener(Protocol):
    """Follows the trials as they run."""

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """A trial begins."""
        ...

    def on_trial_step(self, number: int, step: Step) -> None:
        """One step of it was read."""
        ...

    def on_trial(self, trial: Trial) -> None:
        """It has ended."""
        ...


def run_trials(
    settings: TrialSettings,
    *,
    plan: Plan,
    trainable: Trainable,
    batches: Batches,
    evaluate: Callable[[], Evaluation],
    collective: Collective,
    initial: Evaluation | None = None,
    listener: Listener | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> Trials:
    """Train from the initial state under one schedule at several LRs. Every rank must call this.

    Model, optimizer, scaler and random number generators are afterwards as before, on every rank, whatever happens.
    Rank 0 plans and tells the others, as for the passes of a sweep.

    Args:
        settings: Schedule, seed.
        plan: Says which trial comes next; called on rank 0 alone.
        trainable: What to train.
        batches: Number of a data order -> endless micro-batches of this rank.
        evaluate: The loss of the model as it stands, the same on every rank.
        collective: The world this rank belongs to.
        initial: What ``evaluate`` gave for the initial model, the same on every rank; None where it was not asked yet.
        listener: Follows the trials; may differ by rank.
        stop_requested: This rank's wish to stop, which all ranks then follow at the same step.
        checkpoints: Where the state is saved. A trial that an earlier life has ended is not run again, and the one that
            it was in the middle of goes on there.
    """
    first = evaluate_initial(trainable, evaluate) if initial is None else initial
    if first.requesting:
        return Trials(interruption=Stop(reason=StopReason.INTERRUPTED, step=0, ranks=first.requesting))
    if not math.isfinite(first.loss):
        return Trials(
            trouble=f"the loss of the initial model is {first.loss} where trials are compared; check data.val"
        )
    trials: list[Trial] = []
    while (planned := collective.broadcast(plan(trials, first.loss) if collective.rank == 0 else None)) is not None:
        number = len(trials)
        if listener is not None:
            listener.begin_trial(number, planned)
            for step in checkpoints.known_steps(f"{_name(number)}/") if checkpoints is not None else ():
                listener.on_trial_step(number, step)
        known = None if checkpoints is None else checkpoints.trial(number)
        if known is not None:
            trials.append(known)
            if listener is not None:
                listener.on_trial(known)
            continue
        trial, stop = _run_trial(
            number, planned, settings, trainable, batches, evaluate, collective, listener, stop_requested, checkpoints
        )
        trials.append(trial)
        if listener is not None:
            listener.on_trial(trial)
        if trial.outcome == TrialOutcome.INTERRUPTED:
            return Trials(tuple(trials), interruption=stop, initial_loss=first.loss)
        if checkpoints is not None:
            checkpoints.finish_trial(trial)
    trouble = "" if trials else "the budget allows no confirmation run; raise confirm.budget_steps"
    return Trials(tuple(trials), trouble=trouble, initial_loss=first.loss)


def evaluate_initial(trainable: Trainable, evaluate: Callable[[], Evaluation]) -> Evaluation:
    """The loss before any training; nothing is changed by asking. Every rank must call this."""
    with preserved(trainable):
        return evaluate()


def _run_trial(
    number: int,
    planned: PlannedTrial,
    settings: TrialSettings,
    trainable: Trainable,
    batches: Batches,
    evaluate: Callable[[], Evaluation],
    collective: Collective,
    listener: Listener | None,
    stop_requested: Callable[[], bool],
    checkpoints: Checkpoints | None,
) -> tuple[Trial, Stop]:
    """One trial and where it ended."""
    started = time.perf_counter()
    measured: list[Evaluation] = []

    def on_step(step: Step) -> None:
        if listener is not None:
            listener.on_trial_step(number, step)

    def on_end(stop: Stop) -> None:
        if stop.reason == StopReason.END_OF_SCHEDULE:
            measured.append(evaluate())

    ladder = SweepPlan(
        lrs=TRAINING_SCHEDULES[settings.schedule](planned.lr, num_steps=planned.num_steps).tolist(),
        beta=settings.beta,
        new_stop_rule=lambda: trial_stop_rule(num_steps=planned.num_steps),
        first_repeat=DATA_ORDER,
        seed=settings.seed,
        sync_every_step=settings.sync_every_step,
        name=_name(number),
    )
    (stop,) = run_sweep(
        trainable,
        ladder,
        batches,
        collective=collective,
        on_step=on_step,
        on_end=on_end,
        stop_requested=stop_requested,
        checkpoints=checkpoints,
    ).stops
    if measured and measured[0].requesting:
        stop = dataclasses.replace(stop, reason=StopReason.INTERRUPTED, ranks=measured[0].requesting)
    outcome, loss = _outcome(stop, measured[0].loss if measured else math.nan)
    trial = Trial(
        trial=number,
        lr=planned.lr,
        num_steps=planned.num_steps,
        num_steps_run=stop.step + 1,
        loss=loss,
        outcome=outcome,
        elapsed_s=time.perf_counter() - started,
    )
    return trial, stop


def _name(number: int) -> str:
    """The ladder of a trial, in checkpoints."""
    return f"trial_{number}"


def _outcome(stop: Stop, loss: float) -> tuple[TrialOutcome, float]:
    """How a trial ended and the loss that counts for it."""
    if stop.reason == StopReason.INTERRUPTED:
        return TrialOutcome.INTERRUPTED, math.nan
    if stop.reason != StopReason.END_OF_SCHEDULE or not math.isfinite(loss):
        return TrialOutcome.DIVERGED, math.inf
    return TrialOutcome.FINISHED, loss
