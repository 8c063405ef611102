"""Oracle trainings, sweeps and confirmation runs of the regret benchmark's jobs; each is measured once and kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from regret_peers import PEER_RANGES

from lrrunner.core.confirmation import confirmed
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.lr_schedules import exponential_lr, training_lrs
from lrrunner.core.range_extension import MAX_PASSES, curve_pass, extension
from lrrunner.core.smoothing import Ema
from lrrunner.core.stop_rules import stop_rule
from lrrunner.core.suggestion_rules import DEFAULT_TRAINING, suggest
from lrrunner.core.trial_planning import next_trial
from lrrunner.records import Step, Stop, StopReason, Suggestion, Training, Trial

ORACLE_SEEDS = (0, 1)
SWEEP_SEEDS = (0, 1, 2)
OTHER_SEEDS = (0, 1)
"""Sweep seeds of other lengths than 100 steps, and of confirmation runs."""
NUM_STEPS = 100
SWEEP_LENGTHS = (30, 50, NUM_STEPS, 200, 400)
BUDGETS = [(num_steps, 5) for num_steps in SWEEP_LENGTHS] + [(NUM_STEPS, 20)]
"""Confirmation is measured for these lengths of a sweep, and these budgets in sweeps."""
SCHEDULES = ("constant", "cosine")
BETA = 0.9
START_LR, END_LR = 1e-7, 10.0

CLASSES = {
    "linear_sgd": OptimizerClass.SGD,
    "mlp_momentum_b16": OptimizerClass.MOMENTUM,
    "mlp_adamw": OptimizerClass.ADAPTIVE,
    "mlp_sign_sgd": OptimizerClass.SIGN,
    "noisy_mlp_sgd_b4": OptimizerClass.SGD,
    "autoencoder_adam_b128": OptimizerClass.ADAPTIVE,
    "diabetes_full_batch_sgd": OptimizerClass.SGD,
    "cancer_adagrad": OptimizerClass.ADAGRAD,
    "photograph_adam_b512": OptimizerClass.ADAPTIVE,
    "characters_sgd": OptimizerClass.SGD,
    "lstm_rmsprop": OptimizerClass.ADAPTIVE,
    "cnn_bn_momentum": OptimizerClass.MOMENTUM,
    "shifted_cnn_wd_b256": OptimizerClass.MOMENTUM,
    "vit_adamw_wd": OptimizerClass.ADAPTIVE,
    "denoiser_adam": OptimizerClass.ADAPTIVE,
    "gpt_adamw": OptimizerClass.ADAPTIVE,
    "photographs_cnn_nesterov": OptimizerClass.MOMENTUM,
    "mnist_lenet_adam": OptimizerClass.ADAPTIVE,
    "shakespeare_gpt": OptimizerClass.ADAPTIVE,
}
"""What lrrunner takes each job's optimizer for."""

Kept = dict[str, Any]
"""What is known of a job: num_steps, lrs, start, losses (by schedule, LR, seed), sweeps and trials (by name)."""


class MissingError(LookupError):
    """Something has not been measured, and the job is not at hand."""


class Sweep(NamedTuple):
    """LRs of a sweep, and its seed."""

    start_lr: float
    end_lr: float
    num_steps: int
    seed: int

    @property
    def lrs(self) -> Any:
        """Its LRs, shape (num_steps,)."""
        return exponential_lr(start_lr=self.start_lr, end_lr=self.end_lr, num_steps=self.num_steps)


class RangeTest(NamedTuple):
    """What lrrunner would have recorded and said by default."""

    steps: list[Step]
    stop: Stop
    suggestion: Suggestion


class Known:
    """What is known of one job; what is missing is measured when the job itself is at hand."""

    def __init__(self, name: str, kept: Kept, job: Any = None) -> None:
        self.name, self.kept = name, kept
        self._job = job

    def sweep(self, sweep: Sweep) -> tuple[Any, Any, Any]:
        """LRs, losses and gradient norms of a sweep without a stop rule, up to the first non-finite loss."""
        name = f"{sweep.start_lr:g} {sweep.end_lr:g} {sweep.num_steps} {sweep.seed}"
        sweeps = self.kept.setdefault("sweeps", {})
        if name not in sweeps:
            sweeps[name] = swept(self._measured_job(), sweep)
        losses, norms = (np.array(sweeps[name][key], dtype=float) for key in ("loss", "grad_norm"))
        return sweep.lrs[: len(losses)], losses, norms

    def trial(self, schedule: str, lr: float, num_steps: int, seed: int) -> float:
        """Validation loss of a confirmation run, on an order of the data that neither oracle nor sweep had."""
        name = f"{schedule} {lr:.6g} {num_steps} {seed}"
        trials = self.kept.setdefault("trials", {})
        if name not in trials:
            trials[name] = trained(self._measured_job(), lr, schedule, 1000 + seed, num_steps)
        return float(trials[name])

    def _measured_job(self) -> Any:
        if self._job is None:
            raise MissingError
        return self._job


def range_test(
    known: Known, num_steps: int, seed: int, method: str = "auto", training: Training = DEFAULT_TRAINING
) -> RangeTest:
    """The sweep of a job as lrrunner runs it: stopped by its rule, its range extended where that is due."""
    low, high = START_LR, END_LR
    passes = []
    for _ in range(MAX_PASSES):
        steps, stop = _stopped(known, Sweep(low, high, num_steps, seed))
        suggestion = suggest(steps, [stop], method=method, beta=BETA, optimizer=CLASSES[known.name], training=training)
        passes.append(RangeTest(steps, stop, suggestion))
        wider = extension(steps, [stop], suggestion, start_lr=low, end_lr=high, linear=False, beta=BETA)
        if wider is None:
            break
        low, high = wider.start_lr, wider.end_lr
    return passes[curve_pass([test.suggestion for test in passes], interrupted=False)]


def confirmed_suggestion(known: Known, test: RangeTest, schedule: str, budget_steps: int, seed: int) -> Suggestion:
    """What lrrunner makes of a sweep with confirmation runs on the schedule and length of the training."""
    sweep, curve = test.suggestion, curve_from_steps(test.steps, beta=BETA)
    if sweep.lr is None or curve is None:
        return sweep
    horizon, initial_loss = known.kept["num_steps"], known.kept["start"]
    trials: list[Trial] = []
    plan = partial(
        next_trial,
        sweep,
        budget_steps=budget_steps,
        training_steps=horizon,
        initial_loss=initial_loss,
        noise=curve.noise,
    )
    while planned := plan(trials):
        loss = known.trial(schedule, planned.lr, planned.num_steps, seed)
        number, steps = len(trials), planned.num_steps
        trials.append(Trial(trial=number, lr=planned.lr, num_steps=steps, num_steps_run=steps, loss=loss))
    return confirmed(
        sweep,
        trials,
        training=Training(num_steps=horizon),
        monitored="validation loss",
        initial_loss=initial_loss,
    ).suggestion


def measure(data_root: Path | None, work: tuple[str, Kept]) -> tuple[str, Kept]:
    """Everything that the reports want to know of one job."""
    import torch
    from regret_jobs import jobs

    torch.set_num_threads(1)
    name, kept = work
    job = next(job for job in jobs(data_root) if job.name == name)
    if "losses" not in kept:
        kept |= oracle(job)
    known = Known(name, kept, job)
    for seed in SWEEP_SEEDS:
        for start_lr, end_lr in [(START_LR, END_LR), *PEER_RANGES.values()]:
            known.sweep(Sweep(start_lr, end_lr, NUM_STEPS, seed))
        range_test(known, NUM_STEPS, seed)
    for seed in OTHER_SEEDS:
        for num_steps, times in BUDGETS:
            sweep = range_test(known, num_steps, seed)
            for schedule in SCHEDULES:
                confirmed_suggestion(known, sweep, schedule, times * num_steps, seed)
    return name, kept


def oracle(job: Any) -> Kept:
    """Validation losses of a job under every LR of its grid, (LR, seed) by schedule."""
    low, high = (round(3 * math.log10(lr)) for lr in job.lrs)
    grid = [10 ** (i / 3) for i in range(low, high + 1)]
    start = float(np.mean([trained(job, grid[0], "constant", seed, 0) for seed in ORACLE_SEEDS]))
    return {
        "num_steps": job.num_steps,
        "lrs": [rounded(lr) for lr in grid],
        "start": rounded(start),
        "losses": {
            schedule: [[trained(job, lr, schedule, seed, job.num_steps) for seed in ORACLE_SEEDS] for lr in grid]
            for schedule in SCHEDULES
        },
    }


def training_of(num_steps: int, schedule: str) -> Training:
    """How the oracle trains: a tenth of the steps of a cosine schedule is warm-up."""
    warmup_steps = max(1, num_steps // 10) if schedule == "cosine" else 0
    return Training(num_steps=num_steps, schedule=schedule, warmup_steps=warmup_steps)


def trained(job: Any, lr: float, schedule: str, seed: int, num_steps: int) -> float:
    """Validation loss after a training; infinite when it diverged."""
    import torch

    torch.manual_seed(seed)
    model = job.model()
    optimizer = job.optimizer(model.parameters(), lr)
    batches = batches_of(job, seed)
    told = training_of(num_steps, schedule)
    lrs = training_lrs(lr, schedule=schedule, num_steps=num_steps, warmup_steps=told.warmup_steps)
    for step_lr in lrs.tolist():
        for group in optimizer.param_groups:
            group["lr"] = step_lr
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = job.loss(model(inputs), targets)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        inputs, targets = job.val()
        loss = job.loss(model(inputs), targets).item()
        return rounded(loss) if math.isfinite(loss) else math.inf


def batches_of(job: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    """Shuffled batches, cut by the planner of the package."""
    from lrrunner.core.batch_plan import BatchPlan, global_batches

    inputs, targets = job.train()
    plan = BatchPlan(dataset_size=len(inputs), global_batch_size=job.batch_size)
    for batch in global_batches(plan, seed=seed, repeat=0):
        indices = batch.reshape(-1)
        yield inputs[indices], targets[indices]


def swept(job: Any, sweep: Sweep) -> dict[str, list[float]]:
    """One sweep to the end of its LR range, so that every rule's own stop can be applied to it afterwards."""
    import torch

    from lrrunner.training.collectives import SerialCollective
    from lrrunner.training.engine import RankContext, run_sweep
    from lrrunner.training.sweep_run import SweepPlan
    from lrrunner.training.trainable import Trainable

    class Never:
        def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
            return False

    torch.manual_seed(sweep.seed)
    model = job.model()
    steps = run_sweep(
        Trainable(
            model=model,
            optimizer=job.optimizer(model.parameters(), 1e-3),
            objective=lambda model, batch: job.loss(model(batch[0]), batch[1]),
            micro_batch_size=job.batch_size,
        ),
        SweepPlan(lrs=sweep.lrs.tolist(), beta=BETA, new_stop_rule=Never, seed=sweep.seed),
        lambda repeat, first_step=0: batches_of(job, sweep.seed),
        context=RankContext(collective=SerialCollective()),
    ).steps
    return {
        "loss": [rounded(step.loss) for step in steps],
        "grad_norm": [rounded(step.grad_norm, digits=4) for step in steps],
    }


def rounded(value: float, digits: int = 6) -> float:
    """What a measurement is worth, in a third of the space."""
    return float(f"{value:.{digits}g}")


def _stopped(known: Known, sweep: Sweep) -> tuple[list[Step], Stop]:
    """The records that lrrunner's own stop rule leaves of a full sweep."""
    average, rule = Ema(BETA), stop_rule("range", factor=2.0, num_steps=sweep.num_steps)
    steps: list[Step] = []
    for i, (lr, loss, norm) in enumerate(zip(*(column.tolist() for column in known.sweep(sweep)), strict=True)):
        if not math.isfinite(loss):
            steps.append(Step(step=i, lr=lr, loss=loss))
            return steps, Stop(reason=StopReason.NON_FINITE, step=i)
        steps.append(Step(step=i, lr=lr, loss=loss, smoothed_loss=average.update(loss), grad_norm=norm))
        if rule.update(loss, average.value):
            return steps, Stop(reason=StopReason.DIVERGED, step=i)
    return steps, Stop(reason=StopReason.END_OF_SCHEDULE, step=len(steps) - 1)
