"""Hugging Face's Trainer is swept as it trains, and restored."""

from __future__ import annotations

import csv
import itertools
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import SequentialSampler, Subset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lrrunner.core.batch_plan import BatchPlan, micro_batches
from lrrunner.integrations.transformers import range_test
from lrrunner.tasks.data import language_batch, text
from lrrunner.training.state.snapshot import seed_rngs
from tests.integration.launching import NO_TRACKING, launch
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.trainings import digest, forget_accelerate
from tests.unit.library.guide import blocks

ROOT = Path(__file__).resolve().parents[2]

CHECKPOINTING = (
    f"{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"
)
"""Its name depends on the version of transformers."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No report, no state of Accelerate in the next test, no environment of a launcher."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    transformers.utils.logging.set_verbosity_error()
    yield
    forget_accelerate()


SPECIAL = {"bos_token_id": None, "eos_token_id": None}
"""No special tokens."""


class Ordered(Trainer):
    """Reads its training set in order."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        dataset: Any = self.train_dataset
        return SequentialSampler(dataset)


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    """The model of experiment=hf_gpt2_tiny, with the same initial weights."""
    seed_rngs(0)
    sizes: dict[str, Any] = {"vocab_size": 128, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    no_dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **(no_dropout | SPECIAL | changes)))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(**(settings | changes))


def windows() -> Any:
    return text(root=None, split="train", context_length=64)


def padded_batch(examples: Any) -> dict[str, torch.Tensor]:
    """Examples of unequal lengths: the losses of some labels do not count."""
    batch = language_batch(examples)
    labels = batch["labels"].clone()
    for i, row in enumerate(labels):
        row[8 + 7 * i :] = -100
    return batch | {"labels": labels}


class Masked:
    """Replaces tokens of padded batches by random ones, from its own generator; remembers what it has read."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.order: list[int] = []

    def __call__(self, examples: Any) -> dict[str, torch.Tensor]:
        batch = padded_batch(examples)
        self.order.append(int(batch["input_ids"].sum()))
        ids = batch["input_ids"]
        noise = torch.randint(0, 128, ids.shape, generator=self.generator)
        return batch | {"input_ids": torch.where(noise < 20, noise, ids)}


def test_the_trainer_and_the_command_line_suggest_the_same_lr(tmp_path: Path) -> None:
    """The same model, data, order and optimizer must not give another LR."""
    same_training: dict[str, Any] = {"training_steps": 400, "schedule": "constant", "warmup_steps": 0}
    run = launch(
        tmp_path,
        "experiment=hf_gpt2_tiny",
        "sweep.auto_range=false",
        "optimizer.weight_decay=0",
        "train.num_steps=400",
        *NO_TRACKING,
    )
    assert run.code == 0, run.err
    by_command = run.read("suggestion.json")
    plan = BatchPlan(dataset_size=len(windows()), global_batch_size=32, world_size=1, accumulation_steps=1)
    order = itertools.chain.from_iterable(itertools.islice(micro_batches(plan, seed=0, repeat=0, rank=0), 100))
    trainer = Ordered(
        model=gpt2(),
        args=arguments(tmp_path / "out", weight_decay=0.0, optim="adamw_torch"),
        data_collator=language_batch,
        train_dataset=Subset(windows(), list(order)),
    )
    # clipped by default, and for the trainer's own training
    result = range_test(trainer, auto_range=False, max_grad_norm=None, **same_training)
    by_hand = [float(row["loss"]) for row in csv.DictReader((run.run / "records.csv").read_text().splitlines())]
    np.testing.assert_allclose([step.loss for step in result.steps][:60], by_hand[:60], rtol=1e-4)
    assert result.suggestion.lr is not None
    steps_apart = abs(math.log10(result.suggestion.lr / by_command["lr"])) / (8 / 99)
    assert steps_apart <= 1, (result.suggestion.lr, by_command["lr"])
    assert result.global_batch_size == 32
    trainer.args.learning_rate = result.suggestion.lr
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    assert trainer.optimizer.param_groups[0]["lr"] == result.suggestion.lr


class TrlLike(Trainer):
    """Meters like those of TRL's trainers: lists by mode, averaged over ranks into each log, and running totals."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **settings: Any) -> Any:
        loss = super().compute_loss(model, inputs, *arguments, **settings)
        mode = "train" if self.model is not None and self.model.training else "eval"
        num_tokens = torch.tensor(inputs["input_ids"].numel())
        total = int(self.accelerator.gather_for_metrics(num_tokens).sum())
        if mode == "train":
            self._total_train_tokens += total
        self._metrics[mode]["num_tokens"].append(float(self._total_train_tokens))
        return loss

    def log(self, logs: dict[str, float], *arguments: Any, **settings: Any) -> None:
        mode = "train" if self.model is not None and self.model.training else "eval"
        means = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        super().log({**logs, **means}, *arguments, **settings)
        self._metrics[mode].clear()


class Meter(TrainerCallback):
    """Accumulates what it is told."""

    def __init__(self) -> None:
        self.num_steps, self.logged = 0, [("begin", 0.0)]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.num_steps += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logged.append(("loss", logs.get("loss", 0.0)))


def untimed(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A trainer's logs without seconds and rates."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in log_history
    ]


def trained(
    folder: Path, *, sweep: bool, kind: type[Trainer] = Trainer, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[dict[str, Any], Any]:
    """State after a training with dropout, accumulation and unequal numbers of tokens. Every rank must call this."""
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    collator, meter = Masked(), Meter()
    trainer = kind(
        model=gpt2(resid_pdrop=0.1),
        args=arguments(
            folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4, warmup_steps=2, **changes
        ),
        data_collator=collator,
        train_dataset=Subset(windows(), range(64)),
        eval_dataset=Subset(windows(), range(64, 80)),
        callbacks=[meter],
    )
    assert trainer.model is not None
    before = (vars(trainer.model).keys() | set(), trainer.optimizer, len(trainer.accelerator._models))
    settings: dict[str, Any] = {"num_steps": 12, "start_lr": 1e-6, "auto_range": False} | (options or {})
    result = range_test(trainer, **settings) if sweep else None
    assert before == (vars(trainer.model).keys() | set(), trainer.optimizer, len(trainer.accelerator._models))
    trainer.train()
    assert trainer.optimizer is not None
    state = {
        "model": digest([*trainer.model.parameters(), *trainer.model.buffers()]),
        "optimizer": digest([value for state in trainer.optimizer.state.values() for value in state.values()]),
        "logs": untimed(trainer.state.log_history),
        "order": collator.order,
        "collator": collator.generator.get_state().tolist(),
        "meter": vars(meter),
        "meters": repr(vars(trainer).get("_metrics")),
        "rng": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "steps": (trainer.state.global_step, trainer.state.epoch, trainer.accelerator.step),
    }
    forget_accelerate()
    return state, result


@pytest.mark.parametrize("changes", [{}, {"bf16": True, CHECKPOINTING: True}], ids=["plain", "bf16"])
def test_training_afterwards_is_the_same_to_the_last_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Rows 15, 16, 38: optimizer, schedule, order, RNG, and the model's forward are restored."""
    without, _ = trained(tmp_path, sweep=False, **changes)
    with_sweep, result = trained(tmp_path, sweep=True, **changes)
    assert with_sweep == without
    assert len(without["order"]) >= 8
    assert result.job.train.accumulation_steps == 2
    assert result.job.train.max_grad_norm == 1.0
    assert result.global_batch_size == 8
    labels_that_count = 2 * sum(7 + 7 * i for i in range(4))  # nothing predicts the first
    assert result.steps[0].num_items == labels_that_count


EVALUATING: dict[str, Any] = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}

PRECEDING: dict[str, dict[str, Any]] = {
    "sweep": {"repeats": 2},
    "confirmation": {"confirm": 40, "num_steps": 30},
    "validation loss": {"monitor": "val", "num_steps": 20, "noise_scale": True},
}


def trained_after_each(folder: Path) -> list[dict[str, Any]]:
    """States after a training without a range test and after one of each kind, by a trainer with meters of its own."""
    transformers.utils.logging.set_verbosity_error()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    without, _ = trained(folder, sweep=False, kind=TrlLike, **EVALUATING)
    found = [trained(folder, sweep=True, kind=TrlLike, options=o, **EVALUATING)[0] for o in PRECEDING.values()]
    return [without, *found]


@pytest.mark.parametrize("world_size", [1, 2])
def test_meters_logs_and_evaluations_are_the_same_after_any_range_test(tmp_path: Path, world_size: int) -> None:
    """What a trainer has accumulated, also on two ranks, and also by evaluating."""
    for without, *others in on_ranks(trained_after_each, world_size, tmp_path / "ranks", tmp_path):
        logged = [entry["num_tokens"] for entry in without["logs"] if "loss" in entry]
        tokens_of_a_step = 2 * 4 * 64 * world_size
        assert logged == [tokens_of_a_step * (step + 0.75) for step in range(4)], "the mean of two micro-batches"
        assert sum("eval_loss" in entry for entry in without["logs"]) == 2
        for name, state in zip(PRECEDING, others, strict=True):
            assert state == without, name


def test_the_swept_gradient_is_the_trainers_own(tmp_path: Path) -> None:
    """Losses are means over the tokens of all micro-batches, so the norm of the first step is the same."""
    norms = []
    for sweep in (False, True):
        seed_rngs(0)
        sizes: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        trainer = Ordered(
            model=LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)),
            args=arguments(
                tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1, logging_steps=1
            ),
            data_collator=padded_batch,
            train_dataset=Subset(windows(), range(16)),
        )
        if sweep:
            result = range_test(trainer, num_steps=2, start_lr=1e-9, end_lr=1e-8, auto_range=False)
            norms.append(result.steps[0].grad_norm)
        else:
            trainer.train()
            norms.append(trainer.state.log_history[0]["grad_norm"])
        forget_accelerate()
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_the_documented_lines_apply_also_to_an_existing_optimizer(tmp_path: Path) -> None:
    """The trainer constructs its optimizer only once, and reads its learning_rate only then."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("A `transformers.Trainer`")[2]
    readme = section.partition("```python\n")[2].partition("```")[0]
    (guide,) = blocks("A transformers.Trainer")
    for given, lines in ((False, readme), (True, readme), (True, guide)):
        model = gpt2()
        trainer = Trainer(
            model=model,
            args=arguments(tmp_path, per_device_train_batch_size=8, max_steps=2, lr_scheduler_type="constant"),
            data_collator=language_batch,
            train_dataset=Subset(windows(), range(64)),
            optimizers=(torch.optim.AdamW(model.parameters(), lr=1e-4) if given else None, None),
        )
        scope: dict[str, Any] = {"trainer": trainer}
        exec(lines, scope)
        lr = scope["result"].suggestion.lr
        assert lr is not None
        assert trainer.optimizer is not None
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx(
            [lr] * len(trainer.optimizer.param_groups)
        )
        forget_accelerate()


def test_what_cannot_be_swept_is_refused(tmp_path: Path) -> None:
    """Before anything is prepared."""
    trainer = Trainer(model=gpt2(), args=arguments(tmp_path))
    with pytest.raises(ValueError, match=r"trainer\.train_dataset must be a dataset, got None"):
        range_test(trainer)
    trainer.train_dataset = Subset(windows(), range(40))
    trainer.data_collator = language_batch
    with pytest.raises(ValueError, match=r"num_steps must be at least 2, got 1"):
        range_test(trainer, num_steps=1)
    assert trainer.optimizer is None


class Metered(Trainer):
    """Keeps meters of its own, as TRL's trainers do."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.meters: dict[str, list[float]] = {"loss": []}
        self.num_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **settings: Any) -> Any:
        loss = super().compute_loss(model, inputs, *arguments, **settings)
        self.meters["loss"].append(0.0)
        self.num_tokens += inputs["input_ids"].numel()
        return loss


def test_a_trainers_own_meters_do_not_remember_the_sweep(tmp_path: Path) -> None:
    """TRL's num_tokens was 5824 in the first log instead of 64."""
    trainer = Metered(
        model=gpt2(), args=arguments(tmp_path), data_collator=language_batch, train_dataset=Subset(windows(), range(64))
    )
    meters = trainer.meters
    range_test(trainer, num_steps=20)
    assert trainer.num_tokens == 0
    assert trainer.meters is meters
    assert meters == {"loss": []}


PLANS: dict[str, tuple[dict[str, Any], tuple[int, str, int], str]] = {
    "steps": ({"max_steps": 70, "warmup_steps": 7}, (70, "linear", 7), ""),
    "epochs": ({"num_train_epochs": 2.5, "gradient_accumulation_steps": 3}, (8, "linear", 0), ""),
    "cosine": ({"max_steps": 9, "lr_scheduler_type": "cosine", "warmup_steps": 20}, (9, "cosine", 8), ""),
    "constant": ({"max_steps": 9, "lr_scheduler_type": "constant", "warmup_steps": 2}, (9, "constant", 0), ""),
    "warm-up": (
        {"max_steps": 9, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        (9, "constant", 2),
        "",
    ),
    "nearest": (
        {"max_steps": 9, "lr_scheduler_type": "polynomial"},
        (9, "linear", 0),
        "the schedule of the training, polynomial, was taken for linear, the nearest that lrrunner has",
    ),
}


@pytest.mark.parametrize(("changes", "plan", "remark"), PLANS.values(), ids=list(PLANS))
def test_the_suggestion_is_for_the_training_that_the_trainer_is_set_up_for(
    tmp_path: Path, changes: dict[str, Any], plan: tuple[int, str, int], remark: str
) -> None:
    """Its length in optimizer steps, its schedule and its warm-up."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 4} | changes
    trainer = Trainer(
        model=gpt2(),
        args=arguments(tmp_path, **settings),
        data_collator=language_batch,
        train_dataset=Subset(windows(), range(32)),
    )
    result = range_test(trainer, num_steps=2, auto_range=False)
    train = result.job.train
    assert (train.num_steps, train.schedule.value, train.warmup_steps) == plan
    assert result.suggestion.reason.endswith(remark)
    assert ("the schedule of the training" in result.suggestion.reason) == bool(remark)


def test_what_the_caller_says_about_the_training_counts(tmp_path: Path) -> None:
    """A scheduler of their own can have any shape."""
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=9, warmup_steps=3),
        data_collator=language_batch,
        train_dataset=Subset(windows(), range(32)),
        optimizers=(optimizer, scheduler),
    )
    reason = range_test(trainer, num_steps=2, auto_range=False).suggestion.reason
    assert (
        "the schedule of the training, StepLR of your own, was taken for constant: pass schedule if it is not" in reason
    )
    result = range_test(trainer, num_steps=2, auto_range=False, schedule="cosine", training_steps=50)
    assert "StepLR" not in result.suggestion.reason
    assert (result.job.train.num_steps, result.job.train.schedule.value) == (50, "cosine")


def test_the_scheduler_of_an_earlier_training_is_the_trainers_own(tmp_path: Path) -> None:
    """It stays on the trainer, but is made anew by the next ``train``."""
    trainer = Trainer(
        model=gpt2(),
        args=arguments(tmp_path, per_device_train_batch_size=4, max_steps=2, lr_scheduler_type="cosine"),
        data_collator=language_batch,
        train_dataset=Subset(windows(), range(32)),
    )
    trainer.train()
    result = range_test(trainer, num_steps=2, auto_range=False)
    assert result.job.train.schedule.value == "cosine"
    assert "schedule of the training" not in result.suggestion.reason


def validated(folder: Path) -> tuple[list[float | None], float, str, int]:
    """The monitored loss of a model that hardly moves, that of ``evaluate``, what trials compare, and their number."""
    transformers.utils.logging.set_verbosity_error()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    seed_rngs(0)
    sizes: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    trainer = Trainer(
        model=LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_dropout=0.5)),
        args=arguments(
            folder,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=8,
            gradient_accumulation_steps=2,
            max_steps=100,
        ),
        data_collator=language_batch,
        train_dataset=Subset(windows(), range(64)),
        eval_dataset={"a": Subset(windows(), range(64, 96)), "b": Subset(windows(), range(8))},
    )
    result = range_test(trainer, confirm=60, num_steps=30, start_lr=1e-5, auto_range=False)
    assert "the validation loss is that of eval_dataset['a'], the first of 2" in result.suggestion.reason
    assert result.confirmation is not None
    unmoved: dict[str, Any] = {"start_lr": 1e-12, "end_lr": 1e-11, "num_steps": 20, "auto_range": False}
    monitored = range_test(trainer, monitor="val", val_batches=4, **unmoved)
    evaluated = trainer.evaluate()["eval_a_loss"]
    return [step.val_loss for step in monitored.steps], evaluated, result.confirmation.monitored, len(result.trials)


@pytest.mark.parametrize("world_size", [1, 2])
def test_confirmation_and_monitoring_evaluate_the_eval_dataset(tmp_path: Path, world_size: int) -> None:
    """In eval mode, without what accumulation does to a loss."""
    for losses, evaluated, monitored, num_trials in on_ranks(validated, world_size, tmp_path / "ranks", tmp_path):
        assert losses == pytest.approx([evaluated] * 20, rel=1e-5)
        assert monitored == "validation loss"
        assert num_trials >= 2


def test_monitoring_without_a_validation_set_is_refused(tmp_path: Path) -> None:
    """The message names the trainer's argument."""
    trainer = Trainer(model=gpt2(), args=arguments(tmp_path), train_dataset=Subset(windows(), range(64)))
    with pytest.raises(ValueError, match=r'trainer\.eval_dataset must be a dataset for monitor="val", got None'):
        range_test(trainer, monitor="val")
