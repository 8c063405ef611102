"""What a sweep and its confirmation runs (trials) support together: functions of all trials."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.trial_estimate import TrialEstimate, TrialLosses, interval_error, trial_estimate
from lrrunner.records import Suggestion, Training, Trial, TrialOutcome, Verdict


class Confirmed(NamedTuple):
    """What a sweep and its confirmation runs support together.

    Attributes:
        suggestion: What to train with.
        measured_steps: Length of the runs that it was read from; None if it is the sweep's own.
        failure_reason: Why the runs confirmed nothing; empty if they did.
    """

    suggestion: Suggestion
    measured_steps: int | None = None
    failure_reason: str = ""


class Difference(NamedTuple):
    """How far a trial ended above the best one.

    Attributes:
        value: Difference of their losses.
        error: Its standard error: both are evaluated on the same batches, so it is that of the mean of the batches'
            differences; NaN where a trial has no losses of batches.
    """

    value: float
    error: float


def confirmed(
    sweep: Suggestion,
    trials: Sequence[Trial],
    *,
    training: Training,
    monitored: str,
    initial_loss: float = math.nan,
) -> Confirmed:
    """The sweep's suggestion, moved and narrowed by its confirmation runs (:mod:`lrrunner.core.trial_estimate`).

    Where a run diverged, another that survived at this LR or above was lucky: it does not count, and no LR from
    there on is suggested.

    Args:
        sweep: What the sweep suggests; it must have an LR.
        trials: All confirmation runs.
        training: The real training.
        monitored: Name of the trials' loss, "validation loss" for example.
        initial_loss: The same loss before any training; NaN when it is not known.

    Returns:
        The sweep's own suggestion with the failure reason if nothing was compared or gained; without an LR if every run
        diverged; else with another LR, interval, expected regret and reason.
    """
    if not trials:
        return Confirmed(sweep)
    too_high = lowest_divergence(trials)
    finished = sorted((trial for trial in trials if trial.lr < too_high), key=lambda trial: trial.lr)
    if not finished:
        return Confirmed(_without_lr(sweep, _all_diverged(trials, too_high)))
    if len(trials) == 1:
        return not_confirmed(sweep, "a single run compares nothing; raise confirm.budget_steps", too_high=too_high)
    best = best_trial(finished)
    if best.loss >= initial_loss:
        why = f"no run brought the {monitored} below its start, {initial_loss:.4g}"
        return not_confirmed(sweep, why, too_high=too_high)
    found = _estimate(sweep, finished, too_high, training.num_steps, initial_loss)
    verdict, reasons = sweep.verdict, [sweep.reason]
    reasons.append(_measured(trials, best, monitored))
    if best is finished[-1] and math.isinf(too_high):
        reasons.append("nothing higher was tried (confirm.budget_steps)")
    elif best is finished[0]:
        reasons.append("nothing lower was tried (confirm.budget_steps)")
    else:
        verdict, reasons = Verdict.OK, reasons if sweep.verdict == Verdict.OK else reasons[1:]
    reasons += _extrapolated(best.num_steps, training)
    suggestion = dataclasses.replace(
        sweep,
        lr=10**found.log_lr,
        interval=(10**found.low, 10**found.high),
        expected_regret=found.expected_regret,
        verdict=verdict,
        reason="; ".join(reasons),
    )
    return Confirmed(suggestion, measured_steps=best.num_steps)


def not_confirmed(sweep: Suggestion, why: str, *, too_high: float = math.inf) -> Confirmed:
    """The sweep's own suggestion, unconfirmed.

    Args:
        sweep: What the sweep suggests; it must have an LR.
        why: The failure reason.
        too_high: The lowest LR that diverged; the sweep's own LR is dropped from there on, and the interval ends there.
    """
    if sweep.lr is None:
        raise ValueError("the sweep must have suggested an LR")
    if sweep.lr >= too_high:
        return Confirmed(_without_lr(sweep, f"a confirmation run diverged at {too_high:.1e}, and below it {why}"))
    interval = None if sweep.interval is None else (sweep.interval[0], min(sweep.interval[1], too_high))
    reason = f"{sweep.reason}; not confirmed: {why}"
    return Confirmed(dataclasses.replace(sweep, interval=interval, reason=reason), failure_reason=why)


def lowest_divergence(trials: Sequence[Trial]) -> float:
    """The lowest LR at which a trial diverged; infinite where none did."""
    return min((trial.lr for trial in trials if not math.isfinite(trial.loss)), default=math.inf)


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest loss; of equals the one with the lower LR."""
    return min(trials, key=lambda trial: (trial.loss, trial.lr))


def differences(trials: Sequence[Trial]) -> list[Difference | None]:
    """How far each trial ended above the best one; None for one that has not finished."""
    finished = [trial for trial in trials if trial.outcome == TrialOutcome.FINISHED]
    best = best_trial(finished) if finished else None
    return [None if best is None or trial not in finished else _difference(trial, best) for trial in trials]


def _difference(trial: Trial, best: Trial) -> Difference:
    if len(trial.batch_losses) != len(best.batch_losses) or len(best.batch_losses) < 2:
        return Difference(trial.loss - best.loss, math.nan)
    by_batch = np.subtract(trial.batch_losses, best.batch_losses)
    return Difference(trial.loss - best.loss, float(by_batch.std(ddof=1) / math.sqrt(len(by_batch))))


def _estimate(
    sweep: Suggestion,
    finished: Sequence[Trial],
    too_high: float,
    training_steps: int | None,
    initial_loss: float,
) -> TrialEstimate:
    """The best log LR after the trials below the lowest divergence, which counts as one more."""
    if sweep.lr is None or sweep.interval is None:
        raise ValueError("the sweep must have suggested an LR")
    errors = [0.0 if found is None or math.isnan(found.error) else found.error for found in differences(finished)]
    lrs, losses = [trial.lr for trial in finished], [trial.loss for trial in finished]
    num_steps = [trial.num_steps for trial in finished]
    if math.isfinite(too_high):
        lrs, losses, num_steps, errors = (
            [*lrs, too_high],
            [*losses, math.inf],
            [*num_steps, num_steps[-1]],
            [*errors, 0.0],
        )
    log_lrs = [math.log10(lr) for lr in lrs]
    return trial_estimate(
        TrialLosses(log_lrs, num_steps, losses, errors, initial_loss),
        sweep_log_lr=math.log10(sweep.lr),
        sweep_error=interval_error(*sweep.interval),
        training_steps=training_steps,
    )


def _without_lr(sweep: Suggestion, reason: str) -> Suggestion:
    return dataclasses.replace(
        sweep, lr=None, interval=None, expected_regret=None, verdict=Verdict.NO_DESCENT, reason=reason
    )


def _all_diverged(trials: Sequence[Trial], too_high: float) -> str:
    num_diverged = sum(not math.isfinite(trial.loss) for trial in trials)
    return (
        f"{num_diverged} of {len(trials)} confirmation runs diverged, the lowest at {too_high:.1e}, and none below "
        "that finished; warm up, clip gradients (train.max_grad_norm), or raise confirm.budget_steps"
    )


def _measured(trials: Sequence[Trial], best: Trial, monitored: str) -> str:
    return (
        f"{len(trials)} runs compared on the {monitored}, which {best.num_steps} steps at {best.lr:.1e} bring to "
        f"{best.loss:.4g}"
    )


def _extrapolated(num_steps: int, training: Training) -> list[str]:
    """What the measurement does not cover."""
    found = []
    if training.num_steps is not None and training.num_steps > num_steps:
        found.append(f"extrapolated from {num_steps} to {training.num_steps} steps")
    if training.num_steps is None or training.is_assumed:
        found.append("longer trainings mostly want less (train.num_steps)")
    return found
