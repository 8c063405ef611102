"""Adds a line to errors that a script's own objects cause, which say little by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from lrrunner.training.torch_messages import NEEDS_FLOATS, NEEDS_INDICES, UNUSED_PARAMETERS

CRITERION_CALL = "lambda model, batch: criterion(model(batch[0]), batch[1])"
"""A loss function of a criterion, for batches (inputs, target)."""

CRITERION_MODULES = (nn.CrossEntropyLoss.__module__, nn.functional.__name__)
"""Where torch's criteria are defined."""

HINTS = {
    UNUSED_PARAMETERS: (
        "the loss does not use all parameters of model: wrap it in DistributedDataParallel(model, "
        "find_unused_parameters=True), with Accelerate by DistributedDataParallelKwargs"
    ),
    NEEDS_INDICES: "the loss needs class indices: convert the target in loss_fn, with target.long()",
    NEEDS_FLOATS: "the loss needs a floating-point target: convert it in loss_fn, with target.float()",
    r"must have the same dtype": (
        "the inputs have another dtype than the model's parameters: convert them in loss_fn, as in inputs.float()"
    ),
    r"backward through the graph a second time": (
        "loss_fn must return the loss without calling backward(), which the range test does; detach what loss_fn "
        "keeps from earlier batches"
    ),
    r"must be Tensor, not (?!int|float|str|bool|NoneType)\w+|'(tuple|list|dict|\w*Output)' object has no attribute": (
        "if model returns a tuple or a dictionary, take the tensor that the loss needs, or the loss, in loss_fn"
    ),
}
"""Pattern of a message -> what helps."""

UNPACKED = re.compile(r"(?:too many|not enough) values to unpack")

WRONG_INDEX = re.compile(r"(?:list|tuple) (?:index out of range|indices must be)|^new\(\): invalid data type 'str'$")
"""Messages of an index or a name that a sequence or a tensor does not have."""


@contextmanager
def failures_explained() -> Iterator[None]:
    """Add a note to an error of the block that matches one of the patterns and has none yet."""
    try:
        yield
    except (RuntimeError, TypeError, AttributeError) as error:
        hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, str(error))), "")
        if hint and not hasattr(error, "__notes__"):
            error.add_note(f"lrrunner: {hint}")
        raise


def explain_call(error: Exception, model: nn.Module, batch: Any) -> None:
    """Add a note to an error of ``loss_fn(model, batch)`` that takes one of the two for something else.

    To be called where the error was caught around that call.
    """
    if _takes_for_output(error, model):
        hint = f"loss_fn is called with the model and a batch, not with an output and a target: pass {CRITERION_CALL}"
    elif _takes_apart(error, batch) or _passes_on(error, batch):
        hint = f"loss_fn gets each batch as the loader yields it, here {_described(batch)}"
    else:
        return
    error.add_note(f"lrrunner: {hint}")


def _takes_for_output(error: Exception, model: nn.Module) -> bool:
    """Whether the model itself is used like a tensor, as a criterion would use it."""
    frame = _innermost_frame(error)
    if frame.f_globals.get("__name__") in CRITERION_MODULES and _holds(frame, model):
        return True
    if isinstance(error, AttributeError):
        return error.obj is model and hasattr(torch.Tensor, str(error.name))
    name = re.escape(type(model).__name__)
    return isinstance(error, TypeError) and bool(
        re.search(rf"must be Tensor, not {name}\b|unsupported operand .*'{name}'", str(error))
    )


def _takes_apart(error: Exception, batch: Any) -> bool:
    """Whether loss_fn itself takes a batch apart in a way that its type does not allow."""
    if isinstance(error, AttributeError):
        return error.obj is batch
    message = str(error)
    if isinstance(error, TypeError) and isinstance(batch, Mapping) and "must be Tensor, not str" in message:
        return True  # unpacking it gives its keys
    if f"argument after ** must be a mapping, not {type(batch).__name__}" in message:
        return True
    if not _is_raised_in_loss_fn(error):
        return False
    if isinstance(error, KeyError):
        return isinstance(batch, Mapping) and error.args[0] not in batch
    if isinstance(error, ValueError):
        return bool(UNPACKED.match(message))
    return isinstance(error, TypeError | IndexError) and bool(WRONG_INDEX.search(message))


def _passes_on(error: Exception, batch: Any) -> bool:
    """Whether a function that needs a tensor was given the whole batch."""
    if not isinstance(error, TypeError) or f"must be Tensor, not {type(batch).__name__}" not in str(error):
        return False
    if _is_raised_in_loss_fn(error):
        return False  # there it is a variable in any case
    return _holds(_innermost_frame(error), batch)


def _innermost_frame(error: Exception) -> FrameType:
    """Where an error was raised."""
    last = error.__traceback__
    assert last is not None
    while last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame


def _holds(frame: FrameType, value: Any) -> bool:
    """Whether a variable of a frame is this object."""
    return any(each is value for each in frame.f_locals.values())


def _is_raised_in_loss_fn(error: Exception) -> bool:
    """Whether no function that loss_fn called has raised the error, apart from functions without a Python frame."""
    caught = error.__traceback__
    return caught is not None and caught.tb_next is not None and caught.tb_next.tb_next is None


def _described(batch: Any) -> str:
    """A batch, and how to get at its tensors."""
    if isinstance(batch, Mapping):
        names = ", ".join(map(repr, batch))
        example = next(iter(batch), "inputs")
        return f"a {type(batch).__name__} with the keys {names}: take its tensors by name, as in batch[{example!r}]"
    if isinstance(batch, list | tuple):
        types = ", ".join(type(part).__name__ for part in batch)
        return f"a {type(batch).__name__} of {len(batch)} ({types}): take its tensors by position, as in batch[0]"
    if isinstance(batch, torch.Tensor):
        return f"one tensor of shape {tuple(batch.shape)}: use it whole, or let the dataset return inputs and target"
    return f"a {type(batch).__name__}"
