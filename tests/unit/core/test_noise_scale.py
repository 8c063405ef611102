"""The critical batch size: right on average, honest about its error, and none where nothing was measured."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from lrrunner.core.noise_scale import gradient_variance, noise_scale, ratio_of_means, stable_steps
from lrrunner.records import Step, Suggestion, Verdict
from tests.unit.core.curves import cosine_valley, records, sweep_lrs

SUGGESTION = Suggestion(lr=3e-3, method="auto", verdict=Verdict.OK, reason="", interval=(1e-3, 1e-2))


def test_variance_from_unequal_parts_is_unbiased() -> None:
    """Ranks hold unequal numbers of tokens: parts of 1, 3 and 4 draws from N(2, 5), weighted by their sizes."""
    rng = np.random.default_rng(0)
    sizes = np.array([1, 3, 4])
    parts = 2 + rng.standard_normal((20000, 3)) * np.sqrt(5 / sizes)
    whole = (parts * sizes).sum(axis=1) / 8
    squares = (parts**2 * sizes).sum(axis=1) / 8
    found = [gradient_variance(s, g, num_items=8, num_parts=3) for s, g in zip(squares, whole, strict=True)]
    assert np.mean(found) == pytest.approx(5, rel=0.03)
    assert math.isnan(gradient_variance(1.0, 1.0, num_items=8, num_parts=1))


@pytest.mark.parametrize(("memory", "at_least"), [(-0.3, 0.87), (0.0, 0.87), (0.5, 0.83)])
def test_nine_of_ten_intervals_hold_the_ratio(memory: float, at_least: float) -> None:
    """Neighbouring steps resemble each other; an interval that ignored it would hold half as often at 0.5."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        noise = rng.standard_normal((60, 2))
        for before, now in itertools.pairwise(noise):
            now *= math.sqrt(1 - memory**2)
            now += memory * before
        ratio = ratio_of_means([50 * (1 + 0.2 * noise[:, 0])], [1 + 0.5 * noise[:, 1]])
        hits += ratio.low <= 50 <= ratio.high
    assert at_least <= hits / 400 <= 0.97


def test_interval_has_no_upper_end_where_the_gradient_drowns_in_noise() -> None:
    """A mean squared gradient that may be 0 sets no limit to the batch size; the lower end is still known."""
    swings = np.array([3.0, -2.5] * 15) * np.random.default_rng(0).normal(1, 0.3, 30)
    ratio = ratio_of_means([np.full(30, 50.0)], [0.05 + swings])
    assert ratio.high == math.inf
    assert 10 < ratio.low < math.inf
    assert ratio_of_means([np.full(30, 50.0)], [swings - 1]).value == math.inf


def stepping(gradient_variance: float = 8.0) -> list[Step]:
    """A curve of 100 steps, lowest at 0.1, with |G|^2 = 2 and V = 8 in each, from 32 items."""
    norm = math.sqrt(2 + 8 / 32)
    return [
        dataclasses.replace(step, num_items=32.0, gradient_variance=gradient_variance, grad_norm=norm)
        for step in records(sweep_lrs(), cosine_valley(sweep_lrs()))
    ]


def test_only_steps_below_the_suggested_lrs_count_in_samples() -> None:
    """Gradients that have grown a thousandfold would outweigh all others, however few they are."""
    steps = [dataclasses.replace(step, gradient_variance=1e6) if step.lr > 1e-3 else step for step in stepping()]
    found = noise_scale(steps, SUGGESTION, beta=0.9, global_batch_size=2)  # 16 items make a sample
    assert found.critical_batch_size == pytest.approx(4 / 16)
    assert found.num_steps == 50
    assert found.last_lr == pytest.approx(9.1e-4, rel=0.01)


def test_without_a_suggestion_the_lowest_loss_is_the_limit() -> None:
    steps = stepping()
    none = dataclasses.replace(SUGGESTION, lr=None, interval=None)
    last = stable_steps(steps, none, beta=0.9)[-1].lr
    assert 0.03 < last < 0.3
    assert stable_steps([], none, beta=0.9) == []


def test_skipped_and_unmeasured_steps_are_no_points() -> None:
    """An overflowed fp16 step has no gradient; one whose parts held no items has no parts."""
    steps = stepping()
    steps[3] = dataclasses.replace(steps[3], skipped=True, gradient_variance=1e9)
    steps[5] = dataclasses.replace(steps[5], gradient_variance=math.nan)
    found = noise_scale(steps, SUGGESTION, beta=0.9, global_batch_size=32)
    assert found.critical_batch_size == pytest.approx(4.0)


def test_too_little_says_why() -> None:
    steps = stepping()
    fifth = dataclasses.replace(SUGGESTION, interval=(steps[4].lr, 1e-2))
    few = noise_scale(steps, fifth, beta=0.9, global_batch_size=32)
    assert str(few) == (
        "critical batch size: none   (8 steps below the suggested LRs are needed, got 5; lower sweep.start_lr)"
    )
    unmeasured = noise_scale(stepping(gradient_variance=math.nan), SUGGESTION, beta=0.9, global_batch_size=32)
    assert unmeasured.critical_batch_size is None
    assert "no step gave two gradients" in unmeasured.reason
