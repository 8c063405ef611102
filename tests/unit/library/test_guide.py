"""The guide's blocks run as written, one after another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import lrrunner
from tests.multiprocess.trainings import forget_accelerate
from tests.unit.library.guide import GUIDE, blocks


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    forget_accelerate()


class Bigram(nn.Module):
    """Scores of the next token: (batch, time) -> (batch, time, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(ids)
        return scores


def test_the_call_its_options_and_its_result_are_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user copies these lines."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    (without_accelerate,) = blocks("Without Accelerate")
    exec(without_accelerate, scope)
    assert scope["optimizer"].param_groups[0]["lr"] == scope["result"].suggestion.lr
    for confirmed in blocks("Validation loss, confirmation, noise scale"):
        exec(confirmed, scope)
        assert "runs compared on the" in scope["result"].suggestion.reason
    (with_accelerate,) = blocks("With Accelerate")
    exec(with_accelerate, scope)
    assert scope["result"].job.train.accumulation_steps == 2
    assert scope["result"].global_batch_size == 64
    scope["axes"] = Figure().subplots()
    exec(blocks("The result")[0], scope)
    assert scope["axes"].get_legend() is not None
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert (tmp_path / "runs" / "my-lr" / "suggestion.json").exists()


def test_a_criterion_is_wrapped_as_written() -> None:
    """The criterion alone is refused."""
    scope: dict[str, Any] = {"torch": torch}
    exec(blocks("The loss function")[0], scope)
    batch = torch.zeros(4, 16), torch.zeros(4, dtype=torch.long)
    assert scope["loss_fn"](nn.Linear(16, 2), batch).ndim == 0


def test_the_loss_per_token_counts_its_tokens() -> None:
    """Padding weighs nothing."""
    scope: dict[str, Any] = {"torch": torch}
    _, definition = blocks("The loss function")
    exec(definition, scope)
    ids = torch.arange(12).reshape(2, 6)
    labels = ids.masked_fill(ids > 8, -100)
    model = Bigram()
    result = lrrunner.range_test(
        None,
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [{"input_ids": ids, "labels": labels}],
        scope["loss_per_token"],
        num_steps=3,
        auto_range=False,
    )
    assert [step.num_items for step in result.steps] == [9.0, 9.0, 9.0]


def test_every_block_is_run_by_some_test_and_every_file_exists() -> None:
    """The rest is in tests/integration: test_library_mlflow, test_transformers, test_lightning."""
    headings = {
        "Without Accelerate": 1,
        "With Accelerate": 1,
        "Validation loss, confirmation, noise scale": 2,
        "The loss function": 2,
        "The result": 2,
        "A transformers.Trainer": 1,
        "A Lightning module": 1,
    }
    assert {heading: len(blocks(heading)) for heading in headings} == headings
    text = GUIDE.read_text(encoding="utf-8")
    assert text.count("```python\n") == sum(headings.values())
    package = GUIDE.parent.parent
    places = re.findall(r"`([a-z]+/(?:[a-z_]+\.py)?)`", text.partition("## State outside of the arguments")[2])
    assert len(places) > 10
    assert all((package / place).exists() for place in places)
