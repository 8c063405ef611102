"""Validation loss, confirmation runs and noise scale in the library call, on two ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lrrunner
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import regression_data, small_model, squared_error

OPTIONS: dict[str, Any] = {"start_lr": 1e-6, "auto_range": False, "confirm": 140}


def sharded(dataset: Any, batch_size: int) -> DataLoader[Any]:
    """Batches of this rank's half, in order."""
    if not dist.is_initialized():
        return DataLoader(dataset, batch_size=2 * batch_size)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, shuffle=False)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler)


def swept(loss_fn: Any = squared_error, *, fsdp: bool = False, **options: Any) -> lrrunner.RangeTest:
    """A range test of the small model with Adam, wrapped for the world this process is in."""
    inputs, targets = regression_data()
    model: nn.Module = small_model()
    if fsdp:
        fully_shard(model)
    elif dist.is_initialized():
        model = DistributedDataParallel(model)
    settings = OPTIONS | {"val_loader": sharded(TensorDataset(inputs[:96] + 0.1, targets[:96]), 8)} | options
    optimizer = torch.optim.Adam(model.parameters())
    return lrrunner.range_test(None, model, optimizer, sharded(TensorDataset(inputs, targets), 24), loss_fn, **settings)


def summary(result: lrrunner.RangeTest) -> list[Any]:
    """What must be the same on any number of ranks."""
    assert result.confirmation is not None
    trials = [(trial.lr, trial.num_steps, trial.loss) for trial in result.trials]
    return [result.suggestion.lr, trials, [step.val_loss for step in result.steps], result.confirmation.monitored]


class Stream(IterableDataset[Any]):
    """Samples of an unknown number that differs by rank."""

    def __iter__(self) -> Any:
        inputs, targets = regression_data()
        return iter(list(zip(inputs, targets, strict=True))[: 20 + 24 * dist.get_rank()])


class Interrupting:
    """A loss during whose 160th training step, in the second run, rank 1 gets a signal."""

    num_steps = 0

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        self.num_steps += torch.is_grad_enabled()
        if self.num_steps == 160 and torch.is_grad_enabled() and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return squared_error(model, batch)


def dispatched() -> list[Any]:
    """Loaders of Accelerate: streams that rank 0 alone reads and sends on, for training and for evaluations."""
    accelerator = Accelerator(cpu=True)
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    loaders = [DataLoader(Stream(), batch_size=8) for _ in range(2)]
    own, optimizer, train, val = accelerator.prepare(model, optimizer, *loaders)
    found = summary(
        lrrunner.range_test(accelerator, own, optimizer, train, squared_error, **(OPTIONS | {"val_loader": val}))
    )
    del model, own, optimizer
    accelerator.free_memory()
    return found


def interrupted() -> tuple[str, list[Any]]:
    """The exception's class, and the result that it holds."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as caught:
        swept(Interrupting())
    assert isinstance(caught.value, lrrunner.ConfirmationInterrupted)
    result = caught.value.result
    return result.suggestion.reason, [(trial.lr, trial.loss) for trial in result.trials if trial.outcome == "finished"]


class FailingInEvalMode:
    """A loss that rank 1 cannot compute in eval mode."""

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if not model.training and dist.get_rank() == 1:
            raise ValueError("no loss here")
        return squared_error(model, batch)


def every_case() -> dict[str, Any]:
    """The results of several checks in one world."""
    torch.set_num_threads(1)
    return {
        "plain": summary(swept(monitor="val", val_every=2)),
        "noise": str(swept(noise_scale=True, confirm=False).noise_scale),
        "stream": summary(swept(val_loader=DataLoader(Stream(), batch_size=8))),
        "sharded": summary(swept(fsdp=True, monitor="val", val_every=2)),
        "dispatched": dispatched(),
        "interrupted": interrupted(),
        "failing": swept(FailingInEvalMode()).suggestion.reason,
    }


def failing() -> tuple[str, float | None]:
    """A confirmation run that fails on rank 1, in a world that ends with it."""
    calls = iter(range(10**6))

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and next(calls) == 120 and dist.get_rank() == 1:
            raise MemoryError("none left")
        return squared_error(model, batch)

    with pytest.raises(lrrunner.ConfirmationError) as caught:
        swept(loss_fn)
    return str(caught.value), caught.value.result.suggestion.lr


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results by rank."""
    return on_ranks(every_case, 2, tmp_path_factory.mktemp("confirmation"))


def test_two_ranks_confirm_what_one_rank_does(cases: list[dict[str, Any]]) -> None:
    """The global batch is the same, in DDP and with FSDP2; so are LR, losses of the runs and validation losses."""
    alone = swept(monitor="val", val_every=2)
    expected = summary(alone)
    for lr, trials, val_losses, monitored in (case[name] for case in cases for name in ("plain", "sharded")):
        assert lr == pytest.approx(expected[0], rel=1e-6)
        assert [trial[:2] for trial in trials] == [(pytest.approx(lr), steps) for lr, steps, _ in expected[1]]
        assert [trial[2] for trial in trials] == pytest.approx([trial[2] for trial in expected[1]], rel=1e-6)
        assert val_losses[::2] == pytest.approx(expected[2][::2], rel=1e-6)
        assert monitored == "validation loss"


def test_all_ranks_find_the_same(cases: list[dict[str, Any]]) -> None:
    """Also with streams of unequal length, a signal on one rank, and an evaluation that fails on one."""
    first, second = cases
    assert first == second
    assert len(first["dispatched"][1]) > 2
    assert first["noise"].startswith("critical batch size: ")
    reason, trials = first["interrupted"]
    assert "confirmation was interrupted after" in reason
    assert len(trials) > 0
    assert "the loss could not be evaluated on rank 1: ValueError: no loss here" in first["failing"]
    assert "needs eval_mode=False" in first["failing"]


def test_a_run_that_fails_on_one_rank_leaves_the_sweep_in_the_exception(tmp_path: Path) -> None:
    """Its peers wait in a collective, so that the call cannot return; nothing that was found is lost."""
    (first, lr), (second, other) = on_ranks(failing, 2, tmp_path)
    assert lr is not None
    assert lr == other
    assert "a confirmation run failed with MemoryError: none left" in second
    assert "a confirmation run failed with " in first
