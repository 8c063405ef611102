"""A range test on a Lightning module and its trainer: training step, optimizer, precision, loaders, strategy."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import exceptions
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from lrrunner.errors import ArgumentError
from lrrunner.integrations.attribute_snapshot import attributes_preserved
from lrrunner.integrations.training_plan import TrainingPlan, wants_validation, with_remarks
from lrrunner.library.range_test import range_test as library_range_test
from lrrunner.library.result import RangeTest
from lrrunner.training.state.snapshot import RngState

END_OF_FIT: type[Exception] | None = getattr(exceptions, "_TunerExitException", None)
"""With which Lightning's own tuner ends a ``fit`` without its usual consequences; no public way does."""

PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
MODULE_INTERNALS = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that the sweep restores itself."""

SCHEDULES = {"CosineAnnealingLR": "cosine", "PolynomialLR": "linear", "ConstantLR": "constant"}
"""Schedulers of torch, and the schedule of a range test that they follow."""

GRADIENT_HOOKS = ("backward", "configure_gradient_clipping")
"""Methods of a module that would give ``fit`` another gradient than the sweep's."""

TRAINER_SETTINGS = ("callbacks", "loggers", "num_sanity_val_steps", "enable_autolog_hparams")
"""Attributes of a trainer that are replaced while ``fit`` sets up the sweep."""


def range_test(
    trainer: pl.Trainer, module: pl.LightningModule, datamodule: pl.LightningDataModule | None = None, **options: Any
) -> RangeTest:
    """Find the learning rate that ``trainer.fit(module)`` should train with. Every rank must call this, before ``fit``.

    Lightning sets up strategy, precision, loaders and ``configure_optimizers`` as ``fit`` does; the sweep runs instead
    of the first step of ``fit``. It calls the module's ``training_step`` under the trainer's precision, accumulation
    and clipping; a step that returns None contributes nothing. ``self.log`` does nothing, and the trainer's callbacks
    and loggers, and the module's hooks around steps (``on_train_batch_start`` to ``optimizer_step``), are not called.
    Module, trainer and random number generators are restored; like ``fit``, the call moves the module to the CPU at its
    end.

    The suggestion is for the trainer's own training: its length (``max_steps``, ``max_epochs``), and its schedule where
    ``configure_optimizers`` gives a cosine or a linear one; the suggestion's reason names another one. ``confirm`` and
    ``monitor="val"`` evaluate ``training_step``, in eval mode, on the batches that ``fit`` validates on.

    Nothing is applied. Configure the module's optimizer with ``result.suggestion.lr``.

    Args:
        trainer: A trainer for one device or DDP; it may start its ranks itself.
        module: A module with automatic optimization and one optimizer.
        datamodule: Data of a module without a ``train_dataloader`` of its own.
        options: The options of :func:`lrrunner.range_test`, which replace the trainer's own.

    Returns:
        The result, the same on every rank.

    Raises:
        ValueError: Trainer, module or an option cannot be swept.
        lrrunner.ConfirmationInterrupted: Ctrl-C during ``confirm``; its ``result`` holds what was found before.
    """
    if errors := _trainer_errors(trainer, module):
        raise ArgumentError(errors)
    hook = _SweepOnFitStart(options)
    rng = RngState.capture(torch.device("cpu"))
    is_training = {name: part.training for name, part in module.named_modules()}
    settings = {name: getattr(trainer, name) for name in TRAINER_SETTINGS}
    loops = [trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop]
    owners = [module, *(part for part in module.modules() if part is not module), *loops, trainer.state]
    try:
        with attributes_preserved(owners, ignored=MODULE_INTERNALS):
            trainer.callbacks, trainer.loggers = [hook], []  # type: ignore[attr-defined]
            trainer.num_sanity_val_steps, trainer.enable_autolog_hparams = 0, False
            trainer.fit(module, datamodule=datamodule)
    finally:
        for name, value in settings.items():
            setattr(trainer, name, value)
        for name, part in module.named_modules():
            part.training = is_training.get(name, part.training)
        gc.collect()  # DDP removes its hooks from the parameters when it is freed
        rng.restore(torch.device("cpu"))
    if hook.interruption is not None:
        raise hook.interruption
    assert hook.result is not None
    return with_remarks(hook.result, hook.remarks)


class _SweepOnFitStart(pl.Callback):
    """Sweeps when ``fit`` has set everything up, and ends ``fit`` before its first step."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.result: RangeTest | None = None
        self.interruption: KeyboardInterrupt | None = None
        self.remarks: list[str] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.setup_data()
        loader = trainer.train_dataloader
        assert loader is not None
        model = trainer.strategy.model
        assert model is not None
        trainer_options: dict[str, Any] = {
            "accumulation_steps": trainer.accumulate_grad_batches,
            "max_grad_norm": trainer.gradient_clip_val or None,
            "scaler": getattr(trainer.precision_plugin, "scaler", None),
        }
        training, remark = _training_plan(trainer).options(self._options)
        self.remarks = [remark]
        if wants_validation(self._options):
            trainer_options["val_loader"], remark = _val_loader(trainer)
            self.remarks.append(remark)
        if self._options.get("monitor") == "val" and (trainer_options | self._options).get("val_loader") is None:
            raise ArgumentError(
                [
                    'module must have a validation_step and a val_dataloader for monitor="val", got none that '
                    "trainer.fit would read; give it both, or pass val_loader"
                ]
            )
        pl_module.train()
        try:
            with _without_logging(pl_module):
                self.result = library_range_test(
                    None,
                    model,
                    trainer.optimizers[0],
                    loader,
                    _training_step(trainer),
                    **(trainer_options | training | self._options),
                )
        except KeyboardInterrupt as interruption:  # fit would end the process, and what was found with it
            self.interruption = interruption
        assert END_OF_FIT is not None
        raise END_OF_FIT


def _training_plan(trainer: pl.Trainer) -> TrainingPlan:
    """Length of the training, and its schedule as far as it is known."""
    length = trainer.estimated_stepping_batches
    known = None if length < 1 or math.isinf(length) else int(length)
    if not trainer.lr_scheduler_configs:
        return TrainingPlan(training_steps=known)
    kind = type(trainer.lr_scheduler_configs[0].scheduler).__name__
    schedule = SCHEDULES.get(kind, "constant")
    remark = "" if kind in SCHEDULES else f"the schedule of the training, {kind}, was taken for constant: pass schedule"
    return TrainingPlan(training_steps=known, schedule=schedule, remark=remark)


def _val_loader(trainer: pl.Trainer) -> tuple[Any, str]:
    """The trainer's loader of its validation set, or of the first one, and a remark in this case. None without one."""
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    if not isinstance(loaders, list | tuple | dict):
        return loaders, ""
    name, loader = next(iter(loaders.items() if isinstance(loaders, dict) else enumerate(loaders)), (0, None))
    return loader, f"the validation loss is that of val_dataloader {name}, the first of {len(loaders)}"


def _trainer_errors(trainer: pl.Trainer, module: pl.LightningModule) -> list[str]:
    """Why this trainer and module cannot be swept; the same on every rank."""
    errors = []
    if END_OF_FIT is None or not hasattr(module, "_on_before_batch_transfer") or not hasattr(trainer, "fit_loop"):
        errors.append(
            f"lightning must be a version whose fit lrrunner can interrupt, as 2.4 to 2.6, got {version('lightning')}; "
            "install lightning<2.7, or call lrrunner.range_test with the model, its optimizer and a loss"
        )
    if not module.automatic_optimization:
        errors.append(
            "module.automatic_optimization must be True, got False: its training_step steps the optimizers itself; "
            "call lrrunner.range_test with one model, optimizer and loss"
        )
    errors += [
        f"module.{name} must be Lightning's own, since the sweep computes gradients by itself, got an override in "
        f"{type(module).__name__}; call lrrunner.range_test with the model, its optimizer and a loss"
        for name in GRADIENT_HOOKS
        if is_overridden(name, module)
    ]
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        errors.append(
            f"trainer.strategy must be one device or ddp, got {type(trainer.strategy).__name__}; sweep the same global "
            "batch with strategy='ddp'"
        )
    if type(trainer.precision_plugin) not in PRECISIONS:
        errors.append(
            f"trainer.precision must be 32, 64, 16 or bf16 (true or mixed), got "
            f"{type(trainer.precision_plugin).__name__}; sweep with one of these"
        )
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        errors.append("trainer.gradient_clip_algorithm must be norm, got value; clip by norm, or leave clipping out")
    return errors


def _training_step(trainer: pl.Trainer) -> Callable[[nn.Module, Any], Any]:
    """The module's loss of a batch, computed as the loop of ``fit`` does."""
    module, strategy = trainer.lightning_module, trainer.strategy
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        output = strategy.training_step(batch, 0) if takes_index else strategy.training_step(batch)
        return output["loss"] if isinstance(output, dict) else output

    return loss_fn


@contextmanager
def _without_logging(module: pl.LightningModule) -> Iterator[None]:
    """Replace ``self.log``, which fails outside of Lightning's loops, by a function that does nothing."""
    module.__dict__["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.__dict__["log"]
