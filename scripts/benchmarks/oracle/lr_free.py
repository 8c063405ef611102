"""Optimizers that need no learning rate, by their own packages and as these document them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

NUM_NORM_BATCHES = 50
"""Batches that batch norm sees before an evaluation of averaged weights, as schedulefree's documentation asks for."""


class LrFree(NamedTuple):
    """An optimizer that replaces the job's own.

    Attributes:
        package: What to install.
        lr: What the package documents for its ``lr``.
        make: (parameters, lr, weight_decay, warmup_steps) -> optimizer.
        schedules: That it is trained with, as its package documents. One that takes no decay is compared with every
            schedule of the job's own optimizer.
        warms_up: Whether it raises its LR over ``warmup_steps`` by itself.
    """

    package: str
    lr: float
    make: Callable[[Any, float, float, int], torch.optim.Optimizer]
    schedules: tuple[str, ...]
    warms_up: bool

    def schedule_for(self, schedule: str) -> str:
        """What it trains with where the job's own optimizer has a schedule."""
        return self.schedules[0] if len(self.schedules) == 1 else schedule

    @property
    def version(self) -> str | None:
        """The version that is installed, if any."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def _prodigy(params: Any, lr: float, weight_decay: float, warmup_steps: int) -> torch.optim.Optimizer:
    """Mishchenko and Defazio 2023, arXiv:2306.06101."""
    kind = importlib.import_module("prodigyopt").Prodigy
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how it decays weights
        optimizer: torch.optim.Optimizer = kind(
            params, lr=lr, weight_decay=weight_decay, safeguard_warmup=warmup_steps > 0
        )
    return optimizer


def _schedule_free_adamw(params: Any, lr: float, weight_decay: float, warmup_steps: int) -> torch.optim.Optimizer:
    """Defazio et al. 2024, arXiv:2405.15682."""
    kind = importlib.import_module("schedulefree").AdamWScheduleFree
    optimizer: torch.optim.Optimizer = kind(params, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps)
    return optimizer


LR_FREE = {
    "Prodigy": LrFree("prodigyopt", 1.0, _prodigy, ("constant", "cosine"), warms_up=False),
    "schedule-free AdamW": LrFree("schedulefree", 0.0025, _schedule_free_adamw, ("constant",), warms_up=True),
}
"""By the names they have in tables."""


def train_mode(optimizer: torch.optim.Optimizer) -> None:
    """Before the first step: some optimizers have a mode."""
    if hasattr(optimizer, "train"):
        optimizer.train()


def evaluation_mode(
    optimizer: torch.optim.Optimizer, model: nn.Module, loss: Callable[..., Any], batches: Iterator[Any]
) -> None:
    """After the last step: averaged weights, where the optimizer has them, and batch norm's statistics of these."""
    if not hasattr(optimizer, "eval"):
        return
    optimizer.eval()
    if any(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in model.modules()):
        with torch.no_grad():
            for _ in range(NUM_NORM_BATCHES):
                loss(model, next(batches))
