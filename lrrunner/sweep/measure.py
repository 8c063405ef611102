"""What one rank measures for a job: the passes of the sweep, then the confirmation runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lrrunner.config.schema import Config, Monitor, budget_steps
from lrrunner.core.batch_plan import EVALUATION, evaluation_batches
from lrrunner.core.confirmation import PlannedTrial, next_trial
from lrrunner.core.curve import curve_from_steps
from lrrunner.records import Step, Trial
from lrrunner.sweep.auto_range import Passes, run_passes, sweep_plan
from lrrunner.sweep.confirmation_runs import Plan, Trials, TrialSettings, evaluate_initial, num_evaluated, run_trials
from lrrunner.training import collectives
from lrrunner.training.checkpoints import Checkpoints
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.evaluation import Evaluation, evaluate, undisturbed
from lrrunner.training.gradient_probe import GradientProbe
from lrrunner.training.snapshot import seed_rngs
from lrrunner.training.trainable import Trainable
from lrrunner.worker.build import Components, batch_plan, batches_from, evaluation_loader
from lrrunner.worker.run_reporter import Reporter

FIRST_EVALUATION_TIMEOUT_S = 3600.0
"""Limit on collectives during the first evaluation, which may compile the model anew and read files for the first
time."""


class Measured(NamedTuple):
    """Everything that was measured."""

    passes: Passes
    trials: Trials

    @property
    def interrupted(self) -> bool:
        """Whether a rank's wish to stop ended it."""
        return self.passes.interruption is not None or self.trials.interruption is not None


def measure(
    job: Config,
    parts: Components,
    trainable: Trainable,
    *,
    collective: Collective,
    reporter: Reporter | None,
    stop_requested: Callable[[], bool],
    tell: Callable[[int], None] = lambda step: None,
    checkpoints: Checkpoints | None = None,
) -> Measured:
    """Sweep, and confirm where that is asked for. Every rank must call this.

    Args:
        job: Typed job.
        parts: What it is made of.
        trainable: The same, wrapped for the world.
        collective: The world this rank belongs to.
        reporter: Rank 0's.
        stop_requested: This rank's wish to stop.
        tell: Called with each step's number, as a sign of life.
        checkpoints: Where the state is saved, and what an earlier life of the run has saved.
    """
    plan = batch_plan(job, num_samples=parts.num_samples, world_size=collective.world_size)
    started = time.perf_counter()
    if checkpoints is not None:
        started -= max((step.elapsed_s for step in checkpoints.known_steps("sweep/")), default=0.0)

    def batches(repeat: int, first_step: int = 0) -> Iterator[Any]:
        return batches_from(first_step, parts, job, plan, repeat=repeat, rank=collective.rank)

    on_step = _on_step(job, reporter, tell)
    probe = GradientProbe(trainable.parameters) if job.sweep.noise_scale else None

    def climb(number: int, start_lr: float, end_lr: float) -> SweepResult:
        ladder = sweep_plan(job.sweep, number, start_lr=start_lr, end_lr=end_lr)
        if reporter is not None:
            reporter.begin_pass(number)
            for step in checkpoints.known_steps(ladder.prefix) if checkpoints is not None else ():
                reporter.on_step(step)
        return run_sweep(
            trainable,
            ladder,
            batches,
            collective=collective,
            on_step=on_step,
            stop_requested=stop_requested,
            started=started,
            checkpoints=checkpoints,
            evaluate=monitor,
            probe=probe,
        )

    monitor = _monitor(job, parts, trainable, collective) if job.sweep.monitor == Monitor.val else None
    evaluate_now = _evaluator(job, parts, trainable, collective, stop_requested) if job.confirm.enabled else None
    # what is wrong with data.val shows before the sweep, not behind it
    initial = evaluate_initial(trainable, evaluate_now) if evaluate_now is not None else None
    passes = run_passes(
        climb,
        job.sweep,
        method=job.suggestion.method,
        collective=collective,
        on_extension=reporter.on_extension if reporter is not None else lambda extension: None,
    )
    if evaluate_now is None or passes.interruption is not None or passes.suggestion.lr is None:
        return Measured(passes, Trials())
    if reporter is not None:
        reporter.on_passes(passes)
    trials = run_trials(
        _trial_settings(job),
        plan=_plan(job, passes),
        trainable=trainable,
        batches=batches,
        evaluate=evaluate_now,
        collective=collective,
        initial=initial,
        listener=reporter,
        stop_requested=stop_requested,
        checkpoints=checkpoints,
    )
    return Measured(passes, trials)


def _plan(job: Config, passes: Passes) -> Plan:
    """Which confirmation run comes next, behind what the sweep suggests and the noise of its curve."""
    curve = curve_from_steps(passes.curve_steps, beta=job.sweep.smoothing)

    def plan(trials: Sequence[Trial], initial_loss: float) -> PlannedTrial | None:
        return next_trial(
            passes.suggestion,
            trials,
            budget_steps=budget_steps(job),
            horizon=job.confirm.horizon,
            initial_loss=initial_loss,
            noise=curve.noise if curve is not None else 0.0,
        )

    return plan


def _on_step(job: Config, reporter: Reporter | None, tell: Callable[[int], None]) -> Callable[[Step], None]:
    """Behind the first step of this process, collectives get the user's time limit; rank 0 records."""
    is_first = True

    def on_step(step: Step) -> None:
        nonlocal is_first
        if is_first:
            collectives.set_timeout(job.run.timeout_s)
            is_first = False
        if reporter is not None:
            reporter.on_step(step)
        tell(step.step)

    return on_step


def _trial_settings(job: Config) -> TrialSettings:
    return TrialSettings(
        schedule=job.confirm.schedule.value,
        beta=job.sweep.smoothing,
        seed=job.sweep.seed,
        sync_every_step=job.sweep.sync_every_step,
    )


def _monitor(job: Config, parts: Components, trainable: Trainable, collective: Collective) -> Callable[[], Evaluation]:
    """Evaluates always the same few whole batches, read once; leaves no trace. Every rank must call what this returns.

    A wish to stop waits for its end, so that the records of a resumed sweep are those of an undisturbed one.
    """
    dataset: Any = parts.validation
    batch = job.data.global_batch_size
    share = evaluation_batches(
        dataset_size=len(dataset),
        num_samples=min(job.sweep.val_batches, len(dataset) // batch) * batch,
        batch_size=trainable.micro_batch_size,
        world_size=collective.world_size,
        rank=collective.rank,
        seed=job.sweep.seed,
    )
    with undisturbed(trainable):
        seed_rngs(job.sweep.seed, EVALUATION, collective.rank)
        loader = evaluation_loader(parts, job, [batch for batch, _ in share])
        batches = list(zip(loader, [weight for _, weight in share], strict=True))

    def evaluate_now() -> Evaluation:
        with undisturbed(trainable):
            seed_rngs(job.sweep.seed, EVALUATION, collective.rank)
            return evaluate(trainable, batches, collective=collective, batch_statistics=True)

    return evaluate_now


def _evaluator(
    job: Config, parts: Components, trainable: Trainable, collective: Collective, stop_requested: Callable[[], bool]
) -> Callable[[], Evaluation]:
    """Evaluates always the same samples, with the same random numbers. Every rank must call what this returns."""
    dataset: Any = parts.dataset if parts.validation is None else parts.validation
    share = evaluation_batches(
        dataset_size=len(dataset),
        num_samples=num_evaluated(job.data.global_batch_size, accumulation_steps=job.train.accumulation_steps),
        batch_size=trainable.micro_batch_size,
        world_size=collective.world_size,
        rank=collective.rank,
        seed=job.sweep.seed,
    )
    indices, weights = [batch for batch, _ in share], [weight for _, weight in share]
    is_first = True

    def evaluate_now() -> Evaluation:
        nonlocal is_first
        collectives.set_timeout(max(FIRST_EVALUATION_TIMEOUT_S, job.run.timeout_s) if is_first else job.run.timeout_s)
        is_first = False
        seed_rngs(job.sweep.seed, EVALUATION, collective.rank)
        batches = zip(evaluation_loader(parts, job, indices), weights, strict=True)
        evaluation = evaluate(trainable, batches, collective=collective, stop_requested=stop_requested)
        collectives.set_timeout(job.run.timeout_s)
        return evaluation

    return evaluate_now
