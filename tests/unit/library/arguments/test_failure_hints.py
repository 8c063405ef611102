"""Errors of torch in a script's own loss name what helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import swept

INPUTS, TARGETS = regression_data()

NAMED = [{"x": INPUTS, "y": TARGETS}]
PAIRS = [[INPUTS, TARGETS]]
TENSORS = [INPUTS]


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


def by_position(model: nn.Module, batch: Any) -> torch.Tensor:
    """The first two fields."""
    return squared_error(model, (batch[0], batch[1]))


def unpacked(model: nn.Module, batch: Any) -> torch.Tensor:
    """Exactly two fields."""
    inputs, targets = batch
    return squared_error(model, (inputs, targets))


def by_name(model: nn.Module, batch: Any) -> torch.Tensor:
    """Fields with names."""
    return squared_error(model, (batch["x"], batch["y"]))


def by_other_names(model: nn.Module, batch: Any) -> torch.Tensor:
    """Fields with the names of another data set."""
    return squared_error(model, (batch["image"], batch["label"]))


def as_arguments(model: nn.Module, batch: Any) -> torch.Tensor:
    """As a Hugging Face model takes it."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def whole(model: nn.Module, batch: Any) -> torch.Tensor:
    """The model is to take the batch apart."""
    loss: torch.Tensor = model(batch).square().mean()
    return loss


def moved(model: nn.Module, batch: Any) -> torch.Tensor:
    """As if every batch were a tensor."""
    loss: torch.Tensor = model(batch.to("cpu")).square().mean()
    return loss


A_DICT = "a dict with the keys 'x', 'y': take its tensors by name, as in batch['x']"
A_LIST = "a list of 2 (Tensor, Tensor): take its tensors by position, as in batch[0]"
A_TENSOR = "one tensor of shape (192, 10): use it whole, or let the dataset return inputs and target"


@pytest.mark.parametrize(
    ("loss_fn", "batches", "here"),
    [
        (by_position, NAMED, A_DICT),
        (unpacked, NAMED, A_DICT),
        (by_other_names, NAMED, A_DICT),
        (whole, NAMED, A_DICT),
        (moved, NAMED, A_DICT),
        (by_name, PAIRS, A_LIST),
        (as_arguments, PAIRS, A_LIST),
        (whole, PAIRS, A_LIST),
        (moved, PAIRS, A_LIST),
        (by_position, [[INPUTS]], "a list of 1 (Tensor): take its tensors by position, as in batch[0]"),
        (unpacked, TENSORS, A_TENSOR),
        (by_name, TENSORS, A_TENSOR),
        (as_arguments, TENSORS, A_TENSOR),
    ],
)
def test_a_batch_that_is_taken_for_another_kind_is_described(loss_fn: Any, batches: Any, here: str) -> None:
    """KeyError 0, or that a linear layer got a str, says nothing about what the loader yields."""
    with pytest.raises((LookupError, TypeError, AttributeError, ValueError)) as caught:
        swept(loss_fn=loss_fn, train_loader=batches)
    assert caught.value.__notes__ == [f"lrrunner: loss_fn gets each batch as the loader yields it, here {here}"]


@pytest.mark.parametrize(
    "criterion",
    [
        lambda output, target: nn.functional.mse_loss(output, target),
        lambda output, target: nn.functional.cross_entropy(output, target),
        lambda output, target: (output - target[0]).square().mean(),
        lambda output, target: output.squeeze(1).mean(),
    ],
)
def test_a_function_of_output_and_target_is_named_as_such(criterion: Any) -> None:
    """torch says that its argument 'input' must not be Sequential."""
    with pytest.raises((TypeError, AttributeError)) as caught:
        swept(loss_fn=criterion)
    assert caught.value.__notes__ == [
        "lrrunner: loss_fn is called with the model and a batch, not with an output and a target: pass lambda model, "
        "batch: criterion(model(batch[0]), batch[1])"
    ]


def test_a_misspelt_attribute_of_the_model_has_no_note() -> None:
    """It has nothing to do with how the call is made."""
    with pytest.raises(AttributeError, match="encodr") as caught:
        swept(loss_fn=lambda model, batch: model.encodr(batch[0]))
    assert not hasattr(caught.value, "__notes__")


def failing_lookup(model: nn.Module, batch: Any) -> torch.Tensor:
    """A key that has nothing to do with the batch, in a function of the script's own."""
    return squared_error(model, batch) * weight_of("rare")


def weight_of(name: str) -> float:
    """The weight of a class."""
    return {"frequent": 1.0}[name]


def test_a_failure_deeper_in_the_script_has_no_note_on_batches() -> None:
    """The batch is right."""
    with pytest.raises(KeyError) as caught:
        swept(loss_fn=failing_lookup)
    assert not hasattr(caught.value, "__notes__")


def test_a_loss_function_that_calls_backward_is_named() -> None:
    """torch proposes retain_graph, which would add the gradient twice."""

    def stepping(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = squared_error(model, batch)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="second time") as caught:
        swept(loss_fn=stepping)
    (note,) = caught.value.__notes__
    assert note.startswith("lrrunner: loss_fn must return the loss without calling backward()")


def test_inputs_of_another_precision_are_named() -> None:
    """NumPy's data are float64, a model's parameters float32."""
    with pytest.raises(RuntimeError) as caught:
        swept(loss_fn=lambda model, batch: model(batch[0].half()).mean())
    (note,) = caught.value.__notes__
    assert note.endswith("convert them in loss_fn, as in inputs.float()")
