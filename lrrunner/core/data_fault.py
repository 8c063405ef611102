"""Whether a sweep ended for a reason that no learning rate explains: bad values in the data or the model, no items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrrunner.core.curve import noise_std
from lrrunner.records import Step, Stop, StopReason, Suggestion, Verdict

NUM_EXPLAINED_STEPS = 3
"""A value that is not finite this early is reported as such, and a lower range is tried: the first LR may explode."""

FLAT_DEVIATIONS = 5.0
"""Losses this many standard deviations of their noise around their median have not moved."""


def data_fault(steps: Sequence[Step], stops: Sequence[Stop], *, earlier_stops: Sequence[Stop] = ()) -> Stop | None:
    """The stop of a pass that the learning rate does not explain, or None.

    A step without items on any rank is one. So is a value that is not finite while the loss has not moved yet, if only
    some of the ranks saw it (all of them hold the same weights), or if it came at the same step of an earlier pass,
    where learning rates were others and the batches the same.

    Args:
        steps: Records of the pass.
        stops: Where each of its repeats ended.
        earlier_stops: Those of the passes before it.
    """
    for stop in stops:
        if stop.reason == StopReason.NO_ITEMS:
            return stop
        if stop.reason != StopReason.NON_FINITE or stop.step < NUM_EXPLAINED_STEPS:
            continue
        is_repeated = any(
            (other.reason, other.step, other.repeat) == (stop.reason, stop.step, stop.repeat) for other in earlier_stops
        )
        if is_repeated or (stop.is_partial and _is_flat_before(stop, steps)):
            return stop
    return None


def suspected_fault(steps: Sequence[Step], stops: Sequence[Stop]) -> Stop | None:
    """The stop of a value that is not finite while the loss has not moved yet, on all ranks; None without one.

    Either the data or the model is at fault, or a learning rate that explodes within one step. A pass at lower learning
    rates tells: :func:`data_fault` looks for the same step there.
    """
    return next(
        (
            stop
            for stop in stops
            if stop.reason == StopReason.NON_FINITE
            and stop.step >= NUM_EXPLAINED_STEPS
            and not stop.is_partial
            and _is_flat_before(stop, steps)
        ),
        None,
    )


def fault_suggestion(stop: Stop, steps: Sequence[Step], *, method: str, location: str = "") -> Suggestion:
    """No suggestion, with what is known about the fault.

    Args:
        stop: From :func:`data_fault`.
        steps: Records of the pass.
        method: Name of the suggestion rule that was asked for.
        location: Which samples to look at; empty where that is not known.
    """
    lr = next((step.lr for step in reversed(steps) if (step.step, step.repeat) == (stop.step, stop.repeat)), None)
    at = f"at step {stop.step}" + ("" if lr is None else f" (lr {lr:.1e})")
    if stop.reason == StopReason.NO_ITEMS:
        verdict = Verdict.TOO_FEW_POINTS
        reason = (
            f"no rank had any items to learn from in several steps in a row, the last one {at}; check the labels, and "
            "that objective (loss_fn) returns its loss"
        )
    else:
        verdict = Verdict.NON_FINITE_AT_START
        flags = {
            "the gradient": stop.in_gradient,
            "a buffer of the model": stop.in_buffer,
            "the validation loss": stop.in_evaluation,
        }
        what = next((name for name, is_bad in flags.items() if is_bad), "the loss")
        ranks = f" on rank {', '.join(map(str, stop.ranks))}" if stop.ranks else ""
        reason = (
            f"{what} was not finite{ranks} {at}, where the learning rate does not explain it; check the data, the "
            "model and the loss"
        )
    return Suggestion(lr=None, method=method, verdict=verdict, reason=f"{reason}{location}")


def _is_flat_before(stop: Stop, steps: Sequence[Step]) -> bool:
    """Whether the losses of the repeat, up to the stop, stay within their noise."""
    losses = np.array(
        [
            step.loss
            for step in steps
            if step.repeat == stop.repeat and step.step < stop.step and not step.skipped and step.is_finite
        ]
    )
    if not len(losses):
        return True
    level = float(np.median(losses))
    allowed = max(FLAT_DEVIATIONS * noise_std(losses), 1e-6 * abs(level))
    return bool(np.abs(losses - level).max() <= allowed)
