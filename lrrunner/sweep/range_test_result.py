"""The result of a range test, from what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lrrunner.config.schema import Config, budget_steps
from lrrunner.core.confirmation import Confirmed, confirmed, lowest_divergence, not_confirmed
from lrrunner.core.noise_scale import noise_scale
from lrrunner.records import Confirmation, NoiseScale, RangeTestResult, Step, Stop, Suggestion, TrialOutcome
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials


def range_test_result(
    job: Config,
    passes: Passes,
    trials: Trials,
    *,
    steps: Sequence[Step],
    world_size: int,
    group_ratios: tuple[float, ...],
    lr_remark: str,
) -> RangeTestResult:
    """Combine the sweep with its confirmation runs.

    Args:
        job: The configuration.
        passes: The passes of the sweep.
        trials: Its confirmation runs.
        steps: Records of all passes, as they are on disk.
        world_size: Number of ranks.
        group_ratios: LR of each parameter group as a multiple of the recorded one.
        lr_remark: What to know about the optimizer's LR; empty for the usual one.
    """
    if passes.interruption is not None:
        passes = _without_verdict(passes, passes.interruption)
    suggestion, confirmation = _confirmed(job, passes, trials)
    if lr_remark:
        suggestion = dataclasses.replace(suggestion, reason=f"{suggestion.reason}; {lr_remark}")
    return RangeTestResult(
        steps=tuple(steps),
        stops=passes.stops,
        suggestion=suggestion,
        world_size=world_size,
        global_batch_size=job.data.global_batch_size,
        passes=passes.passes,
        curve_pass=passes.curve_pass,
        trials=trials.trials,
        confirmation=confirmation,
        group_ratios=group_ratios,
        noise_scale=_noise_scale(job, passes),
        training=passes.training,
    )


def describe_interruption(passes: Passes, trials: Trials) -> str | None:
    """Where a signal ended the run, as text; None if none did."""
    if passes.interruption is not None:
        return str(passes.interruption)
    if trials.interruption is not None:
        where = f"trial {trials.trials[-1].trial}" if trials.trials else "the first evaluation"
        return f"{trials.interruption} of {where}"
    return None


def _without_verdict(passes: Passes, interruption: Stop) -> Passes:
    """The passes of an interrupted sweep: what its curve has not shown yet, it neither supports nor excludes."""
    reason = f"{interruption}; resume the run for a result"
    *complete, last = passes.passes
    none = Suggestion(lr=None, method=last.suggestion.method, verdict=None, reason=reason)
    interrupted = dataclasses.replace(last, suggestion=none)
    return passes._replace(passes=(*complete, interrupted), curve_pass=len(complete))


def _confirmed(job: Config, passes: Passes, trials: Trials) -> tuple[Suggestion, Confirmation | None]:
    """The suggestion of sweep and confirmation runs together, and how they were compared."""
    sweep = passes.suggestion
    if trials.interruption is not None:
        sweep = dataclasses.replace(sweep, reason=f"{sweep.reason}; {_interruption_reason(trials)}")
    if not trials.trials and not trials.failure_reason:
        return sweep, None
    monitored = "training loss" if job.data.val is None else "validation loss"
    ended = [trial for trial in trials.trials if trial.outcome != TrialOutcome.INTERRUPTED]
    start = sweep if sweep.lr is not None or passes.trial_start is None else passes.trial_start
    if trials.failure_reason:
        found = not_confirmed(start, trials.failure_reason, too_high=lowest_divergence(ended))
    elif not ended:
        found = Confirmed(sweep)
    else:
        found = confirmed(start, ended, training=passes.training, monitored=monitored, initial_loss=trials.initial_loss)
    if found.failure_reason and sweep.lr is None:  # where trials began is no suggestion
        reason = f"{sweep.reason}; not confirmed: {found.failure_reason}"
        found = found._replace(suggestion=dataclasses.replace(sweep, reason=reason))
    confirmation = Confirmation(
        schedule=job.train.schedule.value,
        monitored=monitored,
        horizon=passes.training.num_steps,
        budget_steps=budget_steps(job),
        sweep=sweep,
        measured_steps=found.measured_steps,
        failure_reason=found.failure_reason,
    )
    return found.suggestion, confirmation


def _interruption_reason(trials: Trials) -> str:
    number = sum(trial.outcome != TrialOutcome.INTERRUPTED for trial in trials.trials)
    return f"confirmation was interrupted after {number} {'run' if number == 1 else 'runs'}"


def _noise_scale(job: Config, passes: Passes) -> NoiseScale | None:
    if not job.sweep.noise_scale:
        return None
    return noise_scale(
        passes.curve_steps,
        passes.suggestion,
        beta=job.sweep.smoothing,
        global_batch_size=job.data.global_batch_size,
    )
