"""Errors of torch in a script's own loss name what helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import swept


class Pair(nn.Module):
    """Returns an output and something else."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner, self.kind = small_model(), kind

    def forward(self, inputs: torch.Tensor) -> Any:
        output = self.inner(inputs)
        return {"logits": output} if self.kind is dict else (output, output)


def class_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Class indices as floats."""
    return nn.functional.nll_loss(model(batch[0]), batch[1][:, 0])


def integer_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Probabilities compared with integers."""
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1].gt(0).long())


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """Of whatever the model returns."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1].squeeze(1))


TAKE_IT = (
    "lrrunner: if model returns a tuple or a dictionary, take the tensor that the loss needs, or the loss, in loss_fn"
)


@pytest.mark.parametrize(
    ("model", "loss_fn", "note"),
    [
        (
            small_model(),
            class_loss,
            "lrrunner: the loss needs class indices: convert the target in loss_fn, with targe",
        ),
        (
            small_model(),
            integer_loss,
            "lrrunner: the loss needs a floating-point target: convert it in loss_fn, with t",
        ),
        (Pair(tuple), squared_error, TAKE_IT),
        (Pair(dict), squared_error, TAKE_IT),
        (Pair(tuple), cross_entropy, TAKE_IT),
    ],
)
def test_a_note_says_what_helps(model: nn.Module, loss_fn: Any, note: str) -> None:
    """The script's own traceback stays; torch's message alone names neither target nor output."""
    with pytest.raises((RuntimeError, TypeError, AttributeError)) as caught:
        swept(model, loss_fn=loss_fn)
    (found,) = caught.value.__notes__
    assert found.startswith(note)


def test_other_errors_have_no_note() -> None:
    """A note on everything would be noise."""

    def failing(model: nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError(f"broken after {len(regression_data())} tensors")

    with pytest.raises(RuntimeError, match="broken after 2") as caught:
        swept(loss_fn=failing)
    assert not hasattr(caught.value, "__notes__")
