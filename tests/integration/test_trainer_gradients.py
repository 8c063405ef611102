"""The gradients of a sweep are those of the Trainer's own ``train``, step by step, while the parameters move."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, Trainer

from lrrunner.integrations.transformers import range_test
from lrrunner.training.state.snapshot import seed_rngs
from tests.integration.test_transformers import Ordered, arguments, quiet
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.trainings import forget_accelerate

__all__ = ["quiet"]  # a fixture

NUM_STEPS = 4
LRS = torch.linspace(0.05, 0.5, NUM_STEPS, dtype=torch.float64).tolist()


class Rows(Dataset[Any]):
    """Token ids and a class."""

    ids = torch.randint(5, 60, (1024, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": (self.ids[index, 0] > 32).long()}


class Texts(Rows):
    """Token ids, of which unequal numbers count: ranks and micro-batches weigh differently."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.ids[index]
        labels = ids.clone()
        labels[3 + index * 7 % 13 :] = -100
        return {"input_ids": ids, "labels": labels}


class PartlyLabelled(Rows):
    """Classes under two names; under ``labels`` the first batch of rank 1 has none that counts."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        return {**row, "classes": row["labels"], "labels": torch.tensor(-100) if 4 <= index < 8 else row["labels"]}


class OwnLoss(Ordered):
    """A compute_loss that knows nothing of item counts; over the last dimension, of rows or tokens."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **_: Any) -> Any:
        logits = model(input_ids=inputs["input_ids"]).logits
        return nn.functional.cross_entropy(logits.flatten(0, -2), inputs["labels"].flatten())


def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """A ``compute_loss_func`` that needs the number of items."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


class OwnFunction(Ordered):
    """With a loss as an argument."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **(settings | {"compute_loss_func": summed}))


class ByClass(Ordered):
    """A loss that does not read the labels that a Trainer counts."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **_: Any) -> Any:
        return nn.functional.cross_entropy(model(input_ids=inputs["input_ids"]).logits, inputs["classes"])


def classifier() -> BertForSequenceClassification:
    seed_rngs(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    no_dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **no_dropout, intermediate_size=64))


def causal_lm() -> LlamaForCausalLM:
    seed_rngs(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64))


class Cell(NamedTuple):
    """One training."""

    model: Any
    dataset: type[Rows]
    trainer: type[Trainer]
    changes: dict[str, Any]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4},
    "clipping": {"max_grad_norm": 0.05},
    "both": {"gradient_accumulation_steps": 4, "max_grad_norm": 0.05},
}
SMOOTHED = {"label_smoothing_factor": 0.1}

CELLS = {
    f"{model.__name__}-{kind}-{setting}": Cell(model, dataset, trainer, changes | more)
    for model, dataset in ((classifier, Rows), (causal_lm, Texts))
    for kind, trainer, more in (("loss", Ordered, {}), ("smoothing", Ordered, SMOOTHED), ("own", OwnLoss, {}))
    for setting, changes in SETTINGS.items()
}
CELLS |= {
    f"causal_lm-{name}-{setting}": Cell(causal_lm, Texts, trainer, changes | more)
    for name, trainer, more in (
        ("by rank", Ordered, {"average_tokens_across_devices": False}),
        ("function", OwnFunction, {}),
    )
    for setting, changes in SETTINGS.items()
    if name != "by rank" or "gradient_accumulation_steps" not in changes
}
ALL_CELLS = CELLS | {"partly labelled": Cell(classifier, PartlyLabelled, ByClass, {"remove_unused_columns": False})}
KINDS = sorted({name.rpartition("-")[0] or name for name in ALL_CELLS})


def trainer_of(folder: Path, cell: Cell, *, scheduled: bool) -> Trainer:
    """With SGD, whose steps show the size of the gradient, at the LRs of the sweep."""
    model = cell.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: LRS[min(step, NUM_STEPS - 1)])
    settings: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": NUM_STEPS, "logging_steps": 1}
    settings |= {"max_grad_norm": 0.0} | cell.changes
    return cell.trainer(
        model=model,
        args=arguments(folder, **settings),
        train_dataset=cell.dataset(),
        optimizers=(optimizer, scheduler if scheduled else None),
    )


def gradient_norms(folder: Path, cell: Cell) -> tuple[list[float], list[float]]:
    """Those of a sweep and of ``train``, before clipping, step by step, on the same data."""
    result = range_test(
        trainer_of(folder, cell, scheduled=False),
        start_lr=LRS[0],
        end_lr=LRS[-1],
        num_steps=NUM_STEPS,
        mode="linear",
        auto_range=False,
    )
    forget_accelerate()
    trained = trainer_of(folder, cell, scheduled=True)
    trained.train()
    forget_accelerate()
    logs = [log["grad_norm"] for log in trained.state.log_history if "grad_norm" in log]
    return [step.grad_norm for step in result.steps], logs


@pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
def test_every_step_has_the_gradient_of_train(tmp_path: Path, cell: Cell) -> None:
    """Scale, clipping and accumulation of the loss: a later gradient shows each earlier step."""
    swept, trained = gradient_norms(tmp_path, cell)
    assert len(trained) == NUM_STEPS
    assert min(trained) > 0.05, "clipped where it is"
    assert swept == pytest.approx(trained, rel=1e-4)


def norms_of(kind: str, folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Of the cells whose names begin so."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    transformers.utils.logging.set_verbosity_error()
    cells = {name: cell for name, cell in ALL_CELLS.items() if name.startswith(kind)}
    return {name: gradient_norms(folder, cell) for name, cell in cells.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_the_gradient_of_train_on_two_ranks(tmp_path: Path, kind: str) -> None:
    """It was half as large, so that an SGD's LR came out twice too large, and max_grad_norm clipped elsewhere.

    Where the first batch of one rank does not show whether the loss uses the number of items, the other rank does.
    """
    for rank in on_ranks(norms_of, 2, tmp_path / "ranks", kind, tmp_path):
        assert rank
        for name, (swept, trained) in rank.items():
            assert swept == pytest.approx(trained, rel=1e-4), name


def accumulated_by_rank(folder: Path) -> str:
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    cell = CELLS["causal_lm-by rank-plain"]
    changes = cell.changes | {"gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match="average_tokens_across_devices") as caught:
        range_test(trainer_of(folder, cell._replace(changes=changes), scheduled=False))
    return str(caught.value)


def test_ranks_that_accumulate_with_weights_of_their_own_are_refused(tmp_path: Path) -> None:
    """Their tokens would have to be counted in advance, as ``train`` does."""
    message = (
        "trainer.args.average_tokens_across_devices must be True with gradient accumulation on several ranks, got False"
    )
    assert all(message in found for found in on_ranks(accumulated_by_rank, 2, tmp_path / "ranks", tmp_path))
