"""A Lightning module is swept as ``fit`` would train it, and is restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own imports
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import Logger

import lrrunner
from lrrunner.integrations import lightning as integration
from lrrunner.integrations.lightning import range_test
from tests.unit.library.guide import blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),  # advice about loaders and loggers
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning's own use of torch
]

ROOT = Path(__file__).resolve().parents[2]
NUM_FITTED = 20


class Net(pl.LightningModule):
    """Counts batches in Python attributes, as many modules do, and has batch norm."""

    def __init__(self, *, skip_every: int = 0, as_dict: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
        self.skip_every, self.as_dict = skip_every, as_dict
        self.num_seen = 0
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        self.num_seen += 1
        if self.skip_every and self.num_seen % self.skip_every == 0:
            return None
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return {"loss": loss} if self.as_dict else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.grad_norms.append(
            nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]).item()
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10)}

    def train_dataloader(self) -> DataLoader[Any]:
        inputs = torch.randn(2048, 20, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 32, shuffle=True)


class Validated(Net):
    """With a validation set and a schedule, and dropout, which evaluations leave out."""

    def __init__(self, schedule: Any, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.net.append(nn.Dropout(0.5))
        if not batch_norm:
            self.net[1] = nn.Identity()
        self.schedule, self.num_validated = schedule, 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [self.schedule(optimizer)]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.num_validated += 1
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def val_dataloader(self) -> DataLoader[Any]:
        inputs = torch.randn(96, 20, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 32)


class Meter(pl.Callback):
    """Accumulates, and saves what it has in checkpoints."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.num_starts = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.num_starts += 1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch_idx)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "num_starts": self.num_starts}


class MemoryLogger(Logger):
    """Keeps what it is given."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.logged.append(params)


class OwnClipping(Net):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips nothing."""


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def trainer(**changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_steps": NUM_FITTED, "logger": False}
    settings |= dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**(settings | changes))


def in_order(module: Net) -> Net:
    """The module with a loader that does not shuffle."""
    dataset = module.train_dataloader().dataset
    module.train_dataloader = lambda: DataLoader(dataset, 32)  # type: ignore[method-assign]
    return module


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)


def fitted(
    *, sweep: bool, num_devices: int = 1, options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], float | None]:
    """State after ``fit``, with or without a range test before it. Every rank must call this."""
    torch.manual_seed(1)
    module, meter, logger = Validated(cosine), Meter(), MemoryLogger()
    own = trainer(
        devices=num_devices,
        strategy="ddp" if num_devices > 1 else "auto",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        callbacks=[meter],
        logger=logger,
        log_every_n_steps=1,
        val_check_interval=8,
    )
    lr = range_test(own, module, **(options or {})).suggestion.lr if sweep else None
    assert module.num_seen == module.num_validated == 0
    assert module.losses == logger.logged == meter.batches == []
    assert meter.num_starts == 0
    own.fit(module)
    state = {
        "parameters": [p.tolist() for p in module.state_dict().values()],
        "optimizer": repr(own.optimizers[0].state_dict()),
        "losses": module.losses,
        "grad_norms": module.grad_norms,
        "rng": torch.get_rng_state().tolist(),
        "meter": meter.state_dict(),
        "logged": logger.logged,
        "metrics": {name: value.item() for name, value in own.callback_metrics.items()},
        "progress": own.fit_loop.state_dict(),
    }
    return state, lr


def test_a_sweep_before_fit_changes_no_bit_of_it() -> None:
    """Parameters, batch norm, data order, meters of the module and random numbers, to the last bit."""
    undisturbed, _ = fitted(sweep=False)
    disturbed, lr = fitted(sweep=True)
    assert disturbed == undisturbed
    for options in ({"confirm": 40, "num_steps": 30}, {"monitor": "val", "num_steps": 30, "noise_scale": True}):
        assert fitted(sweep=True, options=options)[0] == undisturbed, options
    assert "val_loss" in undisturbed["metrics"]
    assert len(undisturbed["losses"]) == len(undisturbed["meter"]["batches"]) == 2 * NUM_FITTED
    assert len(undisturbed["logged"]) >= NUM_FITTED
    assert lr is not None


def swept_with_a_skipped_batch() -> list[float]:
    """Every third batch of rank 1 has no loss."""
    torch.manual_seed(1)
    module = Net()
    own = trainer(devices=2, strategy="ddp")
    module.skip_every = 3 if own.global_rank == 1 else 0
    return [step.num_items for step in range_test(own, module, num_steps=12, auto_range=False).steps]


def test_two_ranks_of_ddp_agree_and_fit_as_without_a_sweep(tmp_path: Path) -> None:
    """Lightning's own finder looks at rank 0 alone. Here the trainer starts its second rank by itself."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.integration.test_lightning import fitted, swept_with_a_skipped_batch\n"
        "undisturbed, _ = fitted(sweep=False, num_devices=2)\n"
        "disturbed, lr = fitted(sweep=True, num_devices=2, options={'confirm': 100})\n"
        "name = os.environ.get('LOCAL_RANK', '0')\n"
        "found = [undisturbed == disturbed, lr, swept_with_a_skipped_batch()]\n"
        f"pathlib.Path({str(tmp_path)!r}, name + '.json').write_text(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    (same, lr, items), (same_on_1, lr_on_1, items_on_1) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert same
    assert same_on_1
    assert lr == lr_on_1
    assert items == items_on_1 == [64, 64, 32] * 4
    assert lr is not None


def test_the_gradient_is_that_of_fit() -> None:
    """Accumulation, loss scale and the norm before clipping; the LR is too small to change a parameter."""
    fitted, swept = in_order(Net()), in_order(Net())
    swept.load_state_dict(fitted.state_dict())
    trainer(accumulate_grad_batches=4, max_steps=6).fit(fitted)
    options: dict[str, Any] = {"start_lr": 1e-9, "end_lr": 1.01e-9, "num_steps": 6, "auto_range": False}
    result = range_test(trainer(accumulate_grad_batches=4), swept, **options)
    assert [step.grad_norm for step in result.steps] == pytest.approx(fitted.grad_norms, rel=1e-5)


def test_the_suggestion_is_for_the_training_and_its_validation_set() -> None:
    """Length and schedule are the trainer's; the loss before training is that of the module in eval mode."""
    torch.manual_seed(0)
    module = Validated(cosine, batch_norm=False)
    module.eval()
    with torch.no_grad():
        inputs, targets = module.val_dataloader().dataset[:]
        expected = nn.functional.cross_entropy(module.net(inputs), targets).item()
    module.train()
    own = trainer(max_steps=500)
    result = range_test(own, module, num_steps=30, start_lr=1e-5, confirm=60, auto_range=False)
    assert (result.job.train.num_steps, result.job.train.schedule.value) == (500, "cosine")
    assert "schedule of the training" not in result.suggestion.reason
    assert result.confirmation is not None
    assert result.confirmation.monitored == "validation loss"
    assert len(result.trials) >= 2
    assert own.val_dataloaders is None
    unmoved: dict[str, Any] = {"start_lr": 1e-12, "end_lr": 1e-11, "num_steps": 20, "auto_range": False}
    monitored = range_test(own, module, monitor="val", val_batches=3, **unmoved)
    assert [step.val_loss for step in monitored.steps] == pytest.approx([expected] * 20, rel=1e-5)
    assert module.num_validated == 0, "the range test evaluates training_step"


def test_an_unknown_schedule_is_named_and_epochs_are_counted() -> None:
    """2,048 samples in batches of 32, two a step."""
    module = Validated(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10))
    own = trainer(max_steps=-1, max_epochs=3, accumulate_grad_batches=2)
    result = range_test(own, module, num_steps=2, auto_range=False)
    assert (result.job.train.num_steps, result.job.train.schedule.value) == (96, "constant")
    assert "the schedule of the training, StepLR, was taken for constant: pass schedule" in result.suggestion.reason
    own = trainer(max_steps=-1, max_epochs=-1)
    assert range_test(own, Net(), num_steps=2, auto_range=False).job.train.num_steps is None


def test_monitoring_without_a_validation_set_is_refused() -> None:
    """By what the module lacks."""
    with pytest.raises(ValueError, match=r'module must have a validation_step and a val_dataloader for monitor="val"'):
        range_test(trainer(), Net(), monitor="val")


def test_a_skipped_step_contributes_nothing_and_a_dictionary_holds_a_loss() -> None:
    """training_step returns None for a batch that it skips."""
    result = range_test(trainer(accumulate_grad_batches=2), Net(skip_every=3, as_dict=True), num_steps=60)
    assert min(step.num_items for step in result.steps) == 32
    assert max(step.num_items for step in result.steps) == 64
    assert result.suggestion.lr is not None


class Interrupted(Net):
    """Gets Ctrl-C in its 60th step that trains: after a sweep of 40 steps, before the end of the confirmation runs."""

    num_trained = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.num_trained += torch.is_grad_enabled()
        if self.num_trained == 60 and torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


def test_ctrl_c_among_confirmation_runs_gives_what_was_found() -> None:
    """``fit`` ends the process on a KeyboardInterrupt."""
    swept = trainer()
    state = dict(vars(swept.state))
    with pytest.raises(lrrunner.ConfirmationInterrupted) as caught:
        range_test(swept, Interrupted(), num_steps=40, auto_range=False, confirm=280)
    assert vars(swept.state) == state
    result = caught.value.result
    assert result.suggestion.lr is not None
    assert "confirmation was interrupted after" in result.suggestion.reason
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    module = Net()
    swept.fit(module)
    assert module.num_seen == NUM_FITTED


def test_the_guides_lines_run() -> None:
    """As written, given a trainer and a module."""
    scope: dict[str, Any] = {"trainer": trainer(), "module": Net()}
    exec(blocks("A Lightning module")[0], scope)
    assert scope["result"].suggestion.lr is not None


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (
            OwnClipping(),
            {},
            r"module\.configure_gradient_clipping must be Lightning's own, .* an override in OwnClipping",
        ),
        (Manual(), {}, r"module\.automatic_optimization must be True, got False"),
        (
            Net(),
            {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
            r"trainer\.gradient_clip_algorithm must be norm, got value",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(module: pl.LightningModule, changes: dict[str, Any], message: str) -> None:
    """With a message about the trainer or the module, and both unchanged."""
    own: Any = trainer(**changes)
    callbacks = list(own.callbacks)
    with pytest.raises(ValueError, match=message):
        range_test(own, module)
    assert own.callbacks == callbacks


def test_another_lightning_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends ``fit`` early is private; without it there would be a traceback out of Lightning."""
    monkeypatch.setattr(integration, "END_OF_FIT", None)
    with pytest.raises(ValueError, match=r"lightning must be a version whose fit lrrunner can interrupt, .* got 2\."):
        range_test(trainer(), Net())
