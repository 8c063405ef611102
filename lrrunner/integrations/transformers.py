"""A range test on a ``transformers.Trainer``: on its model, optimizer, collator, loss and accelerator."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrrunner.errors import ArgumentError
from lrrunner.integrations.attribute_snapshot import attributes_preserved
from lrrunner.library import range_test as library
from lrrunner.library.result import RangeTest
from lrrunner.training.snapshot import RngState

if TYPE_CHECKING:
    from transformers import Trainer

IGNORED_LABEL = -100
"""What Hugging Face's losses leave out."""

PREPARED = ("_models", "_optimizers", "_schedulers", "_dataloaders", "step")
"""What an accelerator remembers of what it has prepared."""


def range_test(trainer: Trainer, **options: Any) -> RangeTest:
    """Find the learning rate that ``trainer`` should train with. Every rank must call this, before ``train``.

    The sweep takes the trainer's loss (``compute_loss``, with its weighting by tokens), gradient accumulation,
    clipping, mixed precision and gradient checkpointing, not what ``train`` alone sets up (NEFTune, Liger kernels, a
    ``training_step`` of your own). Callbacks are not called, the trainer logs and saves nothing, and it is afterwards
    as before: what ``train`` then does is the same to the last bit, if the collator can be copied. That includes what
    the trainer, its state and its callbacks accumulate in attributes (meters, log buffers, token counters), as far as
    these are numbers, tensors and plain containers of them. What other objects that the trainer holds do to themselves
    is not undone.

    Nothing is applied. To train with the suggestion, if there is one, set ``trainer.args.learning_rate =
    result.suggestion.lr``; an optimizer that is there already (given to the trainer, or left by an earlier ``train``)
    asks no more for that, but takes ``result.apply(trainer.optimizer)``.

    Args:
        trainer: A trainer with a training set.
        options: Those of :func:`lrrunner.range_test`.

    Raises:
        ValueError: the trainer, or an option, cannot be swept.
    """
    if errors := _errors(trainer):
        raise ArgumentError(errors)
    clip = trainer.args.max_grad_norm
    told = {
        "accumulation_steps": trainer.args.gradient_accumulation_steps,
        "max_grad_norm": clip if clip and clip > 0 else None,
    }
    with _untouched(trainer):
        optimizer = trainer.create_optimizer()
        return library.range_test(
            trainer.accelerator,
            _prepared_model(trainer),
            optimizer,
            trainer.get_train_dataloader(),
            _loss_of(trainer),
            **(told | options),
        )


def _errors(trainer: Trainer) -> list[str]:
    """What no sweep can do with this trainer; the same on every rank."""
    errors = []
    if trainer.train_dataset is None:
        errors.append("trainer.train_dataset must be there, got None; give the trainer a training set")
    if trainer.args.n_gpu > 1:
        errors.append(
            f"trainer must use one GPU a process, got {trainer.args.n_gpu} (DataParallel); start it with accelerate "
            "launch, or set CUDA_VISIBLE_DEVICES"
        )
    if trainer.is_fsdp_enabled:
        errors.append(
            "trainer.args.fsdp must be off, since a Trainer shards its model in train() only, got it on; sweep the "
            "same global batch with DDP, or shard the model by fully_shard(model) and call lrrunner.range_test"
        )
    return errors + library.accelerator_errors(trainer.accelerator)


def _prepared_model(trainer: Trainer) -> nn.Module:
    """The model wrapped for the world, as an earlier ``train`` has left it or a later one will make it."""
    if trainer.model_wrapped is not trainer.model:
        wrapped: nn.Module = trainer.model_wrapped
        return wrapped
    prepared: nn.Module = trainer.accelerator.prepare_model(trainer.model)
    return prepared


def _loss_of(trainer: Trainer) -> Callable[[nn.Module, Any], Any]:
    """The trainer's own loss of a micro-batch, with its number of tokens where the trainer weights by them.

    It is the mean over these tokens. The trainer itself divides by the number of all labels where it does not know that
    a model's loss shifts them (GPT-2's, in version 5), which makes its loss smaller by one token in each row.
    """
    weights_by_tokens = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    shifts = _shifts_labels(trainer.model)

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        model.train()  # every part of it, as each training_step does
        inputs = trainer._prepare_inputs(batch)
        num_tokens = _num_tokens(inputs, shifts=shifts) if weights_by_tokens else None
        with trainer.compute_loss_context_manager():
            if trainer.compute_loss_func is None:
                loss: Any = trainer.compute_loss(model, inputs)
            else:  # one that is given a number need not work without it
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=num_tokens)
                if num_tokens is not None and trainer.args.average_tokens_across_devices:
                    loss = loss / trainer.accelerator.num_processes
        return loss if num_tokens is None else (loss, num_tokens)

    return loss_fn


def _shifts_labels(model: Any) -> bool:
    """Whether the first label of each row is predicted by nothing."""
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not encodes and getattr(getattr(model, "loss_function", None), "__name__", "") == "ForCausalLMLoss"


def _num_tokens(inputs: Mapping[str, Any], *, shifts: bool) -> torch.Tensor | None:
    """Labels that count, at the positions that the loss looks at."""
    labels = inputs.get("shift_labels")
    if labels is None and isinstance(labels := inputs.get("labels"), torch.Tensor):
        labels = labels[..., 1:] if shifts else labels
    return labels.ne(IGNORED_LABEL).sum() if isinstance(labels, torch.Tensor) else None


@contextmanager
def _untouched(trainer: Trainer) -> Iterator[None]:
    """What preparing a sweep changes is afterwards as before."""
    accelerator, model = trainer.accelerator, trainer.model
    assert model is not None
    rng = RngState.capture(accelerator.device)
    owners = [trainer, trainer.state, trainer.control, *trainer.callback_handler.callbacks]
    remembered = {name: _copied(getattr(accelerator, name)) for name in PREPARED}
    attributes = dict(vars(model))  # preparing replaces forward, and leaves marks
    try:
        with attributes_preserved(owners), _checkpointing(model, trainer.args):
            yield
    finally:
        vars(model).clear()
        vars(model).update(attributes)
        vars(accelerator).update(remembered)
        gc.collect()  # DDP unhooks itself from the parameters when it is freed
        rng.restore(accelerator.device)


@contextmanager
def _checkpointing(model: Any, args: Any) -> Iterator[None]:
    """Activations are computed again in backward, as ``train`` will have it."""
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    if not getattr(args, name) or getattr(model, f"is_{name}"):
        yield
        return
    options = dict(getattr(args, f"{name}_kwargs") or {})
    beside = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
    getattr(model, f"{name}_enable")(options or None, **beside)
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
