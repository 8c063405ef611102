"""A NaN that no learning rate explains is a fault of data or model, and is not swept again lower down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lrrunner.core.data_fault import data_fault, fault_suggestion, suspected_fault
from lrrunner.records import Step, Stop, StopReason, Verdict

NOISE = 0.01 * np.random.default_rng(0).normal(size=40)
FLAT = [2.3 + float(noise) for noise in NOISE]
FALLING = [2.3 * 0.9**i for i in range(40)]


def records(losses: list[float], *, nan_at: int | None = None) -> list[Step]:
    found = [Step(step=i, lr=1e-6 * 1.2**i, loss=loss) for i, loss in enumerate(losses)]
    return found if nan_at is None else [*found[:nan_at], Step(step=nan_at, lr=1e-6 * 1.2**nan_at, loss=math.nan)]


def stop(step: int, **changes: Any) -> Stop:
    settings: dict[str, Any] = {"reason": StopReason.NON_FINITE, "step": step, "ranks": (1,), "is_partial": True}
    return Stop(**(settings | changes))


def test_one_rank_on_a_flat_curve_is_a_fault() -> None:
    """NaN on rank 1 at step 20, LR 4e-6, was reported as a loss that rises from the start."""
    bad = stop(20)
    assert data_fault(records(FLAT, nan_at=20), [bad]) is bad


@pytest.mark.parametrize(
    ("losses", "bad"),
    [
        (FALLING, stop(20)),
        (FLAT, stop(20, ranks=(0, 1), is_partial=False)),
        (FLAT, stop(1)),
        (FLAT, stop(20, reason=StopReason.DIVERGED)),
    ],
    ids=["curve moves", "all ranks", "first steps", "diverged"],
)
def test_what_a_learning_rate_may_explain_is_none(losses: list[float], bad: Stop) -> None:
    """All ranks hold the same weights: an LR that is too high shows on all of them."""
    assert data_fault(records(losses, nan_at=bad.step), [bad]) is None


def test_the_same_step_of_two_passes_is_a_fault_also_on_all_ranks() -> None:
    """Batches are a pure function of the step; learning rates were a thousand times smaller."""
    bad = stop(20, ranks=(0,), is_partial=False)
    steps = records(FALLING, nan_at=20)
    assert data_fault(steps, [bad], earlier_stops=[stop(20, ranks=(0,), is_partial=False)]) is bad
    assert data_fault(steps, [bad], earlier_stops=[stop(21, ranks=(0,), is_partial=False)]) is None


def test_the_message_names_rank_step_lr_and_samples() -> None:
    """What one needs to find the sample."""
    bad = stop(20, in_gradient=True)
    found = fault_suggestion(bad, records(FLAT, nan_at=20), method="auto", location="; rank 1 was at samples 3, 4")
    assert found.lr is None
    assert found.verdict == Verdict.NON_FINITE_AT_START
    assert found.reason == (
        "the gradient was not finite on rank 1 at step 20 (lr 3.8e-05), where the learning rate does not explain it; "
        "check the data, the model and the loss; rank 1 was at samples 3, 4"
    )


def test_no_items_is_a_fault() -> None:
    """Ten steps whose labels are all ignored."""
    bad = stop(5, reason=StopReason.NO_ITEMS, ranks=(), is_partial=False)
    assert data_fault(records(FLAT), [bad]) is bad
    reason = fault_suggestion(bad, records(FLAT), method="auto").reason
    assert "no rank had any items" in reason
    assert reason.endswith("check the labels, and that objective (loss_fn) returns its loss")


def test_a_flat_curve_on_all_ranks_is_suspected_only() -> None:
    """An LR may explode within one step: a pass further down tells."""
    bad = stop(20, ranks=(0,), is_partial=False)
    assert suspected_fault(records(FLAT, nan_at=20), [bad]) is bad
    assert suspected_fault(records(FALLING, nan_at=20), [bad]) is None
    assert suspected_fault(records(FLAT, nan_at=20), [stop(20)]) is None


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ({}, "the loss was"),
        ({"in_gradient": True}, "the gradient was"),
        ({"in_buffer": True}, "a buffer of the model was"),
        ({"in_evaluation": True}, "the validation loss was"),
    ],
)
def test_the_message_says_what_was_not_finite(where: dict[str, bool], what: str) -> None:
    """A bad sample of the validation set was looked for in the training set."""
    bad = stop(20, **where)
    reason = fault_suggestion(bad, records(FLAT, nan_at=20), method="auto").reason
    assert reason.startswith(f"{what} not finite on rank 1 at step 20")
