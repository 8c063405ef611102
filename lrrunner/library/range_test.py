"""The library call: a range test on a model, optimizer and loader that a script has made."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrrunner.config.schema import Config, Precision
from lrrunner.core.range_extension import Extension
from lrrunner.library.argument_names import argument_errors, in_argument_names
from lrrunner.library.caller_state import dataset_epoch_restored, gradient_sync_enabled, scaler_between_steps
from lrrunner.library.loss_function import CountedLoss, LossFunction
from lrrunner.library.model_wrappers import innermost, no_sync
from lrrunner.library.options import call_text, config_from_options, disagreements
from lrrunner.library.restarted_loader import RestartedLoader
from lrrunner.library.result import RangeTest
from lrrunner.library.script_objects import ScriptObjects, object_errors
from lrrunner.reporting.progress_bar import progress_bar, show
from lrrunner.sweep.auto_range import Passes, RunPass, run_passes, sweep_plan
from lrrunner.training import collectives
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.optimizers import highest_useful_lr, lr_remark, set_optimizer_mode, unwrapped
from lrrunner.training.trainable import Trainable, to_device

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def range_test(
    accelerator: Accelerator | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
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
    sync_every_step: bool = False,
    method: str = "auto",
    accumulation_steps: int | None = None,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> RangeTest:
    """Find the learning rate to train with. Every rank must call this.

    The call restores parameters, buffers, gradients, train flags, optimizer, scaler, random number generators, the
    loader's order and position, and Accelerate's counters bit for bit, also after an exception. It applies nothing. It
    may run before or in the middle of a training, also of an accumulation (with FSDP2 only between steps), and
    repeatedly. ``lrrunner/library/README.md`` lists what it cannot restore.

    Args:
        accelerator: The accelerator that prepared the objects; None for one process, or for a model that the script
            wrapped in DistributedDataParallel or with ``fully_shard``.
        model: The prepared model. If it is in training mode, its submodules keep their own modes (frozen batch norms);
            if not, all of it is set to training mode.
        optimizer: Its optimizer, prepared or not; it must not wrap another one. Parameter groups keep the ratios
            between their LRs. Where these differ, the suggested LR is that of the groups with the optimizer's default,
            or of the group with the largest LR if none has it; the suggestion's reason names the group.
        train_loader: Batches as in training; restarted whenever it ends.
        loss_fn: ``(model, batch) -> mean loss``, or ``-> (mean loss, number of items)`` where batches hold unequal
            numbers of tokens. Without a number, a loss is weighted by the first dimension of the first tensor among
            the fields of the batch.
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
        sync_every_step: Read each step before the next one starts, also on a GPU.
        method: Name of the suggestion rule.
        accumulation_steps: Micro-batches per optimizer step; None is the accelerator's number, or 1.
        max_grad_norm: L2 norm to clip the gradient to; None does not clip.
        scaler: Gradient scaler of an fp16 training; None is the accelerator's.

    Returns:
        Suggestion, records and figure; the same on every rank. ``result.apply(optimizer)`` sets the LR.

    Raises:
        ValueError: Arguments cannot be swept; all errors at once, on every rank.

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
        "sync_every_step": sync_every_step,
        "method": method,
        "accumulation_steps": accumulation_steps,
        "max_grad_norm": max_grad_norm,
    }
    objects = ScriptObjects(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        train_loader=train_loader,
        loss_fn=loss_fn,
        scaler=scaler,
    )
    collective = collectives.collective_for_world()
    job = _checked_job(objects, options, collective)
    loss = CountedLoss(loss_fn, num_micro_batches=job.train.accumulation_steps)
    passes = _run_passes(objects, job, loss, collective)
    return _result(objects, job, passes, num_samples=loss.num_samples, call=call_text(options), collective=collective)


class ScriptTrainable(Trainable):
    """A model whose owner may keep some submodules, such as frozen batch norms, in evaluation mode while it trains."""

    def train(self) -> None:
        """Training mode for a model that is not in it; otherwise every submodule keeps its own mode."""
        if not innermost(self.model).training:
            self.model.train()
        set_optimizer_mode(self.optimizer, training=True)


def _checked_job(objects: ScriptObjects, options: Mapping[str, Any], collective: Collective) -> Config:
    """The options as a configuration. Every rank must call this.

    Raises:
        ArgumentError: Some rank cannot sweep its arguments, or ranks have different options.
    """
    if options["accumulation_steps"] is None:
        options = {**options, "accumulation_steps": objects.accumulation_steps}
    errors: list[str] = []
    job = config_from_options(options, errors)
    errors += object_errors(objects, world_size=collective.world_size, accumulation_steps=job.train.accumulation_steps)
    with argument_errors():
        collectives.agree(collective, errors)
        collectives.agree(collective, disagreements(collective.gather(options)))
    return job


def _trainable(objects: ScriptObjects, job: Config, loss: CountedLoss) -> Trainable:
    return ScriptTrainable(
        model=objects.model,
        optimizer=unwrapped(objects.optimizer),
        objective=loss,
        micro_batch_size=1,  # unused: each loss comes with its own number of items
        accumulation_steps=job.train.accumulation_steps,
        max_grad_norm=job.train.max_grad_norm,
        scaler=objects.active_scaler,
        no_sync=no_sync(objects.accelerator, objects.model),
        to_device=to_device(next(objects.model.parameters()).device),
    )


def _run_passes(objects: ScriptObjects, job: Config, loss: CountedLoss, collective: Collective) -> Passes:
    """Sweep, and restore the caller's objects. Every rank must call this."""
    trainable = _trainable(objects, job, loss)
    with (
        dataset_epoch_restored(objects.train_loader),
        gradient_sync_enabled(objects.model),
        scaler_between_steps(trainable.scaler),
    ):
        batches = RestartedLoader(objects.train_loader, collective=collective, seed=job.sweep.seed)
        return run_passes(
            _pass_runner(job, trainable, batches, collective),
            job,
            collective=collective,
            highest_lr=highest_useful_lr(trainable.optimizer),
            on_extension=_warn_of_extension if collective.rank == 0 else lambda extension: None,
        )


def _pass_runner(job: Config, trainable: Trainable, batches: RestartedLoader, collective: Collective) -> RunPass:
    """Make the function that runs one pass of the sweep. Every rank must call what this returns."""
    started = time.perf_counter()

    def run_pass(number: int, start_lr: float, end_lr: float) -> SweepResult:
        with _progress_bar(job, number) if collective.rank == 0 else nullcontext() as bar:
            return run_sweep(
                trainable,
                sweep_plan(job.sweep, number, start_lr=start_lr, end_lr=end_lr),
                batches,
                context=RankContext(collective=collective),
                on_step=functools.partial(show, bar) if bar is not None else lambda step: None,
                started=started,
            )

    return run_pass


def _progress_bar(job: Config, number: int) -> Any:
    title = f"LR sweep, pass {number + 1}" if number else "LR sweep"
    return progress_bar(title, num_steps=job.sweep.num_steps * job.sweep.repeats)


def _warn_of_extension(extension: Extension) -> None:
    """Log at WARNING: a script that has not configured logging shows nothing below."""
    logger.warning("%s: sweeping again from %.1e to %.1e", extension.reason, extension.start_lr, extension.end_lr)


def _result(
    objects: ScriptObjects, job: Config, passes: Passes, *, num_samples: int, call: str, collective: Collective
) -> RangeTest:
    """What the passes found. Every rank must call this."""
    num_samples = sum(collective.gather(num_samples))
    job.data.global_batch_size = num_samples or round(passes.steps[0].num_items)
    _describe_objects(objects, job)
    optimizer = unwrapped(objects.optimizer)
    suggestion = passes.suggestion
    reasons = [in_argument_names(suggestion.reason), lr_remark(optimizer)]
    return RangeTest(
        steps=passes.steps,
        stops=passes.stops,
        suggestion=replace(suggestion, reason="; ".join(filter(None, reasons))),
        world_size=collective.world_size,
        global_batch_size=job.data.global_batch_size,
        passes=passes.passes,
        curve_pass=passes.curve_pass,
        group_ratios=LearningRate(optimizer).ratios,
        job=job,
        call=call,
        rank=collective.rank,
    )


def _describe_objects(objects: ScriptObjects, job: Config) -> None:
    """Fill in the parts of the configuration that describe what was swept."""
    optimizer, loader = unwrapped(objects.optimizer), objects.train_loader
    plain = {key: value for key, value in optimizer.defaults.items() if isinstance(value, bool | int | float | str)}
    job.model = {"_target_": _qualified_name(type(innermost(objects.model)))}
    job.optimizer = {"_target_": _qualified_name(type(optimizer)), **plain, "lr": LearningRate(optimizer).base_lr}
    job.objective = {"_target_": _qualified_name(objects.loss_fn)}
    job.data.train = {"_target_": _qualified_name(type(getattr(loader, "dataset", loader)))}
    precision = "no" if objects.accelerator is None else str(objects.accelerator.mixed_precision)
    job.train.mixed_precision = Precision.fp32 if precision == "no" else Precision(precision)


def _qualified_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
