from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.curve import curve_from_steps
from lrrunner.core.landmarks import Landmark, landmarks
from lrrunner.core.lr_estimate import (
    COVARIANCE,
    NAMES,
    OFFSETS,
    PRIOR_LOG_LRS,
    REFERENCE_STEPS_PER_DECADE,
    Estimate,
    OptimizerClass,
    estimate,
    for_training,
    with_length,
)
from lrrunner.records import Training
from tests.unit.core.curves import PROPERTY, records, sweep_lrs

SGD = OptimizerClass.SGD


def at_best(log_lr: float, *names: str, error: float = 0.1, slower: float = 1.0) -> dict[str, Landmark]:
    """Landmarks that all lie as far above a best LR as they do on average."""
    steps = REFERENCE_STEPS_PER_DECADE * slower
    return {name: Landmark(log_lr + OFFSETS[NAMES.index(name)], error, steps) for name in names or NAMES}


def test_without_a_landmark_there_is_no_estimate() -> None:
    """The class of an optimizer alone is no measurement."""
    assert estimate({}, optimizer=SGD) is None


@pytest.mark.parametrize("name", NAMES)
def test_one_landmark_says_its_own_distance(name: str) -> None:
    """Both errors, that of the distance over jobs and that of this sweep, add in squares."""
    found = estimate(at_best(-2.5, name, error=0.3))
    assert found is not None
    assert found.log_lr == pytest.approx(-2.5, abs=1e-9)
    variance = COVARIANCE[NAMES.index(name)][NAMES.index(name)]
    assert found.error == pytest.approx(math.sqrt(variance + 0.09), rel=1e-6)
    assert found.weights == {name: pytest.approx(1.0)}


def test_landmarks_that_agree_make_it_surer() -> None:
    """Every one of them is evidence."""
    one, all_five = estimate(at_best(-2.5, "minimum")), estimate(at_best(-2.5))
    assert one is not None
    assert all_five is not None
    assert all_five.log_lr == pytest.approx(-2.5, abs=1e-9)
    assert all_five.error < 0.85 * one.error
    assert sum(all_five.weights.values()) == pytest.approx(1.0)


def test_an_unsure_landmark_weighs_less() -> None:
    """The median of three gave a landmark drowned in noise the vote of a clear one."""
    sure, unsure = (at_best(-2.0, "minimum") | at_best(-3.0, "blow_up", error=error) for error in (0.1, 1.0))
    found = [estimate(each) for each in (sure, unsure)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1].weights["blow_up"] < 0.6 * found[0].weights["blow_up"]
    assert -2.6 < found[0].log_lr < found[1].log_lr < -2.0


def test_one_landmark_far_from_the_others_is_not_believed() -> None:
    """An accident three decades off moves the estimate by less than a tenth of that."""
    found = estimate(at_best(-2.0) | at_best(-5.0, "gradient_rise"))
    assert found is not None
    assert found.log_lr == pytest.approx(-2.0, abs=0.2)


def test_a_slower_sweep_moves_its_landmarks_and_not_the_estimate() -> None:
    """Ten times the steps: the loss is half down 0.71 decades earlier, since the sweep trains on the way."""
    quick, slow = at_best(-2.0, "half_fall"), at_best(-2.0, "half_fall", slower=10.0)
    moved = {"half_fall": slow["half_fall"]._replace(log_lr=slow["half_fall"].log_lr - 0.71)}
    found = [estimate(each) for each in (quick, moved)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1].log_lr == pytest.approx(found[0].log_lr, abs=1e-9)


def test_the_class_of_the_optimizer_counts_as_weak_evidence() -> None:
    """It moves an estimate half a decade away by less than half of that, and makes it surer."""
    away = PRIOR_LOG_LRS[SGD] - 0.5
    alone, with_prior = estimate(at_best(away)), estimate(at_best(away), optimizer=SGD)
    assert alone is not None
    assert with_prior is not None
    assert away + 0.1 < with_prior.log_lr < away + 0.3
    assert with_prior.error < alone.error
    assert 0.3 < with_prior.weights["prior"] < 0.6


def test_the_class_of_the_optimizer_gives_way_to_clear_evidence() -> None:
    """A model whose best LR lies three decades below what is usual: a loss of another scale, say."""
    found = estimate(at_best(PRIOR_LOG_LRS[SGD] - 3.0), optimizer=SGD)
    assert found is not None
    assert found.log_lr == pytest.approx(PRIOR_LOG_LRS[SGD] - 3.0, abs=0.3)


@pytest.mark.parametrize(
    ("training", "decades", "error"),
    [
        (Training(), 0.0, 0.3),
        (Training(num_steps=400), 0.0, 0.3),
        (Training(num_steps=4000), -0.35, math.hypot(0.3, 0.25)),
        (Training(num_steps=40), 0.35, math.hypot(0.3, 0.25)),
        (Training(num_steps=400, schedule="cosine"), 0.36, math.hypot(0.3, 0.18)),
        (Training(num_steps=40_000, schedule="linear"), -0.34, math.hypot(0.3, 0.5, 0.18)),
    ],
)
def test_a_longer_training_wants_less_and_a_decay_allows_more(training: Training, decades: float, error: float) -> None:
    """What is not known of it widens the interval."""
    found = for_training(Estimate(-2.0, 0.3, {"minimum": 1.0}, {"minimum": -2.5}), training)
    assert found.log_lr == pytest.approx(-2.0 + decades)
    assert found.log_lrs == pytest.approx({"minimum": -2.5 + decades})
    assert found.error == pytest.approx(error)


@pytest.mark.parametrize(("epoch_steps", "num_steps"), [(None, 400), (3, 400), (40, 400), (100, 1000), (10**6, 5000)])
def test_a_training_of_unknown_length_is_ten_epochs(epoch_steps: int | None, num_steps: int) -> None:
    """Within the lengths that were measured; what was told stands."""
    assert with_length(Training(), epoch_steps=epoch_steps) == Training(num_steps=num_steps, is_assumed=True)
    told = Training(num_steps=7, schedule="cosine")
    assert with_length(told, epoch_steps=epoch_steps) == told


@PROPERTY
@given(
    shift=st.floats(-6, 6),
    logs=st.lists(st.floats(-6, 0), min_size=5, max_size=5),
    errors=st.lists(st.floats(0, 2), min_size=5, max_size=5),
)
def test_estimate_follows_the_unit_of_the_lr(shift: float, logs: list[float], errors: list[float]) -> None:
    """Without a class of the optimizer, decades are decades."""
    here = {name: Landmark(log, e, 12.0) for name, log, e in zip(NAMES, logs, errors, strict=True)}
    there = {name: landmark._replace(log_lr=landmark.log_lr + shift) for name, landmark in here.items()}
    first, second = estimate(here), estimate(there)
    assert first is not None
    assert second is not None
    assert second.log_lr == pytest.approx(first.log_lr + shift, abs=1e-6)
    assert second.error == pytest.approx(first.error, rel=1e-6)


@pytest.mark.parametrize("curvatures", [(1.0, 10.0), (0.1, 1.0, 10.0, 100.0)])
def test_more_steps_leave_the_estimate_where_it_is(curvatures: tuple[float, ...]) -> None:
    """Gradient descent on a quadratic, 50 to 1,000 steps over 8 decades: half a decade between them at most.

    The median of three fell by 1.3 decades from 50 to 2,000 steps.
    """
    found = []
    for num_steps in (50, 100, 200, 400, 1000):
        lrs, point, scale = sweep_lrs(num_steps), np.ones(len(curvatures)), np.array(curvatures)
        random, losses, norms = np.random.default_rng(0), [], []
        for lr in lrs:
            gradient = scale * (point + random.normal(0, 0.1, len(point)))
            losses.append(float(np.sum(scale * point**2) / 2 + random.normal(0, 0.02)))
            norms.append(float(np.linalg.norm(gradient)))
            point = point - lr * gradient
            if losses[-1] > 1e3 * losses[0]:
                break
        curve = curve_from_steps(records(lrs[: len(losses)], np.array(losses), grad_norms=np.array(norms)), beta=0.9)
        assert curve is not None
        best = estimate(landmarks(curve))
        assert best is not None
        found.append(best.log_lr)
    assert np.ptp(found) < 0.5
