"""scripts/benchmarks/steps_figure.py: the picture of regret against steps."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "scripts/benchmarks"


@pytest.fixture(scope="module")
def steps_figure() -> Iterator[Any]:
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("steps_figure")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("oracle", "steps_figure")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.0, 5.0], [0.0, 5.0]),
        ([0.0, 0.0], [-0.5, 0.5]),
        ([0.0, 0.1, 5.0], [-0.45, 0.55, 5.0]),
        ([0.0, 1.2, 1.2], [-0.2, 0.8, 1.8]),
    ],
)
def test_labels_move_apart_to_both_sides(steps_figure: Any, heights: list[float], expected: list[float]) -> None:
    """Also where a label that gave way comes too near to the next one."""
    assert steps_figure.spread(heights, 1.0) == pytest.approx(expected)


def test_every_way_to_find_an_lr_is_labelled_once(steps_figure: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever the values: all the same, or a rule that beats the best LR and has no logarithm."""
    rules = [rule for series in steps_figure.SERIES for rule in series.rules.values()]
    regrets = {rule: {"a": np.full(201, 0.1), "b": np.full(201, 0.1)} for rule in rules}
    for rule in steps_figure.LEVELS.values():
        regrets[rule] = {"a": np.full(201, -0.1), "b": np.full(201, -0.1)}
    drawn: list[Any] = []
    monkeypatch.setattr(steps_figure.plt, "close", drawn.append)
    steps_figure.draw(regrets, 0.01, tmp_path / "steps.png")
    (figure,) = drawn
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert sorted(text.get_text() for text in texts) == sorted(
        [*(series.label for series in steps_figure.SERIES), *steps_figure.LEVELS, "noise floor"]
    )
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert (tmp_path / "steps.png").stat().st_size > 0
