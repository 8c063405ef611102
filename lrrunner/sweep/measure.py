"""What one rank measures for a job: the passes of the sweep, then the confirmation runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from lrrunner.config.schema import Config, Monitor, budget_steps, training
from lrrunner.core.confirmation import PlannedTrial, next_trial
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.range_extension import Extension
from lrrunner.records import Step, Trial
from lrrunner.sweep.auto_range import Passes, RunPass, run_passes, sweep_plan
from lrrunner.sweep.confirmation_runs import (
    Plan,
    TrialListener,
    Trials,
    TrialSettings,
    evaluate_initial,
    run_trials,
)
from lrrunner.sweep.data_loading import Datasets, RankBatches
from lrrunner.sweep.evaluators import trial_evaluator, validation_monitor
from lrrunner.training import collectives
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.evaluation import Evaluation, EvaluationError
from lrrunner.training.gradient_probe import GradientProbe
from lrrunner.training.optimizers import highest_useful_lr
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


def measure(
    job: Config,
    datasets: Datasets,
    trainable: Trainable,
    *,
    context: RankContext,
    listener: Listener | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
) -> Measured:
    """Sweep, and run confirmation runs if the job asks for them. Every rank must call this.

    Args:
        job: What to measure.
        datasets: What is read.
        trainable: What to train, wrapped for the world.
        context: World, stop requests and checkpoints of this rank.
        listener: Follows what is measured; rank 0's.
        heartbeat: Called on every rank with the number of each step.
    """
    batches = RankBatches(datasets, job, collective=context.collective)
    evaluate_trial = trial_evaluator(job, trainable, batches, context=context) if job.confirm.enabled else None
    run_pass = _pass_runner(job, trainable, batches, context, listener, heartbeat)
    # before the sweep, so that a data.val that cannot be evaluated fails early
    initial: Evaluation | None = None
    cannot_confirm = ""
    try:
        initial = evaluate_initial(trainable, evaluate_trial) if evaluate_trial is not None else None
    except EvaluationError as error:  # raised on all ranks; the sweep needs no evaluation
        cannot_confirm = str(error)
        if listener is not None:
            logger.warning("the sweep runs without confirmation: %s", error)
    passes = run_passes(
        run_pass,
        job,
        collective=context.collective,
        highest_lr=highest_useful_lr(trainable.optimizer),
        on_extension=listener.on_extension if listener is not None else lambda extension: None,
        locate=batches.locate,
    )
    if evaluate_trial is None or passes.interruption is not None or passes.suggestion.lr is None:
        return Measured(passes, Trials())
    if listener is not None:
        listener.on_passes(passes)
    if cannot_confirm:
        return Measured(passes, Trials(failure_reason=cannot_confirm))
    trials = run_trials(
        _trial_settings(job),
        plan=_trial_plan(job, passes),
        trainable=trainable,
        batches=batches,
        evaluate=evaluate_trial,
        context=context,
        initial=initial,
        listener=listener,
        heartbeat=heartbeat,
    )
    return Measured(passes, trials)


def _pass_runner(
    job: Config,
    trainable: Trainable,
    batches: RankBatches,
    context: RankContext,
    listener: Listener | None,
    heartbeat: Callable[[int], None],
) -> RunPass:
    """Make the function that runs one pass of the sweep. Every rank must call what this returns."""
    checkpoints = context.checkpoints
    started = time.perf_counter()
    if checkpoints is not None:
        started -= max((step.elapsed_s for step in checkpoints.known_steps("sweep/")), default=0.0)
    on_step = _on_step(job, listener, heartbeat)
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


def _on_step(job: Config, listener: Listener | None, heartbeat: Callable[[int], None]) -> Callable[[Step], None]:
    """Make the callback of a step: after the first one, collectives get the user's timeout; then report the step."""
    is_first = True

    def on_step(step: Step) -> None:
        nonlocal is_first
        if is_first:
            collectives.set_timeout(job.run.timeout_s)
            is_first = False
        if listener is not None:
            listener.on_step(step)
        heartbeat(step.step)

    return on_step


def _trial_settings(job: Config) -> TrialSettings:
    return TrialSettings(
        training=training(job),
        beta=job.sweep.smoothing,
        seed=job.sweep.seed,
        sync_every_step=job.sweep.sync_every_step,
    )


def _trial_plan(job: Config, passes: Passes) -> Plan:
    """Plan of the confirmation runs, given the sweep's suggestion and the noise of its curve."""
    curve = curve_from_steps(passes.curve_steps, beta=job.sweep.smoothing)

    def plan(trials: Sequence[Trial], initial_loss: float) -> PlannedTrial | None:
        return next_trial(
            passes.suggestion,
            trials,
            budget_steps=budget_steps(job),
            horizon=job.train.num_steps,
            initial_loss=initial_loss,
            noise=curve.noise if curve is not None else 0.0,
        )

    return plan
