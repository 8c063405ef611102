"""LR against a swept number: the exponent and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from lrrunner.core.power_law import power_law

BATCH = np.array([16.0, 64.0, 256.0, 1024.0])


def test_an_exact_square_root_law_is_found() -> None:
    """lr = 0.01 sqrt(x), without noise: the interval closes."""
    law = power_law(BATCH, 0.01 * np.sqrt(BATCH), ["only"] * 4)
    assert law is not None
    assert law.exponent == pytest.approx(0.5)
    assert law.interval == pytest.approx((0.5, 0.5), abs=1e-6)
    assert law.scales == pytest.approx({"only": 0.01})


def test_the_interval_is_the_textbooks() -> None:
    """Worked by hand: x = 1, e, e**2 and log lr = 0, 2, 1 give exponent 0.5 +- 12.706 * 0.8660."""
    law = power_law(np.exp([0.0, 1.0, 2.0]), np.exp([0.0, 2.0, 1.0]), ["only"] * 3)
    assert law is not None
    assert law.exponent == pytest.approx(0.5)
    assert law.interval == pytest.approx((0.5 - 12.706 * 0.8660254, 0.5 + 12.706 * 0.8660254))


def test_groups_share_the_exponent_and_keep_their_scales() -> None:
    """Two optimizers whose LRs differ by a factor of a hundred scale alike; pooled, the fit would be noise."""
    x = np.concatenate([BATCH, BATCH])
    lr = np.concatenate([0.001 * BATCH, 0.1 * BATCH])
    law = power_law(x, lr, ["adamw"] * 4 + ["sgd"] * 4)
    assert law is not None
    assert law.exponent == pytest.approx(1.0)
    assert law.scales == pytest.approx({"adamw": 0.001, "sgd": 0.1})
    assert str(law) == "lr ~ x^1.00 [1.00, 1.00]"


@pytest.mark.parametrize(
    ("x", "groups"),
    [([16.0, 64.0], ["a", "a"]), ([16.0, 16.0, 16.0], ["a"] * 3), ([16.0, 64.0, 256.0], ["a", "b", "c"])],
)
def test_too_little_gives_no_law(x: list[float], groups: list[str]) -> None:
    """Two points make any exponent look certain; one value has none."""
    assert power_law(np.array(x), np.ones(len(x)), groups) is None


def test_values_below_zero_are_refused() -> None:
    """A logarithm of nothing."""
    with pytest.raises(ValueError, match="above 0"):
        power_law(np.array([0.0, 1.0, 2.0]), np.ones(3), ["a"] * 3)
    with pytest.raises(ValueError, match="one length"):
        power_law(np.ones(2), np.ones(3), ["a"] * 3)
