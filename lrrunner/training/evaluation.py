"""The loss of the model as it stands, on samples that no step is taken on. Nothing is asked about the world here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training.collectives import Collective
from lrrunner.training.optimizers import set_optimizer_mode
from lrrunner.training.snapshot import RngState, restore_buffers, saved_buffers
from lrrunner.training.trainable import Trainable


class Evaluation(NamedTuple):
    """What all ranks measured together.

    Attributes:
        loss: Mean over all items of all ranks; NaN without any.
        requesting: The ranks that asked to stop, and thereby ended the evaluation.
        non_finite: The ranks whose own loss was not finite.
        num_items: Items behind the loss, over all ranks.
    """

    loss: float
    requesting: tuple[int, ...] = ()
    non_finite: tuple[int, ...] = ()
    num_items: float = math.nan


@torch.no_grad()
def evaluate(
    trainable: Trainable,
    batches: Iterable[tuple[Any, int]],
    *,
    collective: Collective,
    stop_requested: Callable[[], bool] = lambda: False,
    batch_statistics: bool = False,
) -> Evaluation:
    """The loss in eval mode, without gradients. Every rank must call this, with the same number of batches.

    One reduction a batch, as in training: sums and counts of each rank in its own row, in float64, and its wish to
    stop, which all ranks then follow behind the same batch.

    Args:
        trainable: Its model, objective, autocast and device are used.
        batches: This rank's batches and how many samples each counts for. One that counts for 0 takes part in the
            forward pass, which may communicate, and in nothing else.
        collective: The world this rank belongs to.
        stop_requested: This rank's wish to stop.
        batch_statistics: Leave batch norm in the mode it is in. Its running statistics, which lag ten steps behind,
            are not those of weights in the middle of a sweep. In train mode, it moves them.
    """
    loss_sum, items = [0.0] * collective.world_size, [0.0] * collective.world_size
    with _eval_mode(trainable, apart_from=_BatchNorm if batch_statistics else ()):
        for batch, weight in batches:
            value, count = _loss_and_count(trainable, batch, weight)
            table = torch.zeros((collective.world_size, 3), dtype=torch.float64, device=trainable.device)
            row = [value * count if count else 0.0, count, float(stop_requested())]
            table[collective.rank] = torch.tensor(row, dtype=torch.float64)
            rows: list[list[float]] = collective.sum_(table).tolist()
            for rank, (more_loss, more_items, _) in enumerate(rows):
                loss_sum[rank] += more_loss
                items[rank] += more_items
            requesting = tuple(rank for rank, (_, _, request) in enumerate(rows) if request)
            if requesting:
                return Evaluation(math.nan, requesting)
    non_finite = tuple(rank for rank, loss in enumerate(loss_sum) if not math.isfinite(loss))
    loss = sum(loss_sum) / sum(items) if sum(items) else math.nan
    return Evaluation(loss, non_finite=non_finite, num_items=sum(items))


@contextmanager
def undisturbed(trainable: Trainable) -> Iterator[None]:
    """Random numbers and buffers are afterwards as before: a training goes on as if nothing had been evaluated.

    DDP does not broadcast buffers behind a forward pass without gradients; it is told what it was about to do.
    """
    rng, buffers = RngState.capture(trainable.device), saved_buffers(trainable.model)
    copied = [module for module in trainable.model.modules() if isinstance(module, DistributedDataParallel)]
    broadcasts = [module.require_forward_param_sync for module in copied]
    try:
        yield
    finally:
        for module, broadcast in zip(copied, broadcasts, strict=True):
            module.require_forward_param_sync = broadcast
        with torch.no_grad():
            restore_buffers(buffers)
        rng.restore(trainable.device)


def _loss_and_count(trainable: Trainable, batch: Any, weight: int) -> tuple[float, float]:
    with trainable.autocast():
        result = trainable.objective(trainable.model, trainable.to_device(batch))
    loss, count = result if isinstance(result, tuple) else (result, weight)
    return float(loss), float(count) if weight else 0.0


@contextmanager
def _eval_mode(trainable: Trainable, *, apart_from: type[nn.Module] | tuple[()]) -> Iterator[None]:
    """Eval mode inside; every module's own mode and the optimizer's training mode afterwards."""
    model, optimizer = trainable.model, trainable.optimizer
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, mode in training:
        if isinstance(module, apart_from):
            module.training = mode
    set_optimizer_mode(optimizer, training=False)
    try:
        yield
    finally:
        set_optimizer_mode(optimizer, training=True)
        for module, mode in training:
            module.training = mode
