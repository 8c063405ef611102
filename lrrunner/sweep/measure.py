"""What one rank measures for a job: the passes of the sweep, then the confirmation runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lrrunner.config.schema import Config, Monitor, budget_steps, training
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.lr_estimate import with_length
from lrrunner.core.range_extension import Extension
from lrrunner.core.trial_planning import PlannedTrial, next_trial
from lrrunner.records import Step, Suggestion, Training, Trial
from lrrunner.sweep.auto_range import Passes, RunPass, run_passes, sweep_plan
from lrrunner.sweep.confirmation_runs import (
    Plan,
    TrialListener,
    Trials,
    TrialSettings,
    evaluate_initial,
    run_trials,
)
from lrrunner.sweep.evaluators import JobBatches, trial_evaluator, validation_monitor
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.evaluation import Evaluation, EvaluationError
from lrrunner.training.optimizer.optimizers import highest_useful_lr, optimizer_class
from lrrunner.training.step.gradient_probe import GradientProbe
from lrrunner.training.trainable import Trainable

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Everything that was measured."""

    passes: Passes
    trials: Trials

    @property
    def interrupted(self) -> bool:
        """Whether a stop request ended it."""
        return self.passes.interruption is not None or self.trials.interruption is not None


class Listener(TrialListener, Protocol):
    """Follows what is measured, on rank 0."""

    def begin_pass(self, number: int) -> None:
        """A pass of the sweep begins."""
        ...

    def on_step(self, step: Step) -> None:
        """A step of the sweep is recorded, or was recorded by a previous attempt."""
        ...

    def on_extension(self, extension: Extension) -> None:
        """Another pass with this range follows."""
        ...

    def on_passes(self, passes: Passes) -> None:
        """The sweep has ended, and confirmation runs follow."""
        ...


class Comparison(NamedTuple):
    """What confirmation runs are compared on.

    Attributes:
        evaluate: The loss of the model as it is, which every rank must call; None where it cannot be evaluated.
        initial: Of the initial model; None where it could not be evaluated.
        failure_reason: Why it could not be evaluated; empty if it could.
    """

    evaluate: Callable[[], Evaluation] | None
    initial: Evaluation | None
    failure_reason: str = ""

    @property
    def initial_loss(self) -> float:
        """The loss of the initial model; NaN where it could not be evaluated."""
        return math.nan if self.initial is None else self.initial.loss


def measure(
    job: Config,
    batches: JobBatches,
    trainable: Trainable,
    *,
    context: RankContext,
    listener: Listener | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
) -> Measured:
    """Sweep, and run confirmation runs if the job asks for them. Every rank must call this.

    Args:
        job: What to measure.
        batches: What is read.
        trainable: What to train, wrapped for the world.
        context: World, stop requests and checkpoints of this rank.
        listener: Follows what is measured; rank 0's.
        heartbeat: Called on every rank with the number of each step.
    """
    measurement = Measurement(job, batches, trainable, context, listener, heartbeat)
    comparison = measurement.comparison()
    passes = measurement.sweep()
    return Measured(passes, measurement.confirm(passes, comparison))


@dataclass(frozen=True)
class Measurement:
    """The parts of :func:`measure`, whose arguments are its fields.

    Every rank must call its methods, in their order.
    """

    job: Config
    batches: JobBatches
    trainable: Trainable
    context: RankContext
    listener: Listener | None = None
    heartbeat: Callable[[int], None] = lambda step: None

    def comparison(self) -> Comparison | None:
        """Evaluate the initial model, before the sweep, so that data that cannot be evaluated is noticed early.

        Returns:
            What confirmation runs will be compared on; None if the job asks for none.
        """
        if not self.job.confirm.enabled:
            return None
        try:
            evaluate = trial_evaluator(self.job, self.trainable, self.batches, context=self.context)
            return Comparison(evaluate, evaluate_initial(self.trainable, evaluate))
        except EvaluationError as error:  # raised on all ranks; the sweep needs no evaluation
            if self.context.collective.rank == 0:
                logger.warning("the sweep runs without confirmation: %s", error)
            return Comparison(None, None, str(error))

    def sweep(self) -> Passes:
        """The passes of the sweep."""
        listener = self.listener
        return run_passes(
            _pass_runner(self.job, self.trainable, self.batches, self.context, listener, self.heartbeat),
            self.job,
            collective=self.context.collective,
            training=with_length(training(self.job), epoch_steps=self.batches.epoch_steps),
            highest_lr=highest_useful_lr(self.trainable.optimizer),
            optimizer=optimizer_class(self.trainable.optimizer),
            on_extension=listener.on_extension if listener is not None else lambda extension: None,
            locate=self.batches.locate,
        )

    def confirm(self, passes: Passes, comparison: Comparison | None) -> Trials:
        """The confirmation runs after a sweep; none if the job asks for none, or the sweep left nothing to confirm."""
        if comparison is None or passes.interruption is not None or passes.trial_start is None:
            return Trials()
        if self.listener is not None:
            self.listener.on_passes(passes)
        if comparison.evaluate is None:
            return Trials(failure_reason=comparison.failure_reason)
        return run_trials(
            _trial_settings(self.job, passes.training),
            plan=_trial_plan(self.job, passes, passes.trial_start),
            trainable=self.trainable,
            batches=self.batches,
            evaluate=comparison.evaluate,
            context=self.context,
            initial=comparison.initial,
            listener=self.listener,
            heartbeat=self.heartbeat,
        )


def _pass_runner(
    job: Config,
    trainable: Trainable,
    batches: JobBatches,
    context: RankContext,
    listener: Listener | None,
    heartbeat: Callable[[int], None],
) -> RunPass:
    """Make the function that runs one pass of the sweep. Every rank must call what this returns."""
    checkpoints = context.checkpoints
    started = time.perf_counter()
    if checkpoints is not None:
        started -= max((step.elapsed_s for step in checkpoints.known_steps("sweep/")), default=0.0)
    on_step = _on_step(job, context, listener, heartbeat)
    probe = GradientProbe(trainable.parameters) if job.sweep.noise_scale else None
    evaluate = None
    if job.sweep.monitor == Monitor.val:
        evaluate = validation_monitor(job, trainable, batches, collective=context.collective)

    def run_pass(number: int, start_lr: float, end_lr: float) -> SweepResult:
        plan = sweep_plan(job.sweep, number, start_lr=start_lr, end_lr=end_lr)
        if listener is not None:
            listener.begin_pass(number)
            for step in checkpoints.known_steps(plan.key_prefix) if checkpoints is not None else ():
                listener.on_step(step)
        return run_sweep(
            trainable,
            plan,
            batches,
            context=context,
            on_step=on_step,
            started=started,
            evaluate=evaluate,
            probe=probe,
        )

    return run_pass


def _on_step(
    job: Config, context: RankContext, listener: Listener | None, heartbeat: Callable[[int], None]
) -> Callable[[Step], None]:
    """Make the callback of a step: after the first one, collectives get the user's timeout; then report the step."""
    is_first = True

    def on_step(step: Step) -> None:
        nonlocal is_first
        if is_first:
            context.set_timeout(job.run.timeout_s)
            is_first = False
        if listener is not None:
            listener.on_step(step)
        heartbeat(step.step)

    return on_step


def _trial_settings(job: Config, training: Training) -> TrialSettings:
    return TrialSettings(
        training=training,
        beta=job.sweep.smoothing,
        seed=job.sweep.seed,
        sync_every_step=job.sweep.sync_every_step,
    )


def _trial_plan(job: Config, passes: Passes, start: Suggestion) -> Plan:
    """Plan of the confirmation runs, given where they begin and the noise of the sweep's curve."""
    curve = curve_from_steps(passes.curve_steps, beta=job.sweep.smoothing)

    def plan(trials: Sequence[Trial], initial_loss: float) -> PlannedTrial | None:
        return next_trial(
            start,
            trials,
            budget_steps=budget_steps(job),
            training_steps=job.train.num_steps,  # an assumed length bounds no trial
            initial_loss=initial_loss,
            noise=curve.noise if curve is not None else 0.0,
        )

    return plan
