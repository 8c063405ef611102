"""Adds a line to errors of torch that a script's objects cause, which say little by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lrrunner.training.torch_messages import NEEDS_FLOATS, NEEDS_INDICES, UNUSED_PARAMETERS

HINTS = {
    UNUSED_PARAMETERS: (
        "the loss does not use all parameters of model: wrap it in DistributedDataParallel(model, "
        "find_unused_parameters=True), with Accelerate by DistributedDataParallelKwargs"
    ),
    NEEDS_INDICES: "the loss needs class indices: convert the target in loss_fn, with target.long()",
    NEEDS_FLOATS: "the loss needs a floating-point target: convert it in loss_fn, with target.float()",
    r"must be Tensor, not (?!int|float|str|bool|NoneType)\w+|'(tuple|list|dict|\w*Output)' object has no attribute": (
        "if model returns a tuple or a dictionary, take the tensor that the loss needs, or the loss, in loss_fn"
    ),
}
"""Pattern of a message -> what helps."""


@contextmanager
def failures_explained() -> Iterator[None]:
    """Add a note to an error of the block that matches one of the patterns."""
    try:
        yield
    except (RuntimeError, TypeError, AttributeError) as error:
        for pattern, hint in HINTS.items():
            if re.search(pattern, str(error)):
                error.add_note(f"lrrunner: {hint}")
                break
        raise
