"""Validation loss, confirmation runs and noise scale in the library call, on one rank."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lrrunner
from lrrunner.library.arguments.argument_names import in_argument_names
from lrrunner.library.loaders.evaluation_loader import EvaluationLoader
from lrrunner.records import Training
from lrrunner.training.collectives import SerialCollective
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import losses, swept


class EventfulLoss:
    """A loss that does something in the training step before the last one of all.

    Args:
        event: What it does.
        options: Of the call.
    """

    def __init__(self, event: Callable[[], None], **options: Any) -> None:
        self._event, self._num_steps, self._is_counting = event, 0, True
        swept(loss_fn=self, **options)
        self._event_at, self._num_steps, self._is_counting = self._num_steps - 1, 0, False

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        self._num_steps += torch.is_grad_enabled()
        if torch.is_grad_enabled() and not self._is_counting and self._num_steps == self._event_at:
            self._event()
        return squared_error(model, batch)


def raising(error: BaseException) -> Callable[[], None]:
    """A function that raises an exception."""

    def raise_it() -> None:
        raise error

    return raise_it


def held_out(**options: Any) -> DataLoader[Any]:
    """Other samples than the training set's."""
    inputs, targets = regression_data()
    return DataLoader(TensorDataset(inputs[:96] + 0.1, targets[:96]), **({"batch_size": 16} | options))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A loader that gives the same batches to a sweep and to a plain loop."""
    inputs, targets = regression_data()
    return [(inputs[i : i + 48], targets[i : i + 48]) for i in range(0, 192, 48)]


def test_a_confirmation_run_is_the_scripts_own_training() -> None:
    """Adam from the initial weights under the training's schedule, compared on the validation loss."""
    result = swept(train_loader=batches(), val_loader=held_out(), confirm=True, training_steps=400, schedule="linear")
    trial = result.trials[1]
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(trial.num_steps):
        optimizer.param_groups[0]["lr"] = trial.lr * (1 - step / trial.num_steps)
        optimizer.zero_grad()
        squared_error(model, batches()[step % 4]).backward()
        optimizer.step()
    with torch.no_grad():
        inputs, targets = held_out().dataset[:]
        assert trial.loss == pytest.approx(squared_error(model, (inputs, targets)).item(), rel=1e-9)
    assert result.confirmation is not None
    assert (result.confirmation.monitored, result.confirmation.budget_steps) == ("validation loss", 500)
    assert result.training.schedule == "linear"
    assert result.job.data.val == {"_target_": "torch.utils.data.dataset.TensorDataset"}


def test_without_a_validation_loader_runs_are_compared_on_training_batches() -> None:
    """As on the command line without data.val; a number is the budget of all runs."""
    result = swept(confirm=140)
    assert result.confirmation is not None
    assert (result.confirmation.monitored, result.confirmation.budget_steps) == ("training loss", 140)
    assert result.trials[0].num_steps == 46
    assert sum(trial.num_steps for trial in result.trials) <= 140
    assert "confirm." not in result.suggestion.reason


def test_the_monitored_loss_does_not_disturb_the_training() -> None:
    """The curve is the validation loss; the training steps are those of a sweep without it, bit for bit."""
    plain = swept(num_steps=60)
    monitored = swept(num_steps=60, val_loader=held_out(shuffle=True), monitor="val", val_every=3)
    number = min(len(plain.steps), len(monitored.steps))
    assert losses(monitored)[:number] == losses(plain)[:number]
    values = [step.val_loss for step in monitored.steps]
    assert [value is not None for value in values[:7]] == [True, False, False, True, False, False, True]
    assert monitored.monitored == "validation loss"
    assert monitored.job.sweep.val_every == 3


def test_the_noise_scale_is_measured_with_accumulation() -> None:
    """It needs the global batch size, which only the first step shows."""
    plain, noisy = (swept(accumulation_steps=2, noise_scale=measured) for measured in (False, True))
    assert losses(noisy) == losses(plain)
    assert plain.noise_scale is None
    assert noisy.noise_scale is not None
    assert noisy.noise_scale.low is not None
    assert noisy.global_batch_size == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confirm": "yes"}, "confirm must be true, false or a number of steps, got 'yes'; try True"),
        ({"confirm": 9}, "confirm must be at least 10 steps, got 9; True takes 5 x num_steps"),
        ({"monitor": "val"}, "monitor must be train without val_loader, got val; give val_loader"),
        ({"monitor": "test"}, "monitor must be one of train, val, got 'test'; try train"),
        ({"noise_scale": True}, "noise_scale compares gradients of several ranks or accumulation steps, got 1 rank"),
        ({"training_steps": 0}, "training_steps must lie between 1 and 1000000000, got 0; None is a training of"),
        ({"training_steps": 9.5}, "training_steps must be a whole number, got 9.5; try 1000"),
        ({"training_steps": 9, "warmup_steps": 9}, "warmup_steps must be below training_steps=9, got 9"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, got 'step'; try constant"),
        ({"val_loader": iter([1])}, "val_loader must start again when it is iterated again, got list_iterator"),
        ({"eval_mode": 0}, "eval_mode must be true or false, got 0; try True"),
        ({"modules": [3]}, "modules must be torch.nn.Modules, got int; give the modules that loss_fn calls"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    """Before the first step, under the names of the arguments."""
    with pytest.raises(ValueError, match="the arguments are wrong") as caught:
        swept(**options)
    assert message in str(caught.value)


class Detector(nn.Module):
    """Returns a loss in train mode and predictions in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        found = self.inner(inputs)
        return {"loss": nn.functional.mse_loss(found, targets)} if self.training else [found]


def detector_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that a detector returns."""
    loss: torch.Tensor = model(*batch)["loss"]
    return loss


def test_an_evaluation_that_fails_is_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    """The sweep is not lost, and the reason names the argument that helps, which does."""
    failed = swept(Detector(), loss_fn=detector_loss, confirm=True)
    assert failed.suggestion.lr is not None
    assert failed.suggestion.verdict == lrrunner.Verdict.OK
    assert "not confirmed: the loss could not be evaluated on rank 0: TypeError" in failed.suggestion.reason
    assert "needs eval_mode=False" in failed.suggestion.reason
    assert failed.trials == ()
    helped = swept(Detector(), loss_fn=detector_loss, confirm=True, eval_mode=False)
    assert len(helped.trials) > 2
    assert "the sweep runs without confirmation" in caplog.text


class Unreadable(TensorDataset):
    """A validation set whose fortieth sample is broken."""

    def __getitem__(self, index: Any) -> Any:
        if index == 40:
            raise OSError("broken file")
        return [tensor[index] for tensor in self.tensors]


def test_a_validation_sample_that_cannot_be_read_is_a_reason() -> None:
    """Kind 8: a failure of what the sweep does not need."""
    loader = DataLoader(Unreadable(*regression_data()), batch_size=16)
    result = swept(val_loader=loader, confirm=True)
    assert result.suggestion.lr is not None
    assert "the loss could not be evaluated on rank 0: OSError: broken file" in result.suggestion.reason
    assert "eval_mode" not in result.suggestion.reason


def test_a_confirmation_run_that_fails_is_a_reason() -> None:
    """It ran out of memory, say; the runs before it stay."""
    result = swept(loss_fn=EventfulLoss(raising(MemoryError("none left")), confirm=True), confirm=True)
    assert result.suggestion.lr is not None
    assert "failed with MemoryError: none left" in result.suggestion.reason
    assert len(result.trials) >= 1


@pytest.mark.parametrize("event", [lambda: os.kill(os.getpid(), signal.SIGINT), raising(KeyboardInterrupt())])
def test_an_interrupted_confirmation_gives_what_was_found(event: Callable[[], None]) -> None:
    """Ctrl-C, or a KeyboardInterrupt of the script's own: the script ends unless it asks for the result."""
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    loss_fn = EventfulLoss(event, confirm=True)
    with pytest.raises(KeyboardInterrupt, match=r"sys\.last_value\.result") as caught:
        swept(model, loss_fn=loss_fn, confirm=True)
    assert isinstance(caught.value, lrrunner.ConfirmationInterrupted)
    result = caught.value.result
    alone = swept()
    assert losses(result) == losses(alone)
    assert result.suggestion.verdict == alone.suggestion.verdict
    assert result.suggestion.lr is not None
    assert re.search(r"confirmation was interrupted after [1-9]\d* runs?", result.suggestion.reason)
    assert result.trials[0].outcome == "finished"
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_sweep_itself_is_as_anywhere() -> None:
    """Nothing has been found yet; everything is restored."""
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    loss_fn = EventfulLoss(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        swept(model, loss_fn=loss_fn)
    assert type(caught.value) is KeyboardInterrupt
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def read(loader: Any, **options: Any) -> tuple[EvaluationLoader, list[Any]]:
    """An evaluation loader, and the first field of each of its batches."""
    found = EvaluationLoader(loader, collective=SerialCollective(), seed=0, **options)
    return found, [batch[0].flatten().tolist() for batch, _ in found()]


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(7)])
def test_evaluations_read_the_same_batches_and_leave_the_loader_alone(generator: torch.Generator | None) -> None:
    """A shuffled loader would compare trials on different samples."""
    data = TensorDataset(torch.arange(40))
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    before = [] if generator is None else [generator.get_state()]
    found, first = read(loader, most=3)
    torch.manual_seed(0)
    first = [batch[0].tolist() for batch, _ in found()]
    torch.manual_seed(0)
    assert [batch[0].tolist() for batch, _ in found()] == first
    assert len(first) == 3
    for state in before:
        assert generator is not None
        assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(("batch_size", "expected"), [(16, 100), (50, 41), (400, 20), (6000, 2)])
def test_trials_are_compared_on_about_two_thousand_samples(batch_size: int, expected: int) -> None:
    """At least 2048 and 20 batches, at most 100 batches and all there are."""
    data = TensorDataset(torch.zeros(12_000))
    assert len(read(DataLoader(data, batch_size=batch_size))[1]) == expected


class Stream(IterableDataset[Any]):
    """Three batches of four; fewer from the third reading on."""

    num_readings = 0

    def __iter__(self) -> Iterator[Any]:
        self.num_readings += 1
        return iter([torch.tensor(float(i)) for i in range(12 if self.num_readings < 3 else 4)])


def test_a_stream_is_counted_and_a_shorter_one_padded() -> None:
    """Every batch of an evaluation is reduced over all ranks, so that all need as many."""
    found = EvaluationLoader(DataLoader(Stream(), batch_size=4), collective=SerialCollective(), seed=0, most=9)
    assert [weight for _, weight in found()] == [1, 1, 1]
    assert [(batch.tolist(), weight) for batch, weight in found()] == [([0.0, 1.0, 2.0, 3.0], w) for w in (1, 0, 0)]


def test_a_validation_loader_without_batches_is_a_reason_or_an_error() -> None:
    """Only a sweep that monitors it cannot do without."""
    empty = DataLoader(torch.utils.data.ChainDataset([]), batch_size=2)
    assert "val_loader gave no batch on rank 0" in swept(val_loader=empty, confirm=True).suggestion.reason
    with pytest.raises(RuntimeError, match="val_loader gave no batch on rank 0; check its dataset"):
        swept(val_loader=empty, monitor="val")


def test_messages_name_arguments() -> None:
    """The same texts name keys on the command line."""
    assert in_argument_names("raise confirm.budget_steps (train.num_steps)") == "raise confirm (training_steps)"
    assert in_argument_names("check data.val") == "check val_loader"


def test_a_training_of_unknown_length_is_counted_in_epochs_of_the_loader() -> None:
    """Of a short loader, the reference of 400 steps; and the suggestion says that it is an assumption."""
    assert swept(num_steps=30).training == Training(num_steps=400, is_assumed=True)
    assert swept(num_steps=30, training_steps=50).training == Training(num_steps=50)
