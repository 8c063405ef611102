"""State of the caller's objects that a sweep changes is restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrunner.library.caller_state import dataset_epoch_restored
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import losses, swept


def test_a_dataset_gets_its_epoch_back() -> None:
    """Accelerate's loaders set the epoch of their dataset, which is not copied."""

    class Dataset(TensorDataset):
        epoch = 3

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    dataset = Dataset(torch.arange(4))
    loader = DataLoader(dataset)
    loader.iteration = 3
    with dataset_epoch_restored(loader):
        dataset.set_epoch(8)
    assert dataset.epoch == 3


def test_a_scaler_is_used_and_restored_even_between_unscaling_and_stepping() -> None:
    """A plain fp16 training may sweep anywhere in a step; a scaler that is switched off is not used."""
    model = small_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs, targets = regression_data(torch.float32)
    data = [(inputs, targets)]
    scaler.scale(squared_error(model, data[0])).backward()
    scaler.unscale_(optimizer)
    scales: list[float] = []

    def loss_fn(given: nn.Module, batch: Any) -> torch.Tensor:
        scales.append(scaler.get_scale())
        without_slope = (next(given.parameters()) * 0).sum().sqrt() if len(scales) == 1 else 0.0
        return squared_error(given, batch) + without_slope

    options: dict[str, Any] = {"train_loader": data, "num_steps": 4, "repeats": 2, "end_lr": 1e-3}
    plain = swept(model, optimizer, squared_error, **options)
    scaled = swept(model, optimizer, squared_error, scaler=scaler, **options)
    assert losses(scaled) == pytest.approx(losses(plain), rel=1e-5)
    swept(model, optimizer, loss_fn, scaler=scaler, **options)
    assert scales[:2] == [8.0, 4.0]
    assert scaler.get_scale() == 8.0
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert losses(swept(model, optimizer, squared_error, scaler=off, **options))[0] != losses(plain)[0]
