"""Losses are checked and weighted by the number of items that they are the mean of."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.library.arguments.loss_function import loss_function_errors
from lrrunner.training.step.item_counts import num_samples
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import losses, swept


def test_a_loss_that_is_not_a_mean_is_refused_and_everything_restored() -> None:
    """A tensor of losses, a model's whole output, or batches that cannot be counted."""
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    for loss_fn, message in (
        (lambda m, b: (m(b[0]) - b[1]) ** 2, r"got a tensor of shape \(48, 1\); return its mean"),
        (lambda m, b: {"loss": squared_error(m, b)}, "got dict; return its loss"),
        (
            lambda m, b: (squared_error(m, b), m(b[0])),
            r"\(loss, num_items\), got a tensor of shape \(48, 1\) for num_items; return the loss alone",
        ),
        (lambda m, b: (squared_error(m, b), -3), r"\(loss, num_items\), got -3, below 0 for num_items"),
        (lambda m, b: (squared_error(m, b), torch.tensor(math.nan)), r"\(loss, num_items\), got nan for num_items"),
        (lambda m, b: (squared_error(m, b), "8"), r"\(loss, num_items\), got a str for num_items"),
    ):
        with pytest.raises(ValueError, match=message):
            swept(model, loss_fn=loss_fn)
    inputs, targets = regression_data()
    with pytest.raises(ValueError, match=r"must return \(loss, num_items\) where a batch holds no tensor"):
        swept(model, loss_fn=lambda m, b: squared_error(m, (inputs, targets)), train_loader=[["a", "b"]])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_ragged_batches_are_weighted_by_size_and_may_be_dictionaries() -> None:
    """The last batch of an epoch is smaller; accumulated with a full one it counts for less."""
    inputs, targets = regression_data()
    batches = [{"x": inputs[:20], "y": targets[:20]}, {"x": inputs[20:24], "y": targets[20:24]}]
    result = swept(
        train_loader=batches, loss_fn=lambda m, b: squared_error(m, (b["x"], b["y"])), accumulation_steps=2, num_steps=2
    )
    with torch.no_grad():
        expected = squared_error(small_model(), (inputs[:24], targets[:24])).item()
    assert result.steps[0].loss == pytest.approx(expected, rel=1e-12)
    assert result.global_batch_size == 24


def test_negative_losses_are_swept_like_others() -> None:
    """Row 5: the zero of a loss has no meaning."""
    plain, shifted = swept(), swept(loss_fn=lambda m, b: squared_error(m, b) - 1000.0)
    assert shifted.suggestion.lr == pytest.approx(plain.suggestion.lr, rel=1e-6)
    assert max(losses(shifted)[:10]) < 0


def test_the_size_of_a_batch_is_that_of_its_first_tensor() -> None:
    """The weight of a loss that comes without a number of items."""
    assert num_samples([torch.tensor(1.0), {"x": torch.zeros(5, 2)}, torch.zeros(3)]) == 5
    assert num_samples({"text": ["a", "b"]}) is None
    assert num_samples(({"ids": torch.zeros(4, 7)}, {"labels": torch.zeros(4)})) == 4


def test_lists_of_samples_are_not_taken_for_fields() -> None:
    """Images of unequal sizes come as lists: the first dimension of the first one is its height."""
    images, boxes = [torch.zeros(2, 5)] * 8, [torch.zeros(1)] * 8
    assert num_samples((images, boxes)) is None
    assert num_samples((images, torch.zeros(8))) == 8
    assert num_samples({"images": images, "labels": torch.zeros(8)}) == 8
    assert num_samples([{"image": torch.zeros(3, 9)}] * 8) is None


def packed_loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """The mean over tokens."""
    return squared_error(model, (batch["x"][0], batch["y"][0]))


def test_the_batch_size_of_packed_tokens_is_their_number_of_sequences() -> None:
    """It was 1, the first dimension, whatever was packed."""
    inputs, targets = regression_data()
    bounds = {"cu_seqlens": torch.tensor([0, 5, 9, 24])}
    positions = {"position_ids": torch.cat([torch.arange(10), torch.arange(14)])[None]}
    for packing, size in ((bounds, 3), (positions, 2)):
        batch = {"x": inputs[None, :24], "y": targets[None, :24], **packing}
        result = swept(train_loader=[batch], loss_fn=packed_loss, num_steps=2, accumulation_steps=2)
        assert result.global_batch_size == 2 * size


def test_tensors_that_differ_in_their_first_dimension_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """The tokens of all samples in one dimension: which one is the batch size must be said."""
    inputs, targets = regression_data()
    batch = {"tokens": inputs[:24], "labels": targets[:24], "lengths": torch.tensor([10, 14])}
    swept(train_loader=[batch], loss_fn=lambda m, b: squared_error(m, (b["tokens"], b["labels"])), num_steps=2)
    assert "differ in their first dimension (tokens: 24, lengths: 2)" in caplog.text


class Unread:
    """A loader that must not be read."""

    def __iter__(self) -> Any:
        raise AssertionError("read")


class LossMethod:
    """A loss function that belongs to an object."""

    def of(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch."""
        return squared_error(model, batch)


LAMBDA = "lambda model, batch: criterion(model(batch[0]), batch[1])"


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (nn.CrossEntropyLoss(), f"got CrossEntropyLoss, which takes an output and a target; give {LAMBDA}"),
        (nn.MSELoss, f"got the class MSELoss; give a function, as in {LAMBDA}"),
        (nn.functional.mse_loss, f"got mse_loss, which takes an output and a target; give {LAMBDA}"),
        (
            functools.partial(nn.functional.cross_entropy, label_smoothing=0.1),
            f"got cross_entropy, which takes an output and a target; give {LAMBDA}",
        ),
        (lambda model, inputs, target: None, "got a function of (model, inputs, target); unpack the batch in it"),
        (lambda batch: None, "got a function of (batch); unpack the batch in it"),
    ],
)
def test_what_is_no_function_of_model_and_batch_is_refused_before_the_first_batch(loss_fn: Any, got: str) -> None:
    """Finders elsewhere take a criterion; torch's own message names a layer's argument."""
    with pytest.raises(ValueError, match="the arguments are wrong") as caught:
        swept(loss_fn=loss_fn, train_loader=Unread())
    assert got in str(caught.value)


@pytest.mark.parametrize("loss_fn", [max, LossMethod().of, functools.partial(squared_error), nn.Identity()])
def test_whatever_takes_two_arguments_may_be_a_loss_function(loss_fn: Any) -> None:
    """Methods, partial functions, modules, and functions of C, which have no signature."""
    assert loss_function_errors(loss_fn) == []
