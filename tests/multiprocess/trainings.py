"""Whole trainings with Accelerate, with and without a range test in them."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrrunner

NUM_SAMPLES = 44


def mean_squared_error(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared error of a batch of inputs, targets and sample numbers."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def numbered_data() -> TensorDataset:
    """Ten inputs, one target, and each sample's number."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(NUM_SAMPLES, 10, generator=generator)
    return TensorDataset(inputs, inputs[:, :1] * 2 + inputs[:, 1:2].tanh(), torch.arange(NUM_SAMPLES))


def noisy_model() -> nn.Module:
    """A model whose buffers change, and which draws random numbers in forward."""
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


def sweep(accelerator: Accelerator, model: Any, optimizer: Any, loader: Any, **options: Any) -> lrrunner.RangeTest:
    """A sweep that reads the data several times."""
    settings: dict[str, Any] = {"num_steps": 25, "start_lr": 1e-5, "auto_range": False, "repeats": 2}
    return lrrunner.range_test(accelerator, model, optimizer, loader, mean_squared_error, **(settings | options))


def trained(
    *, sweep_at: int | None, num_epochs: int = 2, options: dict[str, Any] | None = None, **loader_options: Any
) -> dict[str, Any]:
    """State after a training with accumulation and a schedule, and the losses of the sweeps in it.

    Args:
        sweep_at: Micro-batch before which two sweeps in a row run, in the middle of an epoch and of an accumulation.
        num_epochs: Epochs.
        options: Of the sweeps, which also get a shuffled validation loader that is in the middle of an epoch.
        loader_options: Options of the data loader.
    """
    seed_everything()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = noisy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loader = DataLoader(numbered_data(), batch_size=4, **{"shuffle": True, **loader_options})
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    val_loader = accelerator.prepare(DataLoader(numbered_data(), batch_size=3, shuffle=True))
    validation = iter(val_loader)
    next(validation)
    if options is not None:
        options = {"val_loader": val_loader} | options
    order: list[int] = []
    losses: list[list[float]] = []
    for _ in range(num_epochs):
        for batch in loader:
            if sweep_at == len(order):
                results = [sweep(accelerator, model, optimizer, loader, **(options or {})) for _ in range(2)]
                losses = [[step.loss for step in result.steps] for result in results]
            order.append(batch[2].tolist())
            with accelerator.accumulate(model):
                accelerator.backward(mean_squared_error(model, batch))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    state = {
        "order": order,
        "validation": [batch[2].tolist() for batch in validation],
        "next validation": [batch[2].tolist() for batch in val_loader],
        "model": digest([*model.parameters(), *model.buffers()]),
        "optimizer": digest([value for state in optimizer.state.values() for value in state.values()]),
        "groups": repr([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]),
        "scheduler": scheduler.state_dict()["last_epoch"],
        "rng": (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()),
        "accelerate": (
            accelerator.step,
            accelerator.sync_gradients,
            len(GradientState().dataloader_references),
            loader.iteration,
            optimizer.step_was_skipped,
        ),
    }
    del model, optimizer, loader, scheduler, val_loader, validation
    accelerator.free_memory()
    return {"state": state, "losses": losses}


def seed_everything() -> None:
    """Seed all generators, as a script does before it builds anything."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def digest(tensors: list[torch.Tensor]) -> str:
    """Checksum of the bits of some tensors."""
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def forget_accelerate() -> None:
    """Reset Accelerate's process-wide state, as in a new process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
