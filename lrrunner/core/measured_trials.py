"""What confirmation runs (trials) have measured, beside what is suggested."""

from __future__ import annotations

import math

from lrrunner.core.confirmation import best_trial
from lrrunner.records import RangeTestResult, Trial, TrialOutcome


def best_measured_trial(test: RangeTestResult) -> Trial | None:
    """The confirmation run with the lowest loss, of the length that the suggestion was read from.

    None where the runs have confirmed nothing. One that survived at an LR at which another diverged was lucky, and does
    not count.
    """
    length = None if test.confirmation is None else test.confirmation.measured_steps
    too_high = min((trial.lr for trial in test.trials if trial.outcome == TrialOutcome.DIVERGED), default=math.inf)
    compared = [trial for trial in test.trials if trial.num_steps == length and trial.lr < too_high]
    finished = [trial for trial in compared if trial.outcome == TrialOutcome.FINISHED]
    return best_trial(finished) if finished else None


def is_outside_trials(test: RangeTestResult) -> bool:
    """Whether the suggested LR was not measured: it lies below or above the LRs of all confirmation runs."""
    lr, lrs = test.suggestion.lr, [trial.lr for trial in test.trials]
    return lr is not None and bool(lrs) and not min(lrs) <= lr <= max(lrs)
