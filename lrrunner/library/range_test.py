"""The library call: a range test on a model, optimizer and loader that a script has made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrrunner.library.arguments.loss_function import LossFunction
from lrrunner.library.arguments.script_objects import ScriptObjects
from lrrunner.library.result import RangeTest
from lrrunner.library.script_sweep import measured

if TYPE_CHECKING:
    from accelerate import Accelerator


def range_test(
    accelerator: Accelerator | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    val_loader: Iterable[Any] | None = None,
    modules: Sequence[nn.Module] = (),
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    mode: str = "exponential",
    smoothing: float = 0.9,
    stop_rule: str = "range",
    diverge_factor: float = 2.0,
    repeats: int = 1,
    seed: int = 0,
    auto_range: bool = True,
    monitor: str = "train",
    val_every: int = 1,
    val_batches: int = 2,
    noise_scale: bool = False,
    sync_every_step: bool = False,
    method: str = "auto",
    confirm: bool | int = False,
    training_steps: int | None = None,
    schedule: str = "constant",
    warmup_steps: int = 0,
    accumulation_steps: int | None = None,
    max_grad_norm: float | None = None,
    eval_mode: bool = True,
    scaler: torch.amp.GradScaler | None = None,
) -> RangeTest:
    """Find the learning rate to train with. Every rank must call this.

    The call restores parameters, buffers, gradients, train flags, optimizer, scaler, random number generators, the
    loaders' order and position, and Accelerate's counters bit for bit, also after an exception; of other modules that
    the loss uses, buffers, gradients and flags. It applies nothing. It may run before or in the middle of a training,
    also of an accumulation (with FSDP2 only between steps), and repeatedly. ``lrrunner/library/README.md`` lists what
    it cannot restore.

    Args:
        accelerator: The accelerator that prepared the objects; None for one process, or for a model that the script
            wrapped in DistributedDataParallel or with ``fully_shard``.
        model: The prepared model. If it is in training mode, its submodules keep their own modes (frozen batch norms);
            if not, all of it is set to training mode.
        optimizer: Its optimizer, prepared or not; it must not wrap another one. Parameter groups keep the ratios
            between their LRs. Where these differ, the suggested LR is that of the groups with the optimizer's default,
            or of the group with the largest LR if none has it; the suggestion's reason names the group.
        train_loader: Batches as in training; restarted whenever it ends.
        loss_fn: A function ``(model, batch) -> mean loss``, or ``-> (mean loss, number of items)`` where batches hold
            unequal numbers of tokens. Without a number, a loss is weighted by the first dimension of the first tensor
            among the fields of the batch.
        val_loader: Batches that ``monitor="val"`` and ``confirm`` evaluate, always its first ones; sharded over ranks
            or not. Without it, ``confirm`` compares on batches of ``train_loader``.
        modules: Further modules that ``loss_fn`` uses (the discriminator of a GAN), to be restored wherever the call
            cannot find them by itself, or where ``loss_fn`` changes their weights.
        start_lr: LR of the first step.
        end_lr: LR of the last step.
        num_steps: Optimizer steps of one sweep.
        mode: ``exponential`` or ``linear``.
        smoothing: Memory of the causal EMA that the stop rule reads, in [0, 1).
        stop_rule: ``range`` or ``ratio``.
        diverge_factor: Factor of the stop rule.
        repeats: Sweeps from the same initial state, each with other random numbers and another data order.
        seed: Fixes random numbers and, for loaders with generators, the data order.
        auto_range: Sweep again, at most twice, where the range was wrong.
        monitor: ``train``, or ``val`` to smooth, stop and suggest by the loss on ``val_loader``.
        val_every: With ``monitor="val"``, steps from one evaluation to the next.
        val_batches: With ``monitor="val"``, batches of each rank's ``val_loader`` in an evaluation.
        noise_scale: Also measure the critical batch size (``result.noise_scale``); needs several ranks or accumulation.
        sync_every_step: Read each step before the next one starts, also on a GPU.
        method: Name of the suggestion rule.
        confirm: Train short runs around the suggestion, and correct it by their losses: True takes 5 x ``num_steps``
            optimizer steps for all of them together, a number that many.
        training_steps: Optimizer steps of the training that the LR is for; None if not known.
        schedule: Its LR schedule after the warm-up: ``constant``, ``linear`` or ``cosine``.
        warmup_steps: Steps of its linear warm-up.
        accumulation_steps: Micro-batches per optimizer step; None is the accelerator's number, or 1.
        max_grad_norm: L2 norm to clip the gradient to; None does not clip.
        eval_mode: Evaluate in eval mode; False for models that return no loss there, such as detectors.
        scaler: Gradient scaler of an fp16 training; None is the accelerator's.

    Returns:
        Suggestion, records and figure; the same on every rank. ``result.apply(optimizer)`` sets the LR.

    Raises:
        ValueError: Arguments cannot be swept; all errors at once, on every rank.
        lrrunner.ConfirmationInterrupted: Ctrl-C during ``confirm``; a KeyboardInterrupt whose ``result`` holds what was
            found before. In the sweep, Ctrl-C raises KeyboardInterrupt.

    References:
        Smith 2015, arXiv:1506.01186, section 3.3.
    """
    options = {
        "start_lr": start_lr,
        "end_lr": end_lr,
        "num_steps": num_steps,
        "mode": mode,
        "smoothing": smoothing,
        "stop_rule": stop_rule,
        "diverge_factor": diverge_factor,
        "repeats": repeats,
        "seed": seed,
        "auto_range": auto_range,
        "monitor": monitor,
        "val_every": val_every,
        "val_batches": val_batches,
        "noise_scale": noise_scale,
        "sync_every_step": sync_every_step,
        "method": method,
        "confirm": confirm,
        "training_steps": training_steps,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "accumulation_steps": accumulation_steps,
        "max_grad_norm": max_grad_norm,
        "eval_mode": eval_mode,
    }
    objects = ScriptObjects(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        train_loader=train_loader,
        loss_fn=loss_fn,
        val_loader=val_loader,
        modules=tuple(modules),
        scaler=scaler,
    )
    return measured(objects, options)
