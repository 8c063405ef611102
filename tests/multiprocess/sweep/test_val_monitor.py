"""A sweep that monitors its validation loss trains exactly the steps of one that does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from lrrunner.config.schema import Config
from lrrunner.records import Step, StopReason
from lrrunner.sweep.data_loading import Datasets, RankBatches
from lrrunner.sweep.measure import measure
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.state.checkpoints import Checkpoints, read_newest
from tests.composing import composed
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import rank_context, regression_data, small_model, squared_error, trainable


class Restless(nn.Module):
    """Its training reads everything that an evaluation might disturb: statistics, a counter, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
        ).double()
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.layers[1].eval()  # the engine makes it train; afterwards it is as it was

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number a sample."""
        self.calls += 1 + 3 * (dist.get_rank() if dist.is_initialized() else 0)
        drift = self.layers.get_buffer("1.running_mean").sum() + 1e-3 * self.calls
        return self.layers(x) + drift.detach()


def job(*overrides: str, every: int = 1) -> Config:
    """Twelve steps, with fewer evaluations among them than a user may ask for."""
    settings = ("sweep.num_steps=12", "sweep.auto_range=false", "data.global_batch_size=48", "sweep.end_lr=1.0")
    found = composed(*settings, "sweep.monitor=val", *overrides)
    found.sweep.val_every = every
    return found


def steps_of(
    settings: Config,
    *,
    restless: bool,
    checkpoints: Checkpoints | None = None,
    heartbeat: Any = lambda step: None,
    **changes: Any,
) -> Any:
    """Everything of a sweep but its times, and where it ended; 100 samples are held out."""
    inputs, targets = regression_data()
    model = Restless() if restless else small_model()
    part = trainable(model=model, **changes)
    datasets = Datasets(
        train=TensorDataset(inputs, targets),
        num_samples=len(inputs),
        validation=TensorDataset(inputs[:100] + 1, targets[:100]),
    )
    passes = measure(
        settings,
        RankBatches(datasets, settings, collective=collective_for_world()),
        part,
        context=rank_context(checkpoints=checkpoints),
        heartbeat=heartbeat,
    ).passes
    return [dataclasses.replace(step, elapsed_s=0.0, timestamp_ms=0) for step in passes.steps], passes.stops


class Killed(BaseException):
    """Stands for SIGKILL of all ranks at once."""


def resumed(folder: Path) -> list[Step]:
    """Killed after its seventh step, evaluated every second one, and resumed."""
    collective = collective_for_world()

    def die(step: int) -> None:
        if step == 6:
            raise Killed

    def saver() -> Checkpoints:
        saved = read_newest(folder, collective=collective)
        return Checkpoints(folder, every_s=0.0, collective=collective, saved=saved)

    settings = job(every=2)
    try:
        measured_steps(settings, saver(), die)
    except Killed:
        collective.gather(None)
    return measured_steps(settings, saver(), lambda step: None)


def measured_steps(settings: Config, checkpoints: Checkpoints | None, heartbeat: Any) -> list[Step]:
    steps: list[Step] = steps_of(settings, restless=True, checkpoints=checkpoints, heartbeat=heartbeat)[0]
    return steps


def nan_sweep() -> Any:
    """Two batches an evaluation; the first one of the fourth goes wrong on rank 1."""
    evaluated = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        broken = not model.training and next(evaluated) == 6 and dist.get_rank() == 1
        return squared_error(model, batch) * (math.nan if broken else 1.0)

    return steps_of(job(), restless=False, objective=objective)


def measured(folder: str) -> dict[str, Any]:
    """All of it in one launch."""
    return {
        "restless": {
            (monitor, every): steps_of(job(f"sweep.monitor={monitor}", every=every), restless=True)
            for monitor, every in (("train", 1), ("val", 1), ("val", 2))
        },
        "plain": steps_of(job("sweep.start_lr=1e-9"), restless=False),
        "resumed": resumed(Path(folder)),
        "nan": nan_sweep(),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has measured."""
    folder = tmp_path_factory.mktemp("val")
    return on_ranks(measured, 2, folder / "ranks", str(folder))


@pytest.mark.parametrize("every", [1, 2])
def test_the_training_steps_are_those_of_an_undisturbed_sweep(ranks: list[dict[str, Any]], every: int) -> None:
    """To the last bit on every rank: statistics, counters, random numbers and modes are as they were."""
    for rank in ranks:
        alone, watched = rank["restless"]["train", 1][0], rank["restless"]["val", every][0]
        assert len(watched) == 12
        assert [(step.loss, step.grad_norm) for step in watched] == [(step.loss, step.grad_norm) for step in alone]
        assert [step.val_loss is not None for step in watched] == [i % every == 0 for i in range(12)]
        assert [step.is_monitored for step in watched] == [i % every == 0 for i in range(12)]


def test_a_validation_loss_is_the_mean_over_all_samples_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """Catalogue row 34: torch-lr-finder divides each rank's sum by the whole set, and never rewinds its iterator.

    96 of 100 samples are two whole batches; which ones is the seed's choice, for every number of ranks.
    """
    alone, _ = steps_of(job("sweep.start_lr=1e-9"), restless=False)
    for rank in ranks:
        together = rank["plain"][0]
        assert [step.val_items for step in together] == [96.0] * 12
        assert [step.val_loss for step in together] == pytest.approx([step.val_loss for step in alone], rel=1e-9)
    inputs, targets = regression_data()
    whole = squared_error(small_model(), (inputs[:100] + 1, targets[:100])).item()
    assert alone[0].val_loss == pytest.approx(whole, rel=0.05)
    assert alone[0].val_loss != pytest.approx(alone[0].loss, rel=0.05)


def test_the_average_is_that_of_the_validation_loss(ranks: list[dict[str, Any]]) -> None:
    """The stop rule reads it; it does not change after a step that was not evaluated."""
    steps = ranks[0]["restless"]["val", 2][0]
    first, third = steps[0].val_loss, steps[2].val_loss
    assert [step.smoothed_loss for step in steps[:3]] == pytest.approx(
        [first, first, (0.9 * 0.1 * first + 0.1 * third) / (1 - 0.9**2)], rel=1e-12
    )


def test_a_killed_sweep_resumes_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    """Evaluated or not, each record of a resumed sweep is that of an uninterrupted one."""
    for rank in ranks:
        assert list(map(repr, rank["resumed"])) == list(map(repr, rank["restless"]["val", 2][0]))


def test_a_validation_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it(ranks: list[dict[str, Any]]) -> None:
    """Law 4; the training loss of that step was finite, and is kept."""
    for rank in ranks:
        steps, (stop,) = rank["nan"]
        assert (stop.reason, stop.step, stop.ranks) == (StopReason.NON_FINITE, 3, (1,))
        assert math.isfinite(steps[3].loss)
        assert math.isnan(steps[3].val_loss)
