"""What confirmation runs support, against losses whose lowest point is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.confirmation import confirmed, differences
from lrrunner.records import Suggestion, Training, Trial, Verdict
from tests.unit.core.curves import PROPERTY
from tests.unit.core.trials import (
    START,
    any_loss,
    any_loss_or_divergence,
    run_plan,
    six_losses,
    sweep_at,
    trial_at,
    trials_at,
    valley,
)


def confirm(
    trials: Sequence[Trial],
    *,
    start: float = START,
    training_steps: int | None = 100,
    initial_loss: float = math.nan,
    monitored: str = "validation loss",
) -> Suggestion:
    """What these trials make of the sweep's suggestion."""
    found = confirmed(
        sweep_at(start),
        trials,
        training=Training(num_steps=training_steps),
        monitored=monitored,
        initial_loss=initial_loss,
    )
    return found.suggestion


def decades(lr: float | None) -> float:
    """Position on the LR axis; NaN, which compares with nothing, where there is none."""
    return math.nan if lr is None else math.log10(lr)


@PROPERTY
@given(offset=st.floats(-0.6, 0.6), log_start=st.floats(-6.0, 0.0))
def test_the_lowest_point_is_found(offset: float, log_start: float) -> None:
    """From half a decade below or above, with a fall of 1 to the lowest loss, by six complete trainings."""
    trials = run_plan(valley(log_start + offset), start=10**log_start, training_steps=100, initial_loss=2.0)
    found = confirm(trials, start=10**log_start, initial_loss=2.0)
    assert decades(found.lr) == pytest.approx(log_start + offset, abs=0.15)


def test_without_trials_the_sweep_stands() -> None:
    """The budget may allow none."""
    sweep = sweep_at()
    assert confirmed(sweep, [], training=Training(num_steps=1000), monitored="validation loss", initial_loss=2.0) == (
        sweep,
        None,
        "",
    )


def test_one_run_confirms_nothing() -> None:
    """An interruption may leave a single trial: the sweep's word stands."""
    found = confirmed(sweep_at(), trials_at({0: 1.0}), training=Training(), monitored="validation loss")
    assert (found.suggestion.lr, found.suggestion.interval) == (sweep_at().lr, sweep_at().interval)
    assert found.suggestion.reason == (
        "a good curve; not confirmed: a single run compares nothing; raise confirm.budget_steps"
    )
    assert (found.measured_steps, found.failure_reason) == (
        None,
        "a single run compares nothing; raise confirm.budget_steps",
    )


def test_no_lr_where_every_run_diverged() -> None:
    """What to train with is not known then, and the reason says what to do."""
    found = confirm(trials_at({0: math.inf, -4: math.inf}))
    assert (found.lr, found.interval, found.expected_regret, found.verdict) == (None, None, None, Verdict.NO_DESCENT)
    assert found.reason == (
        "2 of 2 confirmation runs diverged, the lowest at 1.0e-04, and none below that finished; warm up, clip "
        "gradients (train.max_grad_norm), or raise confirm.budget_steps"
    )


@PROPERTY
@given(
    losses=six_losses,
    budget=st.integers(1, 5000),
    training_steps=st.none() | st.integers(1, 10_000),
    initial_loss=any_loss | st.just(math.nan),
)
def test_suggestion_is_below_every_lr_that_diverged(
    losses: list[float], budget: int, training_steps: int | None, initial_loss: float
) -> None:
    """Where one run blew up, another that survived at this LR or above was lucky."""
    remaining = iter(losses)
    trials = run_plan(lambda lr, num_steps: next(remaining), budget=budget, training_steps=training_steps)
    found = confirm(trials, initial_loss=initial_loss, training_steps=training_steps)
    assert found.lr is None or all(found.lr < trial.lr for trial in trials if math.isinf(trial.loss))
    if found.lr is not None and found.interval is not None and found.expected_regret is not None:
        assert found.interval[0] < found.lr < found.interval[1]
        assert 0 < found.expected_regret < 1


def test_survivor_above_a_divergence_does_not_count() -> None:
    """The lowest loss of all, at an LR above one that diverged, is luck."""
    found = confirm(trials_at({-4: 1.5, -2: 1.0, 0: math.inf, 2: 0.1}))
    assert decades(found.lr) < -3.0
    assert "at 1.0e-03" not in found.reason
    assert "to 0.1" not in found.reason


@pytest.mark.parametrize("initial_loss", [1.0, 0.5])
def test_losses_that_are_all_above_the_initial_one_confirm_nothing(initial_loss: float) -> None:
    """Which of several failures is the smallest has nothing to do with the training."""
    found = confirm(trials_at({-2: 1.25, 0: 1.0, 2: 1.75}), initial_loss=initial_loss)
    assert (found.lr, found.interval) == (sweep_at().lr, sweep_at().interval)
    assert "not confirmed: no run brought the validation loss below its start" in found.reason


def test_lowest_loss_at_the_edge_is_said() -> None:
    """Where nothing higher was tried, the best may lie there, and the interval reaches further."""
    edge, inside = confirm(trials_at({-2: 1.5, 0: 1.2, 2: 1.0})), confirm(trials_at({-2: 1.2, 0: 1.0, 2: 1.2}))
    assert edge.interval is not None
    assert inside.interval is not None
    assert edge.interval[1] > 10**-2.5
    assert "nothing higher was tried" in edge.reason
    assert "nothing lower was tried" in confirm(trials_at({-2: 1.0, 0: 1.2, 2: 1.5})).reason
    assert "was tried" not in inside.reason


def test_a_bracketed_minimum_settles_the_verdict() -> None:
    """The sweep saw no fall; the trials did."""
    sweep = dataclasses.replace(sweep_at(), verdict=Verdict.NO_DESCENT, reason="no fall; try confirm.enabled=true")
    trials = trials_at({-2: 1.2, 0: 1.0, 2: 1.2})
    found = confirmed(sweep, trials, training=Training(), monitored="validation loss").suggestion
    assert found.verdict == Verdict.OK
    assert "confirm.enabled" not in found.reason


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.NO_DIVERGENCE])
def test_everything_else_of_the_sweep_is_kept(verdict: Verdict) -> None:
    """Method and candidates speak of the sweep's curve, which trials do not change."""
    sweep = dataclasses.replace(sweep_at(), method="valley", verdict=verdict, reason="so", candidates={"valley": START})
    found = confirmed(sweep, trials_at({0: 1.0, 2: 0.9}), training=Training(), monitored="loss").suggestion
    assert (found.method, found.verdict, found.candidates) == ("valley", verdict, {"valley": START})
    assert found.reason.startswith("so; ")


@PROPERTY
@given(losses=st.dictionaries(st.integers(-9, 6), any_loss_or_divergence, min_size=2, max_size=6), data=st.data())
def test_order_of_the_trials_does_not_matter(losses: dict[int, float], data: st.DataObject) -> None:
    """The plan goes back and forth; what it saw is a set."""
    trials = trials_at(losses)
    assert confirm(data.draw(st.permutations(trials))) == confirm(trials)


def test_longer_trainings_than_the_trials_move_and_widen_the_suggestion() -> None:
    """The further, the less is known of it."""
    trials = trials_at({-2: 2.0, 0: 1.0, 2: 2.0})
    found = [confirm(trials, training_steps=n, initial_loss=3.0) for n in (100, 1000, 10_000)]
    widths = [math.log10(each.interval[1] / each.interval[0]) for each in found if each.interval is not None]
    assert widths == sorted(widths)
    assert [each.expected_regret for each in found] == sorted(each.expected_regret or 0.0 for each in found)


# Paired differences.


def test_differences_are_those_of_the_same_batches() -> None:
    """Batches differ by 1 from each other, and the trials by 0.2 in each: the difference is sure."""
    best = trial_at(1e-3, 1.0, batch_losses=(0.0, 1.0, 2.0))
    worse = trial_at(3e-3, 1.2, batch_losses=(0.2, 1.2, 2.2))
    uneven = trial_at(3e-4, 1.1, batch_losses=(0.0, 1.1, 2.2))
    diverged = trial_at(1e-2, math.inf)
    found = differences([worse, best, uneven, diverged])
    assert found[0] == pytest.approx((0.2, 0.0))
    assert found[1] == (0.0, 0.0)
    assert found[2] == pytest.approx((0.1, 0.1 / math.sqrt(3)))
    assert found[3] is None


def test_differences_without_batches_have_no_error() -> None:
    """Of a run directory that an earlier version wrote, or of a single batch."""
    found = differences([trial_at(1e-3, 1.0), trial_at(3e-3, 1.5, batch_losses=(1.5,))])
    assert [each is not None and each.value for each in found] == [0.0, 0.5]
    assert all(each is not None and math.isnan(each.error) for each in found)


# The reason.


@pytest.mark.parametrize("monitored", ["validation loss", "loss on a part of the training set"])
def test_reason_names_the_loss_and_the_steps_that_were_measured(monitored: str) -> None:
    """A reader of suggestion.json has to know what was compared, over how many steps, without the source."""
    reason = confirm(trials_at({-2: 1.25, 0: 1.0, 2: 1.5}), monitored=monitored).reason
    assert reason == f"a good curve; 3 runs compared on the {monitored}, which 100 steps at 1.0e-03 bring to 1"


def test_reason_says_what_was_extrapolated() -> None:
    """An LR for 10,000 steps from trials of 100 must not look measured."""
    reason = confirm(trials_at({-2: 1.25, 0: 1.0, 2: 1.5}), training_steps=10_000).reason
    assert reason.endswith("; extrapolated from 100 to 10000 steps")


def test_reason_without_a_length_points_to_it() -> None:
    """The user who named none learns that it matters, and the option's name."""
    reason = confirm(trials_at({-2: 1.2, 0: 1.0, 2: 1.2}), training_steps=None).reason
    assert "3 runs compared" in reason
    assert reason.endswith("; longer trainings mostly want less (train.num_steps)")
