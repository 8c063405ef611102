"""Confirmation runs: short trainings around the sweep's suggestion, each from the initial state."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lrrunner.core.batch_plan import TRIAL_DATA_ORDER
from lrrunner.core.lr_schedules import FloatArray, training_lrs, trial_warmup_steps
from lrrunner.core.stop_rules import trial_stop_rule
from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.records import Step, Stop, StopReason, Training, Trial, TrialOutcome
from lrrunner.training.engine import RankContext, run_sweep
from lrrunner.training.evaluation import Evaluation, EvaluationError
from lrrunner.training.sweep_run import SweepPlan
from lrrunner.training.trainable import Batches, Trainable, preserved

logger = logging.getLogger(__name__)

Plan = Callable[[Sequence[Trial], float], PlannedTrial | None]
"""(trials so far, initial loss) -> the next one, or None when the budget is spent or nothing is left to learn."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials have in common.

    Attributes:
        training: The training whose LR schedule each trial completes in its own number of steps.
        beta: Memory of the causal EMA that serves the stop rule.
        seed: Fixes data order and random numbers.
        sync_every_step: As for the sweep.
    """

    training: Training
    beta: float
    seed: int = 0
    sync_every_step: bool = False


class Trials(NamedTuple):
    """All trials in order, and what ended them early.

    Attributes:
        trials: Each trial, also an interrupted one.
        interruption: Where a stop request ended them.
        failure_reason: Why there are none; empty if there are.
        initial_loss: The loss that theirs are compared with: the same loss before any training.
    """

    trials: tuple[Trial, ...] = ()
    interruption: Stop | None = None
    failure_reason: str = ""
    initial_loss: float = math.nan


class TrialListener(Protocol):
    """Follows the trials as they run."""

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """A trial begins."""
        ...

    def on_trial_step(self, number: int, step: Step) -> None:
        """A step of it is recorded, or was recorded by a previous attempt."""
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
    context: RankContext,
    initial: Evaluation | None = None,
    listener: TrialListener | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
) -> Trials:
    """Train from the initial state at several LRs, under one schedule. Every rank must call this.

    Model, optimizer, scaler and random number generators are restored afterwards, on every rank, also after an
    exception. Rank 0 plans for all ranks, as for the passes of a sweep. A trial that a previous attempt has finished is
    not run again; one that it was interrupted in continues there.

    Args:
        settings: Schedule and seed.
        plan: Chooses the next trial; called on rank 0 alone.
        trainable: What to train.
        batches: Number of a data order -> endless micro-batches of this rank.
        evaluate: The loss of the model as it is, the same on every rank.
        context: World, stop requests and checkpoints of this rank.
        initial: What ``evaluate`` returned for the initial model, the same on every rank; None evaluates it here.
        listener: Follows the trials; may differ by rank.
        heartbeat: Called with the number of each step.
    """
    first = evaluate_initial(trainable, evaluate) if initial is None else initial
    if first.requesting:
        return Trials(interruption=Stop(reason=StopReason.INTERRUPTED, step=0, ranks=first.requesting))
    if not math.isfinite(first.loss):
        reason = f"the loss of the initial model is {first.loss} where trials are compared; check data.val"
        return Trials(failure_reason=reason)
    runner = _TrialRunner(settings, trainable, batches, evaluate, context, listener, heartbeat)
    collective = context.collective
    trials: list[Trial] = []
    while (planned := collective.broadcast(plan(trials, first.loss) if collective.rank == 0 else None)) is not None:
        try:
            trial, stop = runner.run(len(trials), planned)
        except EvaluationError as error:  # raised on all ranks; what was measured before stays
            return Trials(tuple(trials), failure_reason=str(error), initial_loss=first.loss)
        except Exception as error:
            if collective.world_size > 1:  # the other ranks wait in a collective
                raise
            logger.warning("a confirmation run failed", exc_info=error)
            reason = f"a run at {planned.lr:.1e} failed with {type(error).__name__}: {error}"
            return Trials(tuple(trials), failure_reason=reason, initial_loss=first.loss)
        trials.append(trial)
        if trial.outcome == TrialOutcome.INTERRUPTED:
            return Trials(tuple(trials), interruption=stop, initial_loss=first.loss)
    reason = "" if trials else "the budget allows no confirmation run; raise confirm.budget_steps"
    return Trials(tuple(trials), failure_reason=reason, initial_loss=first.loss)


def evaluate_initial(trainable: Trainable, evaluate: Callable[[], Evaluation]) -> Evaluation:
    """The loss before any training; everything is restored afterwards. Every rank must call this."""
    with preserved(trainable):
        return evaluate()


@dataclass(frozen=True)
class _TrialRunner:
    """Runs trials one after another; its fields are the arguments of :func:`run_trials`."""

    settings: TrialSettings
    trainable: Trainable
    batches: Batches
    evaluate: Callable[[], Evaluation]
    context: RankContext
    listener: TrialListener | None
    heartbeat: Callable[[int], None]

    def run(self, number: int, planned: PlannedTrial) -> tuple[Trial, Stop | None]:
        """Run a trial, or return the one that a previous attempt has finished; and where it ended if it ran."""
        checkpoints = self.context.checkpoints
        if self.listener is not None:
            self.listener.begin_trial(number, planned)
            for step in checkpoints.known_steps(f"{_name(number)}/") if checkpoints is not None else ():
                self.listener.on_trial_step(number, step)
        stop = None
        trial = None if checkpoints is None else checkpoints.trial(number)
        if trial is None:
            trial, stop = self._train(number, planned)
            if checkpoints is not None and trial.outcome != TrialOutcome.INTERRUPTED:
                checkpoints.finish_trial(trial)
        if self.listener is not None:
            self.listener.on_trial(trial)
        return trial, stop

    def _train(self, number: int, planned: PlannedTrial) -> tuple[Trial, Stop]:
        """Train and evaluate; returns the trial and where it ended."""
        started = time.perf_counter()
        evaluations: list[Evaluation] = []

        def on_step(step: Step) -> None:
            if self.listener is not None:
                self.listener.on_trial_step(number, step)
            self.heartbeat(step.step)

        def on_end(stop: Stop) -> None:
            if stop.reason == StopReason.END_OF_SCHEDULE:
                evaluations.append(self.evaluate())

        (stop,) = run_sweep(
            self.trainable,
            self._schedule(number, planned),
            self.batches,
            context=self.context,
            on_step=on_step,
            on_end=on_end,
        ).stops
        if evaluations and evaluations[0].requesting:
            stop = dataclasses.replace(stop, reason=StopReason.INTERRUPTED, ranks=evaluations[0].requesting)
        outcome, loss = _outcome(stop, evaluations[0].loss if evaluations else math.nan)
        trial = Trial(
            trial=number,
            lr=planned.lr,
            num_steps=planned.num_steps,
            num_steps_run=stop.step + 1,
            loss=loss,
            outcome=outcome,
            elapsed_s=time.perf_counter() - started,
            batch_losses=evaluations[0].batch_losses if outcome == TrialOutcome.FINISHED else (),
        )
        return trial, stop

    def _schedule(self, number: int, planned: PlannedTrial) -> SweepPlan:
        """The trial's complete training schedule, as a plan that the engine runs."""
        settings = self.settings
        return SweepPlan(
            lrs=trial_lrs(settings.training, planned).tolist(),
            beta=settings.beta,
            new_stop_rule=lambda: trial_stop_rule(num_steps=planned.num_steps),
            first_repeat=TRIAL_DATA_ORDER,
            seed=settings.seed,
            sync_every_step=settings.sync_every_step,
            name=_name(number),
        )


def trial_lrs(training: Training, planned: PlannedTrial) -> FloatArray:
    """Learning rates of a trial: the training's schedule, completed in the trial's own number of steps."""
    num_steps, warmup_steps = planned.num_steps, training.warmup_steps
    return training_lrs(
        planned.lr,
        schedule=training.schedule,
        num_steps=num_steps,
        warmup_steps=trial_warmup_steps(num_steps, training_steps=training.num_steps, warmup_steps=warmup_steps),
    )


def _name(number: int) -> str:
    """Name of a trial in checkpoints."""
    return f"trial_{number}"


def _outcome(stop: Stop, loss: float) -> tuple[TrialOutcome, float]:
    """How a trial ended, and the loss that counts for it."""
    if stop.reason == StopReason.INTERRUPTED:
        return TrialOutcome.INTERRUPTED, math.nan
    if stop.reason != StopReason.END_OF_SCHEDULE or not math.isfinite(loss):
        return TrialOutcome.DIVERGED, math.inf
    return TrialOutcome.FINISHED, loss
