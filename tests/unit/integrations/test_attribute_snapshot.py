"""Meters, logs and counters of other libraries' objects are restored."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Any

import pytest
import torch

from lrrunner.integrations.attribute_snapshot import MAX_ITEMS, AttributeSnapshot, attributes_preserved


class Trainer:
    """Attributes as trainers have them."""

    def __init__(self) -> None:
        self.num_tokens = 64
        self.metrics: defaultdict[str, list[float]] = defaultdict(list, {"loss": [1.0]})
        self.logs = {"prompts": deque([1, 2], maxlen=2), "counts": Counter(a=1), "seen": {3}}
        self.total = torch.tensor([1.0, float("nan")])
        self.helper = object()


def change(trainer: Any) -> None:
    trainer.num_tokens = 0
    trainer.metrics["loss"].append(2.0)
    trainer.metrics["entropy"].append(3.0)
    trainer.logs["prompts"].append(9)
    trainer.logs["counts"]["b"] += 1
    trainer.logs["seen"].add(4)
    trainer.logs["new"] = []
    trainer.total.add_(1.0)
    trainer.helper = None
    trainer.added = True


def test_attributes_are_restored_in_the_same_objects() -> None:
    """Another object may refer to the list that a meter appends to."""
    trainer = Trainer()
    metrics, losses, total, helper = trainer.metrics, trainer.metrics["loss"], trainer.total, trainer.helper
    snapshot = AttributeSnapshot([trainer, trainer])
    change(trainer)
    snapshot.restore()
    assert trainer.num_tokens == 64
    assert trainer.metrics is metrics
    assert dict(metrics) == {"loss": [1.0]}
    assert metrics["loss"] is losses
    assert metrics["missing"] == [], "still a defaultdict"
    assert trainer.logs == {"prompts": deque([1, 2]), "counts": Counter(a=1), "seen": {3}}
    prompts: Any = trainer.logs["prompts"]
    assert prompts.maxlen == 2
    assert trainer.total is total
    assert total[0] == 1.0
    assert total[1].isnan()
    assert trainer.helper is helper
    assert not hasattr(trainer, "added")


def test_attributes_are_restored_after_an_exception_except_ignored_ones() -> None:
    """The sweep restores some attributes itself."""
    trainer = Trainer()
    with pytest.raises(RuntimeError), attributes_preserved([trainer], ignored=["num_tokens"]):  # noqa: PT012
        change(trainer)
        raise RuntimeError
    assert trainer.num_tokens == 0
    assert dict(trainer.metrics) == {"loss": [1.0]}


def test_data_is_restored_by_reference() -> None:
    """A copy of a dataset would double its memory."""
    trainer = Trainer()
    trainer.samples = [0] * (MAX_ITEMS + 1)  # type: ignore[attr-defined]
    with attributes_preserved([trainer]):
        trainer.samples[0] = 1  # type: ignore[attr-defined]
    assert trainer.samples[0] == 1  # type: ignore[attr-defined]
