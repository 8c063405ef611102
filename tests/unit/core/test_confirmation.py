"""The plan of confirmation runs and what they support, against losses whose lowest point is known."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrrunner.core.confirmation import STEPS_PER_DECADE, PlannedTrial, confirmed, next_trial
from lrrunner.records import Suggestion, Trial, TrialOutcome, Verdict
from tests.unit.core.curves import PROPERTY

Loss = Callable[[float, int], float]
"""(LR, steps of the complete schedule) -> the loss at the end; infinite where the training diverges."""

START = 1e-3
THIRD = 1 / 3

any_budget = st.integers(1, 5000)
any_horizon = st.none() | st.integers(1, 10_000)
any_loss = st.integers(-500, 500).map(lambda hundredths: hundredths / 100)
any_loss_or_divergence = any_loss | st.just(math.inf)
some_positions = st.lists(st.integers(-9, 6), min_size=1, max_size=6, unique=True)


def sweep_at(lr: float | None = START) -> Suggestion:
    """A suggestion of a sweep."""
    return Suggestion(
        lr=lr,
        method="auto",
        verdict=Verdict.OK,
        reason="a good curve",
        interval=None if lr is None else (lr / 4, lr * 4),
        candidates={"auto": lr},
    )


def trial_at(lr: float, loss: float, *, num_steps: int = 100, number: int = 0) -> Trial:
    """A trial as it is recorded."""
    diverged = not math.isfinite(loss)
    return Trial(
        trial=number,
        lr=lr,
        num_steps=num_steps,
        num_steps_run=1 if diverged else num_steps,
        loss=loss,
        outcome=TrialOutcome.DIVERGED if diverged else TrialOutcome.FINISHED,
    )


def trials_at(losses: dict[int, float], *, num_steps: int = 100, start: float = START) -> list[Trial]:
    """Trials of one length at these thirds of a decade from the start."""
    return [trial_at(start * 10 ** (third / 3), loss, num_steps=num_steps) for third, loss in losses.items()]


def valley(
    lowest_at: float, *, diverges_above: float = math.inf, lowered: float = 0.0, diverges_lowered: float = 0.0
) -> Loss:
    """A parabola against log LR and a cliff; both may move down with the logarithm of the length."""

    def loss(lr: float, num_steps: int) -> float:
        length, at = math.log10(num_steps), math.log10(lr)
        if at > diverges_above - diverges_lowered * length:
            return math.inf
        return 1.0 + (at - lowest_at + lowered * length) ** 2

    return loss


def run_plan(
    loss: Loss,
    *,
    start: float = START,
    budget: int = 1400,
    horizon: int | None = None,
    initial_loss: float = math.nan,
    noise: float = 0.0,
) -> list[Trial]:
    """Every trial that is planned, with the loss it would end at."""
    sweep, trials = sweep_at(start), list[Trial]()
    plan = functools.partial(
        next_trial, sweep, budget_steps=budget, horizon=horizon, initial_loss=initial_loss, noise=noise
    )
    while planned := plan(trials):
        trials.append(trial_at(planned.lr, loss(*planned), num_steps=planned.num_steps, number=len(trials)))
        assert len(trials) <= 9, "six short trials and three long ones are all there can be"
    return trials


def confirm(
    trials: Sequence[Trial],
    *,
    start: float = START,
    horizon: int | None = None,
    initial_loss: float = math.nan,
    monitored: str = "validation loss",
) -> Suggestion:
    """What these trials make of the sweep's suggestion."""
    found = confirmed(sweep_at(start), trials, horizon=horizon, monitored=monitored, initial_loss=initial_loss)
    return found.suggestion


def thirds(trials: Sequence[Trial], start: float = START) -> list[tuple[int, int]]:
    """(Thirds of a decade from the start, steps) of each."""
    return [(round(3 * math.log10(trial.lr / start)), trial.num_steps) for trial in trials]


def decades(lr: float | None) -> float:
    """Position on the LR axis; NaN, which compares with nothing, where there is none."""
    return math.nan if lr is None else math.log10(lr)


def assert_same(found: Suggestion, expected: Suggestion, *, factor: float = 1.0, rel: float = 1e-9) -> None:
    """The same LR and interval but for the factor."""
    assert (found.lr is None) == (expected.lr is None)
    if found.lr is not None and expected.lr is not None:
        assert found.lr == pytest.approx(expected.lr * factor, rel=rel)
    for end, expected_end in zip(found.interval or (), expected.interval or (), strict=True):
        assert end == pytest.approx(expected_end * factor, rel=rel)


# The plan: its budget, its lengths, its end.


@PROPERTY
@given(
    budget=any_budget,
    horizon=any_horizon,
    losses=st.lists(any_loss_or_divergence, min_size=9, max_size=9),
    initial_loss=any_loss | st.just(math.nan),
)
def test_plan_keeps_to_the_budget_and_the_horizon_and_ends(
    budget: int, horizon: int | None, losses: list[float], initial_loss: float
) -> None:
    """Whatever is measured: a user pays what was asked for, and nothing longer than the real training is run."""
    remaining = iter(losses)
    trials = run_plan(lambda lr, num_steps: next(remaining), budget=budget, horizon=horizon, initial_loss=initial_loss)
    assert trials
    assert sum(trial.num_steps for trial in trials) <= budget
    assert all(1 <= trial.num_steps <= (horizon or budget) for trial in trials)
    assert len(set(thirds(trials))) == len(trials), "no training is run twice"


@PROPERTY
@given(
    budget=any_budget,
    horizon=any_horizon,
    offset=st.floats(-3.0, 3.0),
    diverges_above=st.floats(-6.0, 3.0),
    diverges_lowered=st.floats(-0.5, 1.0),
)
def test_plan_keeps_to_the_budget_in_any_valley(
    budget: int, horizon: int | None, offset: float, diverges_above: float, diverges_lowered: float
) -> None:
    """The same for losses as trainings have them, with a cliff that moves with the length."""
    loss = valley(-3 + offset, diverges_above=diverges_above, diverges_lowered=diverges_lowered)
    trials = run_plan(loss, budget=budget, horizon=horizon)
    assert sum(trial.num_steps for trial in trials) <= budget
    assert all(1 <= trial.num_steps <= (horizon or budget) for trial in trials)


def test_first_trial_is_the_suggestion_itself() -> None:
    """What the user would have trained with is always among what is compared."""
    assert next_trial(sweep_at(0.0123), [], budget_steps=1400, horizon=None) == PlannedTrial(0.0123, 100)


def test_short_trials_bracket_the_lowest_loss_before_long_ones_refine_it() -> None:
    """Start, lower, higher, all of 1400 / 14 steps; then a third of the 1100 left at the best and its neighbours."""
    assert thirds(run_plan(valley(-2.99))) == [(0, 100), (-1, 100), (1, 100), (0, 366), (-1, 366), (1, 366)]


def test_third_long_trial_goes_to_the_better_side() -> None:
    """Where the lower neighbour wins, its own lower neighbour is worth more than the upper one of the short trials."""
    trials = run_plan(lambda lr, num_steps: valley(-3.0 if num_steps == 100 else -3.4)(lr, num_steps))
    assert thirds(trials)[3:] == [(0, 366), (-1, 366), (-2, 366)]


@pytest.mark.parametrize(
    ("budget", "horizon", "lengths"),
    [
        (1, None, [1]),
        (5, None, [1, 1, 1]),
        (10, None, [1, 1, 1, 2, 2, 2]),
        (500, None, [35, 35, 35, 131, 131, 131]),
        (500, 10_000, [35, 35, 35, 131, 131, 131]),
        (1400, 200, [100, 100, 100, 200, 200, 200]),
        (1400, 150, [100, 100, 100, 150, 150, 150]),
        (1400, 149, [149, 149, 149]),
        (1400, 100, [100, 100, 100]),
        (1400, 20, [20, 20, 20]),
        (1400, 1, [1, 1, 1]),
    ],
)
def test_lengths_of_the_trials(budget: int, horizon: int | None, lengths: list[int]) -> None:
    """A 14th of the budget, then a third of the rest; never beyond the horizon, and no long trial below 1.5 short."""
    assert [trial.num_steps for trial in run_plan(valley(-3.0), budget=budget, horizon=horizon)] == lengths


def test_six_short_trials_leave_a_third_of_the_rest_for_each_long_one() -> None:
    """(1400 - 6 * 100) / 3 = 266: a walk that never sees a worse loss may not eat up the long trials."""
    trials = run_plan(valley(9.0))
    assert thirds(trials) == [(0, 100), (-1, 100)] + [(third, 100) for third in (1, 2, 3, 4)] + [
        (4, 266),
        (3, 266),
        (5, 266),
    ]


@pytest.mark.parametrize(
    ("losses", "third"), [({0: 1.0, -1: 1.0, 1: 1.5}, 0), ({0: 2.0, -1: 1.0, 1: 1.0, -2: 1.5}, -1)]
)
def test_equal_short_losses_prefer_the_sweep_s_lr_then_the_lower_one(losses: dict[int, float], third: int) -> None:
    """Nothing speaks against the sweep; of two others that train as well, the lower is the safer one."""
    planned = next_trial(sweep_at(), trials_at(losses), budget_steps=1400, horizon=None)
    assert planned is not None
    assert planned.num_steps > 100
    assert planned.lr == pytest.approx(START * 10 ** (third * THIRD), rel=1e-12)


@pytest.mark.parametrize("cliff", [-3.5, -4.5, -5.5, -6.5, -7.5])
def test_diverged_start_goes_down_by_a_decade(cliff: float) -> None:
    """A suggestion far beyond the cliff is not walked down in thirds: six trials would end on the way."""
    trials = run_plan(valley(-9.0, diverges_above=cliff))
    num_diverged = math.ceil(-3.0 - cliff)
    assert thirds(trials)[: num_diverged + 1] == [(-3 * k, 100) for k in range(num_diverged + 1)]
    assert [math.isfinite(trial.loss) for trial in trials[: num_diverged + 1]] == [False] * num_diverged + [True]


def test_plan_ends_where_everything_diverges() -> None:
    """Six trials over five decades are enough to know; long ones would only cost."""
    trials = run_plan(lambda lr, num_steps: math.inf)
    assert thirds(trials) == [(0, 100), (-3, 100), (-6, 100), (-9, 100), (-12, 100), (-15, 100)]


@pytest.mark.parametrize(("loss", "second"), [(1.97, (-1, 100)), (1.99, (2, 100)), (2.01, (2, 100)), (2.03, (-3, 100))])
def test_first_trial_is_compared_with_the_initial_loss(loss: float, second: tuple[int, int]) -> None:
    """2.0 before training, with a noise of 0.02: learnt, nothing either way, and too high a learning rate."""
    trials = run_plan(lambda lr, num_steps: loss, initial_loss=2.0, noise=0.02)
    assert thirds(trials)[1] == second


def test_short_trials_that_learn_nothing_are_followed_by_long_ones() -> None:
    """Small differences around the initial loss are no reason to walk; above, where more is learnt, or back below."""
    trials = run_plan(lambda lr, num_steps: 2.0 if num_steps == 100 else valley(-3.0)(lr, num_steps), initial_loss=2.0)
    assert thirds(trials) == [(0, 100), (2, 100), (0, 400), (1, 400), (-1, 400)]


def test_start_far_too_low_is_left_upwards() -> None:
    """At 1e-3, a hundred steps learn less than the noise; 1.5 decades above they learn nearly everything."""
    trials = run_plan(
        lambda lr, n: math.inf if lr > 2 * 10**-1.5 else 2.3 * math.exp(-0.002 * n * lr / 10**-1.5),
        initial_loss=2.3,
        noise=0.03,
    )
    assert decades(confirm(trials, initial_loss=2.3).lr) > -2.5


def test_plan_does_not_start_without_a_suggestion() -> None:
    """There is nothing to walk from: the caller has to look at the sweep first."""
    with pytest.raises(ValueError, match="must have suggested an LR"):
        next_trial(sweep_at(None), [], budget_steps=1400, horizon=None)


@PROPERTY
@given(
    start=st.floats(-8.0, 1.0).map(lambda exponent: 10**exponent),
    offset=st.floats(-2.0, 2.0),
    cliff=st.floats(-2.0, 3.0),
    budget=st.integers(14, 5000),
)
def test_positions_survive_floating_point(start: float, offset: float, cliff: float, budget: int) -> None:
    """Trials read back from text, to 17 digits or to 6, are the same places: else one would be run again."""
    loss = valley(math.log10(start) + offset, diverges_above=math.log10(start) + offset + cliff)
    trials = run_plan(loss, start=start, budget=budget)
    for written in (repr, "{:.6g}".format):
        read = [
            trial_at(float(written(trial.lr)), trial.loss, num_steps=trial.num_steps, number=trial.trial)
            for trial in trials
        ]
        for done in range(len(trials) + 1):
            expected = next_trial(sweep_at(start), trials[:done], budget_steps=budget, horizon=None)
            assert next_trial(sweep_at(start), read[:done], budget_steps=budget, horizon=None) == expected


# The walk and the parabola together find an optimum that is known.


@PROPERTY
@given(offset=st.floats(-1.49, 1.49), budget=st.integers(14, 5000), log_start=st.floats(-6.0, 0.0))
def test_lowest_point_of_a_parabola_is_found_exactly(offset: float, budget: int, log_start: float) -> None:
    """From 1.5 decades below or above; three points of a parabola leave no doubt where its vertex is.

    In the middle between two trials these are equally good, and rounding decides which one is better.
    """
    assume(abs(STEPS_PER_DECADE * offset % 1 - 0.5) > 1e-6)
    trials = run_plan(valley(log_start + offset), start=10**log_start, budget=budget)
    assert decades(confirm(trials, start=10**log_start).lr) == pytest.approx(log_start + offset, abs=1e-6)


@PROPERTY
@given(
    offset=st.floats(-1.5, 1.5),
    budget=st.integers(14, 5000),
    room=st.floats(0.0, 2.0),
    diverges_lowered=st.floats(0.0, 0.5),
)
def test_lowest_point_before_a_cliff_is_found(offset: float, budget: int, room: float, diverges_lowered: float) -> None:
    """Real losses blow up above some LR, the earlier the longer they train: never suggest it, and stay near the best.

    The best trial is at most a third of a decade below the optimum; the cliff's neighbour moves it a sixth of that.
    """
    cliff = offset - 3.0 + room + diverges_lowered * math.log10(budget)
    loss = valley(-3.0 + offset, diverges_above=cliff, diverges_lowered=diverges_lowered)
    trials = run_plan(loss, budget=budget)
    found = confirm(trials)
    assert found.verdict == Verdict.OK
    assert decades(found.lr) == pytest.approx(-3.0 + offset, abs=THIRD + THIRD / 6 + 1e-9)
    assert all(found.lr is not None and found.lr < trial.lr for trial in trials if math.isinf(trial.loss))


@PROPERTY
@given(offset=st.floats(-1.2, 1.2), budget=st.integers(28, 5000), longer=st.floats(1.0, 100.0))
def test_an_optimum_that_falls_with_the_length_is_extrapolated(offset: float, budget: int, longer: float) -> None:
    """The trials' best LR goes to the training's as H**-0.32, and is averaged with the sweep's by their precision.

    The sweep's 1e-3 has a standard error of log10(4) / 1.645 decades, the extrapolation one of 0.45 for each decade.
    """
    horizon = math.ceil(budget * longer)
    loss = valley(-3.0 + offset + 0.32 * math.log10(budget / 14), lowered=0.32)
    trials = run_plan(loss, budget=budget, horizon=horizon)
    scaled = -3.0 + offset - 0.32 * math.log10(horizon * 14 / budget)
    variance = (0.45 * math.log10(horizon / max(trial.num_steps for trial in trials))) ** 2
    weight = (math.log10(4) / 1.645) ** 2 / ((math.log10(4) / 1.645) ** 2 + variance)
    expected = weight * scaled + (1 - weight) * -3.0
    assert decades(confirm(trials, horizon=horizon).lr) == pytest.approx(expected, abs=1e-6)


@PROPERTY
@given(offset=st.floats(-1.5, 1.5), budget=any_budget, horizon=any_horizon)
def test_any_budget_gives_an_answer_not_far_from_its_trials(offset: float, budget: int, horizon: int | None) -> None:
    """One step or five thousand: an LR inside its interval, at the measured length within a grid step of its best."""
    trials = run_plan(valley(-3.0 + offset), budget=budget, horizon=horizon)
    found = confirm(trials, horizon=max(trial.num_steps for trial in trials))
    longest = [trial for trial in trials if trial.num_steps == max(trial.num_steps for trial in trials)]
    best = min(longest, key=lambda trial: (round(trial.loss, 9), trial.lr))
    assert found.lr is not None
    assert found.interval is not None
    assert found.interval[0] < found.lr < found.interval[1]
    assert abs(decades(found.lr) - decades(best.lr)) <= THIRD / 2 + 1e-9


# What the trials support.


def test_no_trials_leave_the_suggestion_of_the_sweep() -> None:
    """A budget too small for anything takes nothing away."""
    sweep = sweep_at()
    assert confirmed(sweep, [], horizon=1000, monitored="validation loss", initial_loss=2.0) == (sweep, None, "")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({-1: 2.0, 0: 1.0, 1: 2.0}, 0.0),
        ({-1: 1.25, 0: 1.0, 1: 1.75}, -1 / 12),
        ({-1: 1.75, 0: 1.0, 1: 1.25}, 1 / 12),
        ({-1: 1.0, 0: 1.0, 1: 2.0}, -1 / 3),
        ({-3: 1.125, 0: 1.0, 1: 1.125}, -1 / 3),
        ({-2: 9.0, -1: 2.0, 0: 1.0, 1: 2.0, 2: 1.5}, 0.0),
    ],
    ids=["symmetric", "falls left", "falls right", "equal", "uneven", "further ones do not count"],
)
def test_vertex_of_literal_parabolas(losses: dict[int, float], expected: float) -> None:
    """(1.25, 1, 1.75) is lowest a quarter of a step left: 0.5 * (0.25 - 0.75) / (0.25 + 0.75) of a third."""
    assert decades(confirm(trials_at(losses)).lr) == pytest.approx(-3.0 + expected, abs=1e-9)


@pytest.mark.parametrize("lowest", [0, 2])
def test_lowest_loss_at_an_end_is_not_extrapolated(lowest: int) -> None:
    """A parabola through what was not bracketed may be lowest anywhere."""
    losses = {third: 1.0 + abs(third - lowest) for third in range(3)}
    assert decades(confirm(trials_at(losses)).lr) == pytest.approx(-3.0 + lowest / 3, abs=1e-9)


def test_longest_trials_decide() -> None:
    """They are nearer to the real training; shorter ones mostly want a higher LR, and their losses are higher."""
    short = trials_at({0: 0.3, 1: 0.1, 2: 0.2}, num_steps=100)
    long = trials_at({-2: 1.25, -1: 1.0, 0: 1.25}, num_steps=366)
    assert decades(confirm(short + long).lr) == pytest.approx(-3.0 - THIRD, abs=1e-9)


@pytest.mark.parametrize("budget", [1, 5, 10, 500])
@pytest.mark.parametrize("monitored", ["validation loss", "training loss"])
def test_no_lr_where_every_trial_diverged(budget: int, monitored: str) -> None:
    """An LR that was seen to diverge is no suggestion, whatever the sweep made of it; the reason names what to do."""
    trials = run_plan(lambda lr, num_steps: math.inf, budget=budget)
    found = confirm(trials, monitored=monitored, initial_loss=2.3, horizon=10_000)
    assert found.lr is None
    assert found.interval is None
    assert found.verdict != Verdict.OK
    assert f"the lowest at {min(trial.lr for trial in trials):.1e}" in found.reason
    assert "warm up" in found.reason


def test_reason_where_every_trial_diverged() -> None:
    """Word for word, with the lowest LR that was tried: 1e-3 and a decade below."""
    assert confirm(trials_at({0: math.inf, -3: math.inf})).reason == (
        "2 of 2 confirmation runs diverged, the lowest at 1.0e-04, and none below that finished; warm up, clip "
        "gradients (train.max_grad_norm), or raise confirm.budget_steps"
    )


def test_reason_does_not_call_finished_runs_diverged() -> None:
    """Here the short trials were fine and only the long ones were not: another fault than "all 6 runs diverged"."""
    trials = run_plan(lambda lr, num_steps: valley(-3.0)(lr, num_steps) if num_steps == 100 else math.inf)
    assert [math.isfinite(trial.loss) for trial in trials] == [True] * 3 + [False] * 3
    found = confirm(trials)
    assert found.lr is None
    assert "all 6" not in found.reason


@PROPERTY
@given(
    losses=st.lists(any_loss_or_divergence, min_size=9, max_size=9),
    budget=any_budget,
    horizon=any_horizon,
    initial_loss=any_loss | st.just(math.nan),
)
def test_suggestion_is_below_every_lr_that_diverged(
    losses: list[float], budget: int, horizon: int | None, initial_loss: float
) -> None:
    """Where one run blew up, another that survived at this LR or above was lucky."""
    remaining = iter(losses)
    trials = run_plan(lambda lr, num_steps: next(remaining), budget=budget, horizon=horizon)
    found = confirm(trials, initial_loss=initial_loss, horizon=horizon).lr
    assert found is None or all(found < trial.lr for trial in trials if math.isinf(trial.loss))


def test_survivor_above_a_divergence_does_not_count() -> None:
    """The lowest loss of all, at an LR above one that diverged, is luck."""
    found = confirm(trials_at({-2: 1.5, -1: 1.0, 0: math.inf, 1: 0.1}))
    assert -3.0 - 1.5 * THIRD < decades(found.lr) < -3.0
    assert "at 1.0e-03" not in found.reason
    assert "to 0.1" not in found.reason


def test_long_survivor_where_a_short_trial_diverged_does_not_count() -> None:
    """A slower warm-up gets over the cliff this time: an LR this close to it would not be trained with."""
    cliff = {100: -2.9, 366: -2.5}
    trials = run_plan(lambda lr, n: math.inf if math.log10(lr) > cliff[n] else 1.0 + (math.log10(lr) + 2.5) ** 2)
    assert thirds(trials)[2:] == [(1, 100), (0, 366), (-1, 366)]
    assert [math.isfinite(trial.loss) for trial in trials] == [True, True, False, True, True]
    assert decades(confirm(trials).lr) < -3.0 + THIRD - 1e-9


def test_long_divergence_at_the_best_short_lr_moves_the_suggestion_below_it() -> None:
    """Stability is a matter of length too: what 100 steps survive may kill a training at step 300."""
    trials = run_plan(lambda lr, n: valley(-3.0)(lr, n) if n == 100 or lr < 0.9e-3 else math.inf)
    assert thirds(trials)[3:] == [(0, 366), (-1, 366), (-2, 366)]
    found = decades(confirm(trials).lr)
    assert -3.0 - 1.5 * THIRD <= found <= -3.0 - 0.5 * THIRD


def test_long_divergence_at_three_lrs_leaves_the_shorter_trials_below_them() -> None:
    """After a walk up, short trials lie below all three: the answer is the best of these, not the best short one."""
    trials = run_plan(lambda lr, n: valley(-2.3)(lr, n) if n == 100 else math.inf)
    assert thirds(trials) == [(0, 100), (-1, 100), (1, 100), (2, 100), (3, 100), (2, 300), (1, 300), (0, 300)]
    found = confirm(trials)
    assert found.lr is not None
    assert decades(found.lr) < -3.0


@pytest.mark.parametrize("initial_loss", [math.nan, 2.3], ids=["unknown", "above"])
@pytest.mark.parametrize("height", [math.inf, 1e6, 1e30, 1e300])
def test_how_far_a_run_blew_up_does_not_matter(height: float, initial_loss: float) -> None:
    """A neighbour of 1e300 and one that is infinite mean the same; warnings are errors here."""
    found = decades(confirm(trials_at({-1: 1.2, 0: 1.0, 1: height}), initial_loss=initial_loss).lr)
    assert -3.0 - THIRD / 2 - 1e-9 <= found < -3.0


def test_losses_above_the_initial_one_count_as_the_initial_one() -> None:
    """(1.25, 1, 7) capped at 1.75 is lowest a quarter of a step left."""
    found = confirm(trials_at({-1: 1.25, 0: 1.0, 1: 7.0}), initial_loss=1.75)
    assert decades(found.lr) == pytest.approx(-3.0 - 1 / 12, abs=1e-9)


@pytest.mark.parametrize("initial_loss", [1.0, 0.5])
def test_losses_that_are_all_above_the_initial_one_confirm_nothing(initial_loss: float) -> None:
    """Which of several failures is the smallest has nothing to do with the training."""
    found = confirm(trials_at({-1: 1.25, 0: 1.0, 1: 1.75}), initial_loss=initial_loss)
    assert (found.lr, found.interval) == (sweep_at().lr, sweep_at().interval)
    assert "not confirmed: no run brought the validation loss below its start" in found.reason


def test_lowest_loss_at_the_edge_opens_the_interval() -> None:
    """Where nothing higher was tried, the best may lie there: at least as far as the sweep's own interval."""
    found = confirm(trials_at({-1: 1.5, 0: 1.2, 1: 1.0}))
    assert found.interval is not None
    assert decades(found.interval[1]) >= -3.0 + THIRD + 0.2 + THIRD - 1e-9
    assert "nothing higher was tried" in found.reason
    below = confirm(trials_at({-1: 1.0, 0: 1.2, 1: 1.5}))
    assert below.interval is not None
    assert decades(below.interval[0]) <= -3.0 - THIRD - 0.2 - THIRD + 1e-9
    assert "nothing lower was tried" in below.reason


def test_one_run_confirms_nothing() -> None:
    """An interruption may leave a single trial: the sweep's word stands."""
    found = confirm(trials_at({0: 1.0}), horizon=10_000)
    assert (found.lr, found.interval) == (sweep_at().lr, sweep_at().interval)
    assert "not confirmed: a single run" in found.reason


def test_unfinished_long_trials_fall_back_to_the_short_one() -> None:
    """One long trial compares nothing; three short ones around the lowest loss do."""
    trials = [*trials_at({-1: 1.25, 0: 1.0, 1: 1.25}), *trials_at({0: 0.5}, num_steps=366)]
    assert decades(confirm(trials).lr) == pytest.approx(-3.0, abs=1e-9)


def test_what_was_measured_is_told_apart_from_what_was_not() -> None:
    """Closing lines and suggestion.json name the runs that the LR was read from, or why none."""
    trials = [*trials_at({-1: 1.25, 0: 1.0, 1: 1.25}), *trials_at({0: 0.5}, num_steps=366)]
    found = confirmed(sweep_at(), trials, horizon=None, monitored="validation loss")
    assert (found.measured_steps, found.failure_reason) == (100, "")
    alone = confirmed(sweep_at(), trials_at({0: 1.0}), horizon=None, monitored="validation loss")
    assert (alone.measured_steps, alone.failure_reason) == (
        None,
        "a single run compares nothing; raise confirm.budget_steps",
    )


def test_a_bracketed_minimum_settles_the_verdict() -> None:
    """The sweep saw no fall; the trials did."""
    sweep = dataclasses.replace(sweep_at(), verdict=Verdict.NO_DESCENT, reason="no fall; try confirm.enabled=true")
    found = confirmed(sweep, trials_at({-1: 1.2, 0: 1.0, 1: 1.2}), horizon=None, monitored="validation loss").suggestion
    assert found.verdict == Verdict.OK
    assert "confirm.enabled" not in found.reason


def test_long_trials_never_go_to_where_short_ones_diverged() -> None:
    """A third of the long budget would buy what is known."""
    trials = run_plan(lambda lr, n: math.inf if lr > 1.1e-4 else 2.3 - 1e-3 * n / 100, initial_loss=2.3, noise=0.5)
    assert thirds(trials)[:2] == [(0, 100), (-3, 100)]
    assert all(third < 0 for third, _ in thirds(trials)[1:])


def test_equal_losses_give_the_lower_lr() -> None:
    """A loss that no LR moves is no reason to take the bold one."""
    assert decades(confirm(trials_at({1: 1.0, 0: 1.0, -1: 1.0})).lr) == pytest.approx(-3.0 - THIRD, abs=1e-9)


# The horizon.


@pytest.mark.parametrize(
    ("horizon", "factor", "half_width"),
    [
        (None, 1.0, 0.2),
        (1, 1.0, 0.2),
        (100, 1.0, 0.2),
        (200, 0.8227669540341777, 0.28926),
        (10_000, 0.8112986078383667, 0.59249),
        (1_000_000, 0.889573524505153, 0.62296),
    ],
)
def test_longer_horizon_lowers_the_lr_and_widens_the_interval(
    horizon: int | None, factor: float, half_width: float
) -> None:
    """(100 / H)**0.32, averaged with the sweep's 1e-3: the further, the less is known of it.

    Half the interval is 0.2 decades and 1.645 errors of the average, at right angles; the sweep's own is 0.6.
    """
    found = confirm(trials_at({-1: 2.0, 0: 1.0, 1: 2.0}), horizon=horizon)
    assert found.lr == pytest.approx(1e-3 * factor, rel=1e-9)
    assert found.interval is not None
    assert decades(found.interval[1]) - decades(found.lr) == pytest.approx(half_width, abs=1e-5)
    assert decades(found.lr) - decades(found.interval[0]) == pytest.approx(half_width, abs=1e-5)


@PROPERTY
@given(losses=st.dictionaries(st.integers(-9, 6), any_loss, min_size=1, max_size=6), horizon=any_horizon)
def test_interval_holds_the_lr(losses: dict[int, float], horizon: int | None) -> None:
    """A factor of 10**0.2 to either side at least: half of the distance of two trials cannot be distinguished."""
    found = confirm(trials_at(losses), horizon=horizon)
    assert found.lr is not None
    assert found.interval is not None
    assert found.interval[0] <= found.lr * 10**-0.1999
    assert found.interval[1] >= found.lr * 10**0.1999


# Invariance: the unit and the zero of a loss, the unit of an LR and the order of a list are conventions.


@PROPERTY
@given(
    losses=st.dictionaries(st.integers(-9, 6), any_loss_or_divergence, min_size=1, max_size=6),
    initial_loss=any_loss | st.just(math.nan),
    log_factor=st.floats(-6.0, 6.0),
    shift=st.integers(-100, 100),
)
def test_unit_and_zero_of_the_loss_do_not_matter(
    losses: dict[int, float], initial_loss: float, log_factor: float, shift: int
) -> None:
    """Bits or nats, sum or mean, an ELBO or its positive part: the LR is the same."""
    factor = 10**log_factor
    plain = confirm(trials_at(losses), initial_loss=initial_loss)
    scaled = {third: loss * factor for third, loss in losses.items()}
    shifted = {third: loss + shift for third, loss in losses.items()}
    assert_same(confirm(trials_at(scaled), initial_loss=initial_loss * factor), plain)
    assert_same(confirm(trials_at(shifted), initial_loss=initial_loss + shift), plain)


@PROPERTY
@given(losses=st.lists(any_loss_or_divergence, min_size=9, max_size=9), log_factor=st.floats(-6.0, 6.0))
def test_unit_of_the_loss_does_not_matter_to_the_plan(losses: list[float], log_factor: float) -> None:
    """The walk compares losses with each other and with the initial one."""
    plain, factor = iter(losses), 10**log_factor
    scaled = iter([loss * factor for loss in losses])
    expected = thirds(run_plan(lambda lr, n: next(plain), initial_loss=2.305))
    assert thirds(run_plan(lambda lr, n: next(scaled), initial_loss=2.305 * factor)) == expected


@pytest.mark.parametrize("shift", [-2000.0, -2.5, -2.0, 100.0])
@pytest.mark.parametrize("initial_loss", [math.nan, 2.5])
def test_zero_of_the_loss_does_not_matter_to_the_plan(initial_loss: float, shift: float) -> None:
    """An ELBO of -2000 falls by 1.5 as well as a cross-entropy of 2.5: the same trials have to follow."""
    loss = valley(-2.5)
    shifted = run_plan(lambda lr, n: loss(lr, n) + shift, initial_loss=initial_loss + shift)
    assert thirds(shifted) == thirds(run_plan(loss, initial_loss=initial_loss))


@PROPERTY
@given(losses=st.lists(any_loss_or_divergence, min_size=9, max_size=9), log_factor=st.floats(-4.0, 4.0))
def test_unit_of_the_lr_scales_plan_and_suggestion(losses: list[float], log_factor: float) -> None:
    """An optimizer that counts in other units is tried at the same places and gets the same answer in its units."""
    factor = 10**log_factor
    one, other = iter(losses), iter(losses)
    plain = run_plan(lambda lr, n: next(one))
    moved = run_plan(lambda lr, n: next(other), start=START * factor)
    assert [trial.lr for trial in moved] == pytest.approx([trial.lr * factor for trial in plain], rel=1e-12)
    assert [trial.num_steps for trial in moved] == [trial.num_steps for trial in plain]
    assert_same(confirm(moved, start=START * factor), confirm(plain), factor=factor, rel=1e-11)


@PROPERTY
@given(
    losses=st.dictionaries(st.integers(-9, 6), any_loss_or_divergence, min_size=2, max_size=6),
    data=st.data(),
)
def test_order_of_the_trials_does_not_matter(losses: dict[int, float], data: st.DataObject) -> None:
    """The walk goes back and forth; what it saw is a set."""
    trials = trials_at(losses)
    assert confirm(data.draw(st.permutations(trials))) == confirm(trials)


# The reason.


@pytest.mark.parametrize("horizon", [300, 366])
@pytest.mark.parametrize("monitored", ["validation loss", "loss on a part of the training set"])
def test_reason_names_the_loss_and_the_steps_that_were_measured(monitored: str, horizon: int) -> None:
    """A reader of suggestion.json has to know what was compared, over how many steps, without the source."""
    short, long = trials_at({0: 1.5}, num_steps=100), trials_at({-1: 1.25, 0: 1.0, 1: 1.5}, num_steps=366)
    reason = confirm(short + long, monitored=monitored, horizon=horizon).reason
    assert reason == f"a good curve; 4 runs compared on the {monitored}, which 366 steps at 1.0e-03 bring to 1"


def test_reason_says_what_was_extrapolated() -> None:
    """An LR for 10,000 steps from trials of 366 must not look measured."""
    reason = confirm(trials_at({-1: 1.25, 0: 1.0, 1: 1.5}, num_steps=366), horizon=10_000).reason
    assert reason.endswith("; extrapolated from 366 to 10000 steps by (366/10000)**0.32")


def test_reason_without_a_horizon_points_to_it() -> None:
    """The user who named none learns that it matters, and the option's name."""
    reason = confirm(trials_at({-1: 1.2, 0: 1.0, 1: 1.2})).reason
    assert "3 runs compared" in reason
    assert reason.endswith("; longer trainings mostly want less (train.num_steps)")


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.NO_DIVERGENCE])
def test_everything_else_of_the_sweep_is_kept(verdict: Verdict) -> None:
    """Method, candidates and verdict speak of the sweep's curve, which trials do not change."""
    sweep = Suggestion(
        lr=START, method="valley", verdict=verdict, reason="so", interval=(5e-4, 2e-3), candidates={"valley": START}
    )
    found = confirmed(sweep, trials_at({0: 1.0}), horizon=None, monitored="validation loss").suggestion
    assert (found.method, found.verdict, found.candidates) == ("valley", verdict, {"valley": START})
    assert found.reason.startswith("so; ")


@pytest.mark.parametrize(("noise", "next_position"), [(0.1, 2), (0.2, 0)])
def test_what_two_evaluations_can_tell_apart_moves_the_walk(noise: float, next_position: int) -> None:
    """0.03 is more than a fifth of 0.1, so the walk goes on above; it is less than a fifth of 0.2, so it has ended."""
    trials = trials_at({0: 1.0, -1: 1.2, 1: 0.97}, num_steps=35)
    planned = next_trial(sweep_at(), trials, budget_steps=500, horizon=None, initial_loss=2.0, noise=noise)
    assert planned is not None
    assert planned.lr == pytest.approx(START * 10 ** (next_position / 3))
    assert (planned.num_steps == 35) == (next_position == 2)
