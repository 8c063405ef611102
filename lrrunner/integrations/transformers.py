"""A range test on a ``transformers.Trainer``: on its model, optimizer, collator, loss and accelerator."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrrunner.errors import ArgumentError
from lrrunner.integrations.attribute_snapshot import attributes_preserved
from lrrunner.integrations.training_plan import TrainingPlan, wants_validation, with_remarks
from lrrunner.library import range_test as library
from lrrunner.library.arguments.script_objects import accelerator_errors
from lrrunner.library.result import RangeTest
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.state.snapshot import RngState, restore_buffers, saved_buffers

if TYPE_CHECKING:
    from transformers import Trainer

IGNORED_LABEL = -100
"""The label that Hugging Face's losses leave out."""

PREPARATION_ATTRIBUTES = ("_models", "_optimizers", "_schedulers", "_dataloaders", "step")
"""Attributes of an accelerator that preparing and training change."""

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
"""Names of ``lr_scheduler_type`` that a range test has under this name."""

NEAREST_SCHEDULES = {
    "polynomial": "linear",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "inverse_sqrt": "constant",
    "warmup_stable_decay": "constant",
    "reduce_lr_on_plateau": "constant",
}
"""Others, and the schedule whose mean LR is nearest."""


def range_test(trainer: Trainer, **options: Any) -> RangeTest:
    """Find the learning rate that ``trainer`` should train with. Every rank must call this, before ``train``.

    The sweep uses the trainer's loss (``compute_loss``, weighted by tokens), gradient accumulation, clipping, mixed
    precision and gradient checkpointing. It does not use what only ``train`` sets up: NEFTune, Liger kernels, an
    overridden ``training_step``. Callbacks are not called, and the trainer logs and saves nothing. The trainer is
    restored: a later ``train`` gives the same bits, if the collator can be copied. That includes numbers, tensors and
    plain containers of them in attributes of the trainer, its state and its callbacks (meters, log buffers, token
    counters), but not what other objects that the trainer holds do to themselves.

    The suggestion is for the trainer's own training: its length (``max_steps``, or the epochs), ``lr_scheduler_type``
    and warm-up. Where lrrunner has no such schedule, it takes the nearest, and the suggestion's reason says so.
    ``confirm`` and ``monitor="val"`` evaluate the trainer's loss on its ``eval_dataset``.

    Nothing is applied. To train with the suggestion, set ``trainer.args.learning_rate = result.suggestion.lr``. An
    optimizer that exists already (passed to the trainer, or left by an earlier ``train``) does not read it again; call
    ``result.apply(trainer.optimizer)``.

    Args:
        trainer: A trainer with a training set.
        options: The options of :func:`lrrunner.range_test`, which replace the trainer's own.

    Raises:
        ValueError: The trainer, or an option, cannot be swept.
    """
    if errors := _trainer_errors(trainer, options):
        raise ArgumentError(errors)
    max_grad_norm = trainer.args.max_grad_norm
    trainer_options: dict[str, Any] = {
        "accumulation_steps": trainer.args.gradient_accumulation_steps,
        "max_grad_norm": max_grad_norm if max_grad_norm and max_grad_norm > 0 else None,
    }
    with _restored(trainer):
        optimizer = trainer.create_optimizer()
        model, train_loader = _prepared_model(trainer), trainer.get_train_dataloader()
        training, remark = _training_plan(trainer, train_loader).options(options)
        remarks = [remark]
        if wants_validation(options) and trainer.eval_dataset is not None:
            trainer_options["val_loader"], remark = _eval_loader(trainer)
            remarks.append(remark)
        result = library.range_test(
            trainer.accelerator,
            model,
            optimizer,
            train_loader,
            _loss_function(trainer),
            **(trainer_options | training | options),
        )
    return with_remarks(result, remarks)


def _trainer_errors(trainer: Trainer, options: Mapping[str, Any]) -> list[str]:
    """Why this trainer cannot be swept; the same on every rank."""
    errors = []
    if options.get("monitor") == "val" and wants_validation(options) and trainer.eval_dataset is None:
        errors.append(
            'trainer.eval_dataset must be a dataset for monitor="val", got None; give the trainer a validation set, or '
            "pass val_loader"
        )
    if trainer.train_dataset is None:
        errors.append("trainer.train_dataset must be a dataset, got None; give the trainer a training set")
    if trainer.args.n_gpu > 1:
        errors.append(
            f"trainer must use one GPU per process, got {trainer.args.n_gpu} (DataParallel); start it with accelerate "
            "launch, or set CUDA_VISIBLE_DEVICES"
        )
    if trainer.is_fsdp_enabled:
        errors.append(
            "trainer.args.fsdp must be off, since a Trainer shards its model in train() only, got it on; sweep the "
            "same global batch with DDP, or shard the model by fully_shard(model) and call lrrunner.range_test"
        )
    return errors + accelerator_errors(trainer.accelerator)


def _prepared_model(trainer: Trainer) -> nn.Module:
    """The model wrapped for the world: by an earlier ``train``, or here as a later one would."""
    if trainer.model_wrapped is not trainer.model:
        wrapped: nn.Module = trainer.model_wrapped
        return wrapped
    prepared: nn.Module = trainer.accelerator.prepare_model(trainer.model)
    return prepared


def _training_plan(trainer: Trainer, train_loader: Any) -> TrainingPlan:
    """Length, schedule and warm-up of ``train``."""
    args, length = trainer.args, None
    if args.max_steps > 0:
        length = args.max_steps
    elif (num_batches := _length(train_loader)) is not None:
        steps_per_epoch = max(1, -(-num_batches // args.gradient_accumulation_steps))
        length = math.ceil(args.num_train_epochs * steps_per_epoch)
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)  # an earlier train has prepared it
    if scheduler is not None and not getattr(trainer, "_created_lr_scheduler", False):
        kind = type(scheduler).__name__
        remark = f"the schedule of the training, {kind} of your own, was taken for constant: pass schedule if it is not"
        return TrainingPlan(training_steps=length, remark=remark)
    schedule, remark = SCHEDULES.get(name), ""
    if schedule is None:
        schedule = NEAREST_SCHEDULES.get(name, "constant")
        remark = f"the schedule of the training, {name}, was taken for {schedule}, the nearest that lrrunner has"
    warmup_steps = 0 if length is None or name == "constant" else args.get_warmup_steps(length)
    return TrainingPlan(training_steps=length, schedule=schedule, warmup_steps=warmup_steps, remark=remark)


def _length(loader: Any) -> int | None:
    """Batches of a loader; None where it does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


def _eval_loader(trainer: Trainer) -> tuple[Any, str]:
    """The trainer's loader of its validation set, or of the first one, and a remark in this case."""
    if not isinstance(trainer.eval_dataset, dict):
        return trainer.get_eval_dataloader(), ""
    name = next(iter(trainer.eval_dataset))
    remark = f"the validation loss is that of eval_dataset[{name!r}], the first of {len(trainer.eval_dataset)}"
    return trainer.get_eval_dataloader(trainer.eval_dataset[name]), remark


def _loss_function(trainer: Trainer) -> Callable[[nn.Module, Any], Any]:
    """The trainer's loss of a micro-batch, so that the gradient of a step is that of ``train``.

    The trainer hands the number of items of the whole step to the loss. Where the loss is normalised by it, the step
    descends the mean over all items, as a sweep does with (mean loss, number of items). Where the loss ignores it, as
    that of most classifiers, ``train`` multiplies the loss by the number of ranks and does not divide it by the
    accumulation steps, and so does the sweep.

    Version 5 of the Trainer divides by the number of all labels where it does not know that a model's loss shifts them
    (GPT-2's), which makes its loss smaller by one token per row.
    """
    counts_items = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    shifts = _shifts_labels(trainer.model)
    collective = collective_for_world()
    ignores_count: bool | None = None

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        nonlocal ignores_count
        inputs = trainer._prepare_inputs(batch)
        num_items = _num_tokens(inputs, shifts=shifts) if counts_items else None
        if not torch.is_grad_enabled():
            return _evaluated_loss(trainer, model, inputs, num_items)
        model.train()  # all submodules, as each training_step does
        if counts_items and ignores_count is None:
            ignores_count = _agreed(collective.gather(_ignores_count(trainer, model, inputs, num_items)))
        with trainer.compute_loss_context_manager():
            if num_items is None:
                return trainer.compute_loss(model, inputs)
            if ignores_count:
                return trainer.compute_loss(model, inputs, num_items_in_batch=num_items) * _accumulation_factor(trainer)
            loss = _normalised_loss(trainer, model, inputs, num_items)
            return loss, (num_items.clamp(max=1) if _weighs_ranks_equally(trainer) else num_items)

    return loss_fn


def _weighs_ranks_equally(trainer: Trainer) -> bool:
    """Whether ``train`` takes the mean over ranks of each rank's mean over its tokens.

    Raises:
        ArgumentError: it does so over several micro-batches, whose tokens are not counted before the first of them.
    """
    if trainer.accelerator.num_processes == 1 or trainer.args.average_tokens_across_devices:
        return False
    if trainer.args.gradient_accumulation_steps > 1:
        raise ArgumentError(
            [
                "trainer.args.average_tokens_across_devices must be True with gradient accumulation on several ranks, "
                "got False; set it, which weighs every token alike, or accumulate over 1 step"
            ]
        )
    return True


def _ignores_count(
    trainer: Trainer, model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | None
) -> bool | None:
    """Whether the loss is the same for another number of items; None where this batch does not show it.

    Every rank must call this, whatever its batch holds, since a forward pass may communicate. Random numbers and
    buffers are restored.
    """
    rng, buffers = RngState.capture(trainer.accelerator.device), saved_buffers(model.modules())
    count = torch.tensor(1) if num_items is None else num_items.clamp(min=1)
    losses: list[float] = []
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for number in (count, 2 * count):
            loss: Any = trainer.compute_loss(model, dict(inputs), num_items_in_batch=number)
            losses.append(float(loss))
            restore_buffers(buffers)
            rng.restore(trainer.accelerator.device)
    if not num_items or not all(map(math.isfinite, losses)) or not losses[0]:
        return None
    return math.isclose(losses[0], losses[1], rel_tol=1e-3)


def _agreed(by_rank: Sequence[bool | None]) -> bool | None:
    """What the ranks found together: a loss that uses the number on one rank uses it on all; None if nobody knows."""
    known = [value for value in by_rank if value is not None]
    return all(known) if known else None


def _accumulation_factor(trainer: Trainer) -> int:
    """What the mean over micro-batches is multiplied by where ``train`` takes their sum."""
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    return 1 if is_scaled is False else trainer.args.gradient_accumulation_steps


def _evaluated_loss(trainer: Trainer, model: nn.Module, inputs: Any, num_items: torch.Tensor | None) -> Any:
    """The mean loss of a batch of the validation set, as ``evaluate`` computes it. It must not communicate."""
    if num_items is not None and not num_items:
        return None
    with trainer.compute_loss_context_manager():
        if num_items is not None and trainer.compute_loss_func is not None:
            return _normalised_loss(trainer, model, inputs, num_items), num_items
        loss = trainer.compute_loss(model, inputs)
        return loss if num_items is None else (loss, num_items)


def _normalised_loss(trainer: Trainer, model: nn.Module, inputs: Any, num_items: torch.Tensor) -> Any:
    """The mean loss over ``num_items``, by the trainer's own function."""
    if trainer.compute_loss_func is None and trainer.label_smoother is None:
        return trainer.compute_loss(model, inputs)
    # a function that takes a number of items need not work without one
    loss: Any = trainer.compute_loss(model, inputs, num_items_in_batch=num_items)
    return loss / trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else loss


def _shifts_labels(model: Any) -> bool:
    """Whether the loss leaves out the first label of each row, which nothing predicts."""
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    loss_name = getattr(getattr(model, "loss_function", None), "__name__", "")
    return not is_encoder_decoder and loss_name == "ForCausalLMLoss"


def _num_tokens(inputs: Mapping[str, Any], *, shifts: bool) -> torch.Tensor | None:
    """Number of labels that the loss counts; None without labels."""
    labels = inputs.get("shift_labels")
    if labels is None and isinstance(labels := inputs.get("labels"), torch.Tensor):
        labels = labels[..., 1:] if shifts else labels
    return labels.ne(IGNORED_LABEL).sum() if isinstance(labels, torch.Tensor) else None


@contextmanager
def _restored(trainer: Trainer) -> Iterator[None]:
    """Restore what preparing a sweep changes on the trainer, its accelerator and its model."""
    accelerator, model = trainer.accelerator, trainer.model
    assert model is not None
    rng = RngState.capture(accelerator.device)
    owners = [trainer, trainer.state, trainer.control, *trainer.callback_handler.callbacks]
    accelerator_attributes = {name: _copied(getattr(accelerator, name)) for name in PREPARATION_ATTRIBUTES}
    model_attributes = dict(vars(model))  # preparing replaces forward, and sets markers
    try:
        with attributes_preserved(owners), _activation_checkpointing(model, trainer.args):
            yield
    finally:
        vars(model).clear()
        vars(model).update(model_attributes)
        vars(accelerator).update(accelerator_attributes)
        gc.collect()  # DDP removes its hooks from the parameters when it is freed
        rng.restore(accelerator.device)


@contextmanager
def _activation_checkpointing(model: Any, args: Any) -> Iterator[None]:
    """Enable activation checkpointing where ``train`` will."""
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    if not getattr(args, name) or getattr(model, f"is_{name}"):
        yield
        return
    checkpoint_kwargs = dict(getattr(args, f"{name}_kwargs") or {})
    own_names = ("every_n_layers", "offload")
    own_kwargs = {key: checkpoint_kwargs.pop(key) for key in own_names if key in checkpoint_kwargs}
    getattr(model, f"{name}_enable")(checkpoint_kwargs or None, **own_kwargs)
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
