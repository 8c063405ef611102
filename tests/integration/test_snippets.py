"""Every Python and YAML block of README.md and the guides runs as written, on one and on two ranks.

A trainer, a module or a folder that a block presumes is a stand-in for the reader's own. A block that is new, or that
moves to another section, fails the first test until some story runs it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import Subset
from transformers import Trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own imports
    import lightning.pytorch as pl

import lrrunner
from lrrunner.tasks.data import language_batch
from tests.guides import block, fenced_blocks
from tests.integration.launching import NO_TRACKING, launch
from tests.integration.test_lightning import Net
from tests.integration.test_transformers import arguments, gpt2, windows
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.trainings import forget_accelerate

README, LIBRARY = "README.md", "lrrunner/library/README.md"

OPTIONS = "Validation loss, confirmation, noise scale"

STORIES: dict[str, list[tuple[str, str, int]]] = {
    "script": [(README, "In a script", 0)],
    "library": [
        (LIBRARY, "Without Accelerate", 0),
        (LIBRARY, OPTIONS, 0),
        (LIBRARY, OPTIONS, 1),
        (LIBRARY, "With Accelerate", 0),
        (LIBRARY, "The result", 0),
        (LIBRARY, "The result", 1),
    ],
    "criterion": [(LIBRARY, "The loss function", 0)],
    "tokens": [(LIBRARY, "The loss function", 1)],
    "trainer": [(README, "In a script", 1), (LIBRARY, "A transformers.Trainer", 0)],
    "lightning": [(LIBRARY, "A Lightning module", 0)],
    "own model": [(README, "Your own model", 0)],
}
"""Name of a story -> the Python blocks that it runs, in order."""

RANKS = pytest.mark.parametrize("world_size", [1, 2])


def test_every_block_is_in_a_story() -> None:
    """And no story tells of a block that is gone."""
    told = [place for story in STORIES.values() for place in story]
    assert sorted(told) == sorted(found[:3] for found in fenced_blocks("python"))
    assert [found[:3] for found in fenced_blocks("yaml")] == [(README, "Your own model", 0)]


def on_every_rank(function: Callable[..., Any], world_size: int, folder: Path) -> list[Any]:
    """The results by rank; one rank is a process without a group, as a reader's first try."""
    return on_ranks(function, world_size, folder / "ranks", folder, group=world_size > 1)


def begin(folder: Path) -> int:
    """Enter the folder, as a new script would; returns the number of ranks."""
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    os.environ |= {"ACCELERATE_USE_CPU": "1", "ACCELERATE_MIXED_PRECISION": "no", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.chdir(folder)
    torch.manual_seed(0)
    return world_size


def script(folder: Path) -> float:
    begin(folder)
    scope: dict[str, Any] = {}
    exec(block(*STORIES["script"][0]), scope)
    lr: float = scope["result"].suggestion.lr
    assert scope["optimizer"].param_groups[0]["lr"] == lr
    assert scope["losses"]
    scope["accelerator"].free_memory()
    return lr


@RANKS
def test_the_script_of_the_readme(tmp_path: Path, world_size: int) -> None:
    """Under any launcher the same lines; every rank has the LR, also when the script is run again."""
    for _ in range(2):
        lrs = on_every_rank(script, world_size, tmp_path)
        assert len(set(lrs)) == 1


def library(folder: Path) -> list[float | None]:
    """The guide from top to bottom; on several ranks with Accelerate first, since its first section is for one."""
    world_size = begin(folder)
    without, options, interrupted, with_accelerate, result, mlflow = (block(*place) for place in STORIES["library"])
    scope: dict[str, Any] = {"axes": Figure().subplots()}
    setup, _, call = without.partition("\nresult = ")
    exec(setup if world_size > 1 else without, scope)
    assert call
    for text in [with_accelerate, options] if world_size > 1 else [options, interrupted, with_accelerate]:
        exec(text, scope)
    exec(result, scope)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    if world_size == 1:
        exec(mlflow, scope)
    scope["accelerator"].free_memory()
    found = scope["result"]
    return [found.suggestion.lr, *(step.loss for step in found.steps)]


@RANKS
def test_the_guide_of_the_library_call(tmp_path: Path, world_size: int) -> None:
    """Each section continues the one before."""
    results = on_every_rank(library, world_size, tmp_path)
    assert all(result == results[0] for result in results)
    assert len(results[0]) > 20
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert (tmp_path / "runs" / "my-lr" / "suggestion.json").exists()
    assert (tmp_path / "mlflow.db").exists() == (world_size == 1)


def test_the_wrapped_criterion() -> None:
    """The loss of a batch (inputs, target)."""
    scope: dict[str, Any] = {"torch": torch}
    exec(block(*STORIES["criterion"][0]), scope)
    loss = scope["loss_fn"](nn.Linear(4, 2), (torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)))
    assert loss.ndim == 0
    assert loss.requires_grad


class Bigram(nn.Module):
    """Scores of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(16, 16)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.scores(ids)


def tokens(folder: Path) -> list[float]:
    world_size = begin(folder)
    scope: dict[str, Any] = {"torch": torch}
    exec(block(*STORIES["tokens"][0]), scope)
    ids = torch.arange(12).reshape(2, 6)
    model: Any = Bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if world_size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    batches = [{"input_ids": ids, "labels": ids.masked_fill(ids > 8, -100)}]
    result = lrrunner.range_test(
        None, model, optimizer, batches, scope["loss_per_token"], num_steps=3, auto_range=False
    )
    return [step.num_items for step in result.steps]


@RANKS
def test_the_loss_per_token(tmp_path: Path, world_size: int) -> None:
    """Nine of the twelve tokens of each rank count."""
    assert on_every_rank(tokens, world_size, tmp_path) == [[9.0 * world_size] * 3] * world_size


def trainers(folder: Path) -> list[float]:
    begin(folder)
    transformers.utils.logging.set_verbosity_error()
    lrs = []
    for place in STORIES["trainer"]:
        trainer = Trainer(
            model=gpt2(),
            args=arguments(folder, per_device_train_batch_size=8, max_steps=2, lr_scheduler_type="constant"),
            data_collator=language_batch,
            train_dataset=Subset(windows(), range(64)),
        )
        scope: dict[str, Any] = {"trainer": trainer}
        exec(block(*place), scope)
        lrs.append(scope["result"].suggestion.lr)
        assert trainer.optimizer is not None
        assert trainer.optimizer.param_groups[0]["lr"] == lrs[-1]
        assert trainer.state.global_step == 2
        forget_accelerate()
    return lrs


@RANKS
def test_the_trainers_of_the_guides(tmp_path: Path, world_size: int) -> None:
    """They train with the suggestion."""
    results = on_every_rank(trainers, world_size, tmp_path)
    assert all(result == results[0] for result in results)


def lightning(folder: Path) -> float:
    world_size = begin(folder)
    warnings.simplefilter("ignore")
    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    strategy = "ddp" if world_size > 1 else "auto"
    module = Net()
    trainer = pl.Trainer(accelerator="cpu", devices=world_size, strategy=strategy, max_steps=2, **off)
    scope: dict[str, Any] = {"trainer": trainer, "module": module}
    exec(block(*STORIES["lightning"][0]), scope)
    trainer.fit(module)
    assert trainer.global_step == 2
    lr: float = scope["result"].suggestion.lr
    return lr


@RANKS
def test_the_module_of_the_guide(tmp_path: Path, world_size: int) -> None:
    """It is ready to fit."""
    lrs = on_every_rank(lightning, world_size, tmp_path)
    assert len(set(lrs)) == 1
    assert lrs[0] is not None


@RANKS
def test_the_readers_own_model(tmp_path: Path, world_size: int) -> None:
    """mine.py, mine.yaml and the command below them."""
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(block(*STORIES["own model"][0]))
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(block(README, "Your own model", language="yaml"))
    (command,) = block(README, "Your own model", language="").splitlines()
    done = launch(tmp_path, *command.split()[1:], "sweep.num_steps=20", *NO_TRACKING, num_processes=world_size)
    assert done.code == 0, done.err
    assert done.read("suggestion.json")["global_batch_size"] == 256
