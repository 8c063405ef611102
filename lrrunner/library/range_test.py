"""The library call: a range test on a model, optimizer and loader that a script has made."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.config.schema import (
    Config,
    DataConfig,
    Precision,
    SuggestionConfig,
    SweepConfig,
    TrainConfig,
)
from lrrunner.config.validation import step_errors, suggestion_errors, sweep_errors
from lrrunner.core.range_extension import Extension
from lrrunner.errors import ArgumentError, ConfigError
from lrrunner.library.restarted_loader import RestartedLoader, loader_errors, num_samples, to_device, untouched
from lrrunner.library.result import RangeTest, in_python
from lrrunner.reporting.progress_bar import progress_bar, show
from lrrunner.sweep.auto_range import Passes, run_passes, sweep_plan
from lrrunner.system.environment import USE_FSDP_VARIABLE, launcher_switch_is_on
from lrrunner.training import collectives, fsdp
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.optimizers import held_optimizer, lr_remark, optimizer_errors, set_optimizer_mode, unwrapped
from lrrunner.training.trainable import Trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

LossFunction = Callable[[nn.Module, Any], Any]
"""(model, batch) -> mean loss, or (mean loss, number of items it is the mean of)."""

PYTHON_NAMES = {"sweep.": "", "suggestion.": "", "train.": "", "data.global_batch_size": "the batch size"}
"""What keys of the configuration are called in a call."""

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

    Parameters, buffers, gradients, train flags, optimizer, scaler, random number generators, the loader's order and
    position, and what Accelerate counts are afterwards as before, bit for bit, whatever happens; schedulers are not
    touched. It may be called in the middle of a training, also of an accumulation (between steps with FSDP2, whose
    unreduced gradients are out of reach), and again.

    What lives elsewhere is not restored: a counter in a Python attribute, the position of an iterable dataset, what a
    hook on the optimizer or on DDP's communication (PowerSGD, say) keeps. Of loaders, those of torch and Accelerate are
    left bit for bit; what a loader of another class, or a dataset, draws from a generator of its own is drawn. With
    three ranks and more, DDP sums in another order after its first backward pass, whoever ran it: the last bit of the
    next step may then differ. After an exception in its backward pass, DDP itself can train no more: wrap the model
    anew.

    Args:
        accelerator: What prepared model, optimizer and loader; None for plain objects (in one process, or wrapped by
            the script in DistributedDataParallel or with ``fully_shard``).
        model: The model, prepared. In training mode its parts keep their own modes (frozen batch norms, say); else all
            of it is brought to train.
        optimizer: Its optimizer, prepared or not; none that wraps another. Each group's LR keeps its ratio to the
            others. Where they differ, the suggested LR is that of the groups that have the optimizer's default, or of
            the group with the largest LR if none has it; the reason names the group.
        train_loader: Batches as the training will see them; restarted whenever it ends.
        loss_fn: ``(model, batch) -> mean loss``, or ``-> (mean loss, number of items)`` where batches hold unequal
            numbers of tokens. Without a number, a loss counts for the first dimension of the first tensor in the batch,
            which is looked for in fields of the batch, not in lists inside of them.
        start_lr: First LR of the ladder.
        end_lr: Last LR of the ladder.
        num_steps: Optimizer steps of the ladder.
        mode: ``exponential`` or ``linear``.
        smoothing: Memory of the causal EMA that serves the stop, in [0, 1).
        stop_rule: ``range`` or ``ratio``.
        diverge_factor: What the stop rule multiplies.
        repeats: How often the ladder is climbed, each time with other random numbers and another data order.
        seed: Fixes random numbers and, for loaders with generators, the data order.
        auto_range: Sweep again, at most twice, where the range was wrong.
        sync_every_step: Read each step before the next one starts, also on a GPU.
        method: Name of the suggestion rule.
        accumulation_steps: Micro-batches per optimizer step; None is what the accelerator was given, or 1.
        max_grad_norm: L2 norm to clip the gradient to; None does not clip.
        scaler: Gradient scaler of a plain fp16 training; None is the accelerator's.

    Returns:
        Suggestion, records, picture; the same on every rank. Nothing is applied: ``result.apply(optimizer)`` does.

    Raises:
        ValueError: arguments that cannot be swept, all errors at once and on every rank.

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
    collective = collectives.collective_for_world()
    errors: list[str] = []
    told = 1 if accelerator is None else getattr(accelerator, "gradient_accumulation_steps", 1)
    resolved = options | {"accumulation_steps": told if accumulation_steps is None else accumulation_steps}
    job = _job(resolved, errors)
    errors += _object_errors(accelerator, model, optimizer, train_loader, loss_fn, world_size=collective.world_size)
    try:
        collectives.agree(collective, errors)
        collectives.agree(collective, disagreements(collective.gather(resolved)))
    except ConfigError as error:
        raise ArgumentError(error.errors) from None
    loss = CountedLoss(loss_fn, num_micro_batches=job.train.accumulation_steps)
    sharded = fsdp.is_sharded(model)
    trainable = _TrainableOfScript(
        model=model,
        optimizer=unwrapped(optimizer),
        objective=loss,
        micro_batch_size=1,  # every loss comes with its own count
        accumulation_steps=job.train.accumulation_steps,
        max_grad_norm=job.train.max_grad_norm,
        scaler=_enabled(scaler if scaler is not None or accelerator is None else accelerator.scaler),
        no_sync=functools.partial(fsdp.no_sync, uncompiled(model)) if sharded else _no_sync(accelerator, model),
        to_device=to_device(next(model.parameters()).device),
    )
    with untouched(train_loader), _synchronised(model), _before_unscaling(trainable.scaler):
        batches = RestartedLoader(train_loader, collective=collective, seed=job.sweep.seed)
        passes = _passes(job, trainable, batches, collective)
    num_samples_by_rank = collective.gather(loss.num_samples)
    job.data.global_batch_size = sum(num_samples_by_rank) or round(passes.steps[0].num_items)
    _describe(job, accelerator, model, trainable.optimizer, train_loader, loss_fn)
    suggestion = passes.suggestion
    reasons = [in_python(suggestion.reason, PYTHON_NAMES), lr_remark(trainable.optimizer)]
    return RangeTest(
        steps=passes.steps,
        stops=passes.stops,
        suggestion=replace(suggestion, reason="; ".join(filter(None, reasons))),
        world_size=collective.world_size,
        global_batch_size=job.data.global_batch_size,
        passes=passes.passes,
        curve_pass=passes.curve_pass,
        group_ratios=LearningRate(trainable.optimizer).ratios,
        job=job,
        call=_call(options),
        rank=collective.rank,
    )


class _TrainableOfScript(Trainable):
    """A model whose owner may keep parts of it, frozen batch norms, say, in evaluation mode while it trains."""

    def train(self) -> None:
        """Training mode of a model that is not in it; else every part keeps its own."""
        if not innermost(self.model).training:
            self.model.train()
        set_optimizer_mode(self.optimizer, training=True)


class CountedLoss:
    """A loss function whose losses always come with the number of items they are the mean of.

    Attributes:
        num_samples: Samples in the micro-batches of the first optimizer step; 0 where batches do not show any.

    Args:
        loss_fn: The caller's.
        num_micro_batches: Micro-batches per optimizer step.
    """

    def __init__(self, loss_fn: LossFunction, *, num_micro_batches: int) -> None:
        self._loss_fn, self._num_left = loss_fn, num_micro_batches
        self.num_samples = 0

    def __call__(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any]:
        """The mean loss of a batch, and its number of items."""
        samples = num_samples(batch)
        if self._num_left:
            self._num_left -= 1
            self.num_samples += samples or 0
        result = self._loss_fn(model, batch)
        loss, items = result if isinstance(result, tuple) and len(result) == 2 else (result, samples)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ValueError(
                f"loss_fn must return a mean loss, a tensor without dimensions, got {got}; return its mean"
            )
        if items is None:
            raise ValueError(
                f"loss_fn must return (loss, num_items) where a batch holds no tensor to count by, "
                f"got {type(batch).__name__}; count its items"
            )
        if wrong := _count_error(items):
            raise ValueError(f"loss_fn must return (loss, num_items) with a number of items, got {wrong}; count them")
        return loss, items


def _count_error(items: Any) -> str:
    """What is given instead of a number of items; empty for a number. One on a GPU is not read, which would wait."""
    if isinstance(items, torch.Tensor):
        if items.ndim:
            return f"a tensor of shape {tuple(items.shape)}"
        if items.device.type != "cpu":
            return ""
        items = items.item()
    if not isinstance(items, numbers.Real):
        return type(items).__name__
    return "" if math.isfinite(items) and float(items) >= 0 else f"{items}"


def _passes(job: Config, trainable: Trainable, batches: RestartedLoader, collective: Collective) -> Passes:
    """All ladders. Every rank must call this."""
    started = time.perf_counter()
    bar: Any = None

    def climb(number: int, start_lr: float, end_lr: float) -> SweepResult:
        nonlocal bar
        words = f"LR sweep, pass {number + 1}" if number else "LR sweep"
        bar = progress_bar(words, num_steps=job.sweep.num_steps * job.sweep.repeats)
        with bar:
            return run_sweep(
                trainable,
                sweep_plan(job.sweep, number, start_lr=start_lr, end_lr=end_lr),
                batches,
                context=RankContext(collective=collective),
                on_step=functools.partial(show, bar) if collective.rank == 0 else lambda step: None,
                started=started,
            )

    return run_passes(
        climb,
        job.sweep,
        method=job.suggestion.method,
        collective=collective,
        on_extension=_tell_extension if collective.rank == 0 else lambda extension: None,
    )


def _tell_extension(extension: Extension) -> None:
    """A warning, since a script that has set up no logging shows nothing below."""
    logger.warning("%s: sweeping again from %.1e to %.1e", extension.reason, extension.start_lr, extension.end_lr)


def _job(options: Mapping[str, Any], errors: list[str]) -> Config:
    """The call as a configuration, as far as it can be understood."""
    sweep = SweepConfig()
    for item in fields(SweepConfig):
        if item.name in options:
            setattr(sweep, item.name, _converted(item.name, options[item.name], item.default, errors))
    train = TrainConfig(
        accumulation_steps=_converted("accumulation_steps", options["accumulation_steps"], 1, errors),
        max_grad_norm=_converted("max_grad_norm", options["max_grad_norm"], 1.0, errors, optional=True),
    )
    suggestion = SuggestionConfig(method=options["method"])
    found = [*sweep_errors(sweep), *suggestion_errors(suggestion), *step_errors(train)]
    errors += [in_python(message, PYTHON_NAMES) for message in found]
    return Config(
        model={}, objective={}, optimizer={}, data=DataConfig(), sweep=sweep, suggestion=suggestion, train=train
    )


def _converted(name: str, value: Any, default: Any, errors: list[str], *, optional: bool = False) -> Any:
    """The value as what its default is; the default itself, and a message, where it is no such thing."""
    if optional and value is None:
        return None
    is_flag = isinstance(value, bool)
    if isinstance(default, Enum):
        choices = [item.value for item in type(default)]
        if value in choices:
            return type(default)(value)
        kind = f"one of {', '.join(choices)}"
    elif isinstance(default, bool):
        if is_flag:
            return value
        kind = "true or false"
    elif isinstance(default, int):
        if not is_flag and isinstance(value, numbers.Integral):
            return int(value)
        kind = "a whole number"
    else:
        if not is_flag and isinstance(value, numbers.Real):
            return float(value)
        kind = "a number"
    shown = default.value if isinstance(default, Enum) else default
    errors.append(f"{name} must be {kind}, got {value!r}; try {shown}")
    return default


def disagreements(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options that differ by rank, from those of every rank: one rank would wait for another, or train apart."""
    first = options[0]
    found = []
    for name, value in first.items():
        rank = next((rank for rank, own in enumerate(options) if own[name] != value), None)
        if rank is not None:
            found.append(
                f"{name} must be the same on every rank, got {value!r} on rank 0, {options[rank][name]!r} on rank "
                f"{rank}; compute it on rank 0 and broadcast it"
            )
    return found


def _object_errors(
    accelerator: Any, model: Any, optimizer: Any, train_loader: Any, loss_fn: Any, *, world_size: int
) -> list[str]:
    """What is wrong with the objects that a sweep would train."""
    errors = accelerator_errors(accelerator)
    errors += _model_errors(model, world_size=world_size)
    asked = accelerator is not None and world_size > 1 and launcher_switch_is_on(USE_FSDP_VARIABLE)
    if asked and not errors and not fsdp.is_sharded(model):
        errors.append(
            f"model must be sharded, as accelerate launch was told, got {type(model).__name__}, which is what "
            "Accelerate makes of it on CPUs; leave FSDP out, or call torch.distributed.fsdp.fully_shard(model)"
        )
    errors += _optimizer_errors(optimizer, model)
    errors += loader_errors(train_loader)
    if not callable(loss_fn):
        errors.append(
            f"loss_fn must be callable as loss_fn(model, batch), got {type(loss_fn).__name__}; give a function"
        )
    return errors


def accelerator_errors(accelerator: Any) -> list[str]:
    """Why what an accelerator has prepared cannot be swept; empty where it can."""
    if accelerator is None:
        return []
    if not hasattr(accelerator, "distributed_type"):
        return [f"accelerator must be an accelerate.Accelerator or None, got {type(accelerator).__name__}; give one"]
    name = str(accelerator.distributed_type).rpartition(".")[2]
    if name == "DEEPSPEED":
        return [
            "accelerator must leave the optimizer's steps to the caller, got DeepSpeed, which steps inside of "
            "backward; sweep the same global batch with DDP: its LR is that of DeepSpeed, too"
        ]
    if name in ("MEGATRON_LM", "XLA", "TP"):
        return [
            f"accelerator must train in one process, with DDP or with FSDP2, got {name}; sweep the same global batch "
            "with DDP"
        ]
    precision = str(getattr(accelerator, "mixed_precision", "no"))
    if precision not in ("no", "fp16", "bf16"):
        return [f"accelerator must compute in fp32, fp16 or bf16, got {precision}; sweep the same global batch in bf16"]
    return []


def _model_errors(model: Any, *, world_size: int) -> list[str]:
    if not isinstance(model, nn.Module):
        return [f"model must be a torch.nn.Module, got {type(model).__name__}; give the prepared model"]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [f"model must have trainable parameters, got none in {type(model).__name__}; unfreeze some"]
    if fsdp.is_sharded(model):
        if fsdp.is_sharded_over(uncompiled(model), world_size):
            return []
        return [
            f"model must be sharded by fully_shard(model) over all {world_size} ranks and nothing else, got "
            f"{type(model).__name__} on another mesh; sweep the same global batch with DDP"
        ]
    if fsdp.has_fsdp1(model):
        return [f"model must be sharded with FSDP2, got FSDP1 in {type(model).__name__}; set fsdp_version=2"]
    if world_size > 1 and not any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return [
            f"model must be wrapped for {world_size} ranks, got {type(model).__name__}; give what accelerator.prepare "
            "returned, or DistributedDataParallel(model), or fully_shard(model)"
        ]
    return []


def uncompiled(model: nn.Module) -> nn.Module:
    """The module behind what torch.compile has returned."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def innermost(model: nn.Module) -> nn.Module:
    """The module that a script has made, inside of DDP and torch.compile."""
    while (inner := uncompiled(model)) is not model or isinstance(model, DistributedDataParallel):
        model = inner.module if isinstance(inner, DistributedDataParallel) else inner
    return model


def _optimizer_errors(optimizer: Any, model: Any) -> list[str]:
    if isinstance(optimizer, list | tuple):
        return [
            f"optimizer must be one optimizer, got {len(optimizer)}; sweep one at a time, what the others hold stays "
            "as it is"
        ]
    if not isinstance(optimizer, torch.optim.Optimizer):
        name = type(optimizer).__name__
        if held_optimizer(optimizer) is None:
            return [f"optimizer must be a torch.optim.Optimizer, got {name}; give one"]
        return [
            f"optimizer must be a torch.optim.Optimizer, got {name}, which wraps one; sweep with an optimizer that "
            "wraps no other"
        ]
    errors = optimizer_errors(unwrapped(optimizer))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else held
    if not held & own:
        errors.append("optimizer must hold the parameters of model, got none of them; give the optimizer of this model")
    elif held - own:
        errors.append(
            f"optimizer must hold parameters of model only, since only these are restored, got {len(held - own)} "
            "others; give a model that holds all of them, an nn.ModuleList, say"
        )
    return errors


def _no_sync(accelerator: Accelerator | None, model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """Gradients stay local inside; never by Accelerate's own count of micro-batches."""
    if accelerator is not None:
        return functools.partial(accelerator.no_sync, model)
    no_sync: Callable[[], AbstractContextManager[Any]] = getattr(model, "no_sync", nullcontext)
    return no_sync


@contextmanager
def _synchronised(model: nn.Module) -> Iterator[None]:
    """Backward passes inside reduce gradients, also where the caller stands in a ``no_sync`` or an accumulation."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    kept = [wrapper.require_backward_grad_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_backward_grad_sync = True
    try:
        yield
    finally:
        for wrapper, value in zip(wrappers, kept, strict=True):
            wrapper.require_backward_grad_sync = value


def _enabled(scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
    """A scaler that scales; None for one that a script has switched off."""
    return scaler if scaler is not None and scaler.is_enabled() else None


@contextmanager
def _before_unscaling(scaler: torch.amp.GradScaler | None) -> Iterator[None]:
    """A scaler that has unscaled the caller's gradients has not inside, and has again afterwards."""
    if scaler is None:
        yield
        return
    kept = dict(scaler._per_optimizer_states)
    scaler._per_optimizer_states.clear()
    try:
        yield
    finally:
        scaler._per_optimizer_states.clear()
        scaler._per_optimizer_states.update(kept)


def _describe(
    job: Config,
    accelerator: Accelerator | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Any,
    loss_fn: LossFunction,
) -> None:
    """What was swept, for the record."""
    plain = {key: value for key, value in optimizer.defaults.items() if isinstance(value, bool | int | float | str)}
    job.model = {"_target_": _name(type(innermost(model)))}
    job.optimizer = {"_target_": _name(type(optimizer)), **plain, "lr": LearningRate(optimizer).base_lr}
    job.objective = {"_target_": _name(loss_fn)}
    job.data.train = {"_target_": _name(type(getattr(train_loader, "dataset", train_loader)))}
    precision = "no" if accelerator is None else str(accelerator.mixed_precision)
    job.train.mixed_precision = Precision.fp32 if precision == "no" else Precision(precision)


def _name(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _call(options: Mapping[str, Any]) -> str:
    """The call as it could be written again."""
    defaults = {item.name: item.default for item in fields(SweepConfig)} | {"method": SuggestionConfig().method}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in defaults.items()}
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value != plain.get(name))
    return f"lrrunner.range_test(accelerator, model, optimizer, train_loader, loss_fn{given})"
