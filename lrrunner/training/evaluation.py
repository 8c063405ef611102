"""The loss of the current model on samples that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lrrunner.system.output.error_message import error_message
from lrrunner.training.collectives import Collective
from lrrunner.training.optimizer.optimizers import set_optimizer_mode
from lrrunner.training.state.snapshot import RngState, restore_buffers, saved_buffers
from lrrunner.training.step.loss_result import loss_and_count
from lrrunner.training.trainable import Trainable


class EvaluationError(RuntimeError):
    """A loss could not be evaluated; raised on all ranks."""


class Evaluation(NamedTuple):
    """A loss that all ranks measured together.

    Attributes:
        loss: Mean over all items of all ranks; NaN without any.
        requesting: Ranks that asked to stop, which ended the evaluation.
        non_finite: Ranks whose own loss was not finite.
        num_items: Items that the loss is the mean of, over all ranks.
        batch_losses: Mean of each batch over its items on all ranks, in order; batches without items are left out.
    """

    loss: float
    requesting: tuple[int, ...] = ()
    non_finite: tuple[int, ...] = ()
    num_items: float = math.nan
    batch_losses: tuple[float, ...] = ()


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

    One reduction a batch, as in training: each rank fills its own row with its sum, its count and its stop request, in
    float64. All ranks stop after the same batch.

    Args:
        trainable: Its model, objective, autocast and device are used.
        batches: This rank's batches, and how many samples each counts for. A batch that counts for 0 is run forward,
            since that may communicate, and not counted.
        collective: The world this rank belongs to.
        stop_requested: Whether this rank was asked to stop.
        batch_statistics: Leave batch norm in its current mode. Its running statistics average over about ten steps, in
            which the weights of a sweep change much. In train mode, evaluating updates them.

    Raises:
        EvaluationError: objective or data failed on a rank; raised on all of them, after the same batch.
    """
    loss_sum, items = [0.0] * collective.world_size, [0.0] * collective.world_size
    batch_losses: list[float] = []
    with _eval_mode(trainable, apart_from=_BatchNorm if batch_statistics else ()):
        for batch, weight, unreadable in _readable(batches):
            value, count, error = _loss_count_and_error(trainable, batch, weight, unreadable)
            table = torch.zeros((collective.world_size, 4), dtype=torch.float64, device=trainable.device)
            row = [value * count if count else 0.0, count, float(stop_requested()), float(error is not None)]
            table[collective.rank] = torch.tensor(row, dtype=torch.float64)
            rows: list[list[float]] = collective.sum_(table).tolist()
            if failed := [rank for rank, (*_, has_failed) in enumerate(rows) if has_failed]:
                cause = collective.gather(_cause(error, is_data=unreadable is not None))[failed[0]]
                ranks = ", ".join(map(str, failed))
                raise EvaluationError(f"the loss could not be evaluated on rank {ranks}: {cause}") from error
            for rank, (more_loss, more_items, *_) in enumerate(rows):
                loss_sum[rank] += more_loss
                items[rank] += more_items
            batch_sum, batch_items = sum(row[0] for row in rows), sum(row[1] for row in rows)
            if batch_items:
                batch_losses.append(batch_sum / batch_items)
            requesting = tuple(rank for rank, (_, _, request, _) in enumerate(rows) if request)
            if requesting:
                return Evaluation(math.nan, requesting)
    non_finite = tuple(rank for rank, loss in enumerate(loss_sum) if not math.isfinite(loss))
    loss = sum(loss_sum) / sum(items) if sum(items) else math.nan
    return Evaluation(loss, non_finite=non_finite, num_items=sum(items), batch_losses=tuple(batch_losses))


@contextmanager
def undisturbed(trainable: Trainable) -> Iterator[None]:
    """Restore random number generators and buffers on exit, so that training continues as if nothing was evaluated.

    DDP skips the broadcast of buffers that follows a forward pass without gradients. Its flag is restored, too.
    """
    modules = [part for module in trainable.modules for part in module.modules()]
    rng, buffers = RngState.capture(trainable.device), saved_buffers(modules)
    copied = [module for module in modules if isinstance(module, DistributedDataParallel)]
    broadcasts = [module.require_forward_param_sync for module in copied]
    try:
        yield
    finally:
        for module, broadcast in zip(copied, broadcasts, strict=True):
            module.require_forward_param_sync = broadcast
        with torch.no_grad():
            restore_buffers(buffers)
        rng.restore(trainable.device)


def _readable(batches: Iterable[tuple[Any, int]]) -> Iterator[tuple[Any, int, Exception | None]]:
    """Batches with their weights; at the end, if one cannot be read, its error, so that no rank waits for this one."""
    iterator = iter(batches)
    while True:
        try:
            batch, weight = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - whatever a user's data set raises
            yield None, 0, error
            return
        yield batch, weight, None


def _cause(error: Exception | None, *, is_data: bool) -> str:
    """This rank's error as text; empty if there is none."""
    if error is None:
        return ""
    hint = "" if is_data else "; a model that returns no loss in eval mode needs train.eval_mode=false"
    return f"{type(error).__name__}: {error_message(error)}{hint}"


def _loss_count_and_error(
    trainable: Trainable, batch: Any, weight: int, unreadable: Exception | None
) -> tuple[float, float, Exception | None]:
    """Loss, item count and no error; or the error, which every rank must learn of before anyone raises."""
    if unreadable is not None:
        return 0.0, 0.0, unreadable
    try:
        batch = trainable.to_device(batch)
        with trainable.autocast():
            result = trainable.objective(trainable.model, batch)
        count_items = trainable.count_items or (lambda batch: weight)
        loss, count = loss_and_count(result, batch=batch, count_items=count_items, on_cpu=True)
        return 0.0 if loss is None else float(loss), float(count) if weight else 0.0, None
    except Exception as error:  # noqa: BLE001 - whatever a user's objective raises
        return 0.0, 0.0, error


@contextmanager
def _eval_mode(trainable: Trainable, *, apart_from: type[nn.Module] | tuple[()]) -> Iterator[None]:
    """Eval mode inside; each module's own mode and the optimizer's training mode on exit."""
    model, optimizer = trainable.model, trainable.optimizer
    if not trainable.eval_mode:
        yield
        return
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
