"""The loss of the model as it stands, on samples that no step is taken on. Nothing is asked about the world here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from lrrunner.collectives import Collective
from lrrunner.engine import Trainable, set_optimizer_mode


class Evaluation(NamedTuple):
    """What all ranks measured together.

    Attributes:
        loss: Mean over all items of all ranks; NaN without any.
        requesting: The ranks that asked to stop, and thereby ended the evaluation.
    """

    loss: float
    requesting: tuple[int, ...] = ()


@torch.no_grad()
def evaluate(
    trainable: Trainable,
    batches: Iterable[tuple[Any, int]],
    *,
    collective: Collective,
    stop_requested: Callable[[], bool] = lambda: False,
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
    """
    loss_sum, items = [0.0] * collective.world_size, [0.0] * collective.world_size
    with _eval_mode(trainable):
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
    return Evaluation(sum(loss_sum) / sum(items) if sum(items) else math.nan)


def _loss_and_count(trainable: Trainable, batch: Any, weight: int) -> tuple[float, float]:
    with trainable.autocast():
        result = trainable.objective(trainable.model, trainable.to_device(batch))
    loss, count = result if isinstance(result, tuple) else (result, weight)
    return float(loss), float(count) if weight else 0.0


@contextmanager
def _eval_mode(trainable: Trainable) -> Iterator[None]:
    """Eval mode inside; every module's own mode and the optimizer's training mode afterwards."""
    model, optimizer = trainable.model, trainable.optimizer
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    set_optimizer_mode(optimizer, training=False)
    try:
        yield
    finally:
        set_optimizer_mode(optimizer, training=True)
        for module, mode in training:
            module.training = mode
