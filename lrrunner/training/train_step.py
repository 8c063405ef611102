"""One training step: forward, backward, one all-reduce, clip, optimizer step.

A step trains on ``accumulation_steps`` micro-batches, fills this rank's row of a table, and sums the table over ranks.
What is decided after the step is read from that table, whose bits are the same on every rank. On a GPU the table of
step k is read while step k + 1 runs, so that the host never waits for the device.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training.collectives import Collective
from lrrunner.training.fsdp import is_sharded, local_part
from lrrunner.training.gradient_probe import GradientProbe
from lrrunner.training.item_counts import count_error
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.step_table import Column, Request, StepReading
from lrrunner.training.trainable import Trainable

CHANGED_LR = (
    "optimizer must use the LR that the sweep sets, got {}, which replaced {:.3g} by {:.3g} in its step {}; switch off "
    "its own schedule, or use another optimizer"
)


WRONG_COUNT = (
    "a tuple returned with the loss must be (loss, num_items), got {} for num_items; return the loss alone, or count "
    "the items that it is the mean of"
)


@dataclass(frozen=True)
class PendingStep:
    """A step that was issued and is not read yet.

    Attributes:
        index: Its index in the LR schedule.
        skipped: Whether the update was skipped: by the gradient scaler, or because no rank had any items.
        payload: The summed table and the gradient norm, flat.
        copied: Event after which ``payload`` is on the host; None if it is.
        bad_gradient_ranks: Ranks whose own gradient was not finite, as far as that was looked into.
    """

    index: int
    skipped: bool
    payload: torch.Tensor
    copied: torch.cuda.Event | None = None
    bad_gradient_ranks: tuple[int, ...] = ()

    def read(self, *, num_rows: int) -> StepReading:
        """Wait for the values, and return them."""
        if self.copied is not None:
            self.copied.synchronize()
        values = self.payload.numpy()
        return StepReading(values[:-1].reshape(num_rows, -1), float(values[-1]), self.bad_gradient_ranks)


def reads_late(device: torch.device, scaler: torch.amp.GradScaler | None, *, sync_every_step: bool) -> bool:
    """Whether a step is read while the next one runs, since reading it would make the host wait for the device.

    With a gradient scaler, the host waits anyway, to find out whether the scaler skipped the update.
    """
    return device.type == "cuda" and scaler is None and not sync_every_step


class TrainStep:
    """Does the training steps of one repeat. Every rank must make one, and call it in the same order.

    Args:
        trainable: What to train.
        collective: The world this rank belongs to.
        request: What this rank asks of all ranks, called once a step.
        sync_every_step: Read each step before the next one starts, also on a GPU.
        probe: Measures the noise of the gradient, on every rank or on none.

    Attributes:
        trainable: As given.
        device: Device of the model.
        reads_late: Whether a step is to be read while the next one runs.
        is_probed: Whether the noise of the gradient is measured.
        gradients_must_agree: Whether all ranks must have the same gradient after a backward pass, as under DDP.
        reference_items: Item count of a loss of weight 1, the same on all ranks; None before the first step.
    """

    def __init__(
        self,
        trainable: Trainable,
        *,
        collective: Collective,
        request: Callable[[], Request] = lambda: Request.NONE,
        sync_every_step: bool = False,
        probe: GradientProbe | None = None,
    ) -> None:
        self.trainable = trainable
        self._collective = collective
        self._request = request
        self._probe = probe
        self.is_probed = probe is not None
        self._is_sharded = is_sharded(trainable.model)
        self._num_columns = len(Column) + (0 if probe is None else probe.num_columns)
        self.gradients_must_agree = (
            collective.world_size > 1 and not self._is_sharded and not _has_local_parameters(trainable.model)
        )
        self._learning_rate = LearningRate(trainable.optimizer)
        self._parameters = trainable.parameters
        self.device = trainable.device
        self._on_cpu = self.device.type == "cpu"
        self.reads_late = reads_late(self.device, trainable.scaler, sync_every_step=sync_every_step)
        self.reference_items: float | None = None
        self._micro_batches: list[Any] = []

    def run(self, index: int, lr: float, batches: Iterator[Any]) -> PendingStep:
        """Do step ``index`` of the LR schedule, at ``lr``: forward, backward, one all-reduce, one optimizer step."""
        t = self.trainable
        self._learning_rate.set(lr)
        t.optimizer.zero_grad(set_to_none=True)
        loss_sum, items = self._backward(batches)
        local_norm = self._grad_norm()
        table = self._reduced_table(loss_sum, items, local_norm)
        if self._on_cpu and not table[:, Column.ITEMS].any():
            return self._pending(index, True, table, torch.zeros(()))
        factor = self._gradient_factor(table)
        self._multiply_gradients(factor)
        if t.scaler is not None:
            t.scaler.unscale_(t.optimizer)
        grad_norm = self._averaged_norm(local_norm, table, factor)
        if self._on_cpu and t.scaler is None and not torch.isfinite(table[:, Column.GRADIENT]).all():
            return self._not_applied(index, table, grad_norm)
        if t.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, t.max_grad_norm, grad_norm)
        skipped = self._step_optimizer()
        if (changed := self._learning_rate.changed_lr(lr)) is not None:
            raise ValueError(CHANGED_LR.format(type(t.optimizer).__name__, lr, changed, index))
        return self._pending(index, skipped, table, grad_norm)

    def discard_pass(self, batches: Iterator[Any]) -> None:
        """Do one forward and backward pass and drop the gradients.

        DDP rebuilds its buckets after its first backward pass. Another order of summation would change the last bit.
        """
        self._backward(batches)
        self.trainable.optimizer.zero_grad(set_to_none=True)

    def _not_applied(self, index: int, table: torch.Tensor, grad_norm: torch.Tensor) -> PendingStep:
        """A step whose gradient is not finite, on a CPU: the optimizer does not step, and the origin is looked for."""
        has_bad_loss = bool(table[:, Column.NON_FINITE].any())
        ranks = () if has_bad_loss or self._is_sharded else self._ranks_with_bad_gradient()
        return dataclasses.replace(self._pending(index, False, table, grad_norm), bad_gradient_ranks=ranks)

    def _ranks_with_bad_gradient(self) -> tuple[int, ...]:
        """Ranks whose own micro-batches give a gradient that is not finite. Every rank must call this.

        After DDP's reduction the gradient is not finite on any rank. So every rank computes its own again, unreduced.
        """
        t = self.trainable
        t.optimizer.zero_grad(set_to_none=True)
        with t.no_sync(), suppress(Exception):  # the objective may have changed a batch in place; then nobody is named
            for batch in self._micro_batches:
                with t.autocast():
                    loss, _ = self._loss_and_count(t.objective(t.model, batch), batch)
                loss.backward()
        flags = torch.zeros(self._collective.world_size, dtype=torch.float64)
        flags[self._collective.rank] = not torch.isfinite(self._grad_norm())
        return tuple(torch.nonzero(self._collective.sum_(flags)).flatten().tolist())

    def _backward(self, batches: Iterator[Any]) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Accumulate the gradient of sum(loss * n / reference) / accumulation_steps; returns sum(loss * n), sum(n)."""
        t = self.trainable
        loss_sum: torch.Tensor | float = 0.0
        items: torch.Tensor | float = 0.0
        self._micro_batches.clear()
        if self._probe is not None:
            self._probe.begin()
        for i in range(t.accumulation_steps):
            batch = t.to_device(next(batches))
            if self._on_cpu:
                self._micro_batches.append(copy.copy(batch))
            is_last = i == t.accumulation_steps - 1
            with nullcontext() if is_last else t.no_sync():
                with t.autocast():
                    loss, count = self._loss_and_count(t.objective(t.model, batch), batch)
                multiplier = self._weight(count) / t.accumulation_steps
                if self._on_cpu and not count and (self._collective.world_size == 1 or not is_last):
                    continue  # no rank waits for this gradient, which may be NaN: 0 / 0 of a masked mean
                scaled = _scaled(loss, multiplier)
                (scaled if t.scaler is None else t.scaler.scale(scaled)).backward()
                if self._probe is not None:
                    self._probe.take(count, multiplier if t.scaler is None else multiplier * t.scaler.get_scale())
            loss_sum = loss_sum + self._value(loss) * count
            items = items + count
        return loss_sum, items

    def _loss_and_count(self, result: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The loss and the item count of an objective's result. A loss over no items is 0, whatever it says."""
        if result is None:
            return _zero_loss(self._parameters), 0
        loss, count = result if isinstance(result, tuple) else (result, self.trainable.micro_batch_size)
        if isinstance(count, torch.Tensor):
            if not self._on_cpu:  # not read, since the host would wait for the device
                return torch.where(count > 0, loss, 0.0), count
            count = count.item()
        if isinstance(result, tuple) and (wrong := count_error(count, batch)):
            raise ValueError(WRONG_COUNT.format(wrong))
        if not count and not loss.requires_grad:  # a constant
            return _zero_loss(self._parameters), 0
        return (loss if count else torch.where(torch.zeros_like(loss, dtype=torch.bool), loss, 0.0)), count

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | float:
        """A scalar in float64; on a CPU as a float, since reading costs nothing there and tensor operations do."""
        return tensor.item() if self._on_cpu else tensor.detach().double()

    def _weight(self, count: torch.Tensor | float) -> torch.Tensor | float:
        """n over the reference count, so that a loss keeps its order of magnitude; 1 where all counts are equal.

        The reference is agreed once a repeat, from each rank's first micro-batch. ``_gradient_factor`` corrects the
        rest exactly.
        """
        if self.reference_items is None:
            first = torch.full((1,), float(count), dtype=torch.float64, device=self.device)
            self.reference_items = max(1.0, self._collective.sum_(first).item()) / self._collective.world_size
        return (count.to(torch.float64) if isinstance(count, torch.Tensor) else count) / self.reference_items

    def _gradient_factor(self, table: torch.Tensor) -> torch.Tensor | float:
        """From the mean over micro-batches of n / reference * gradient to sum(n * gradient) / sum(n)."""
        assert self.reference_items is not None
        num_micro_batches = self._collective.world_size * self.trainable.accumulation_steps
        total = table[:, Column.ITEMS].sum()
        if self._on_cpu:
            return self.reference_items * num_micro_batches / total.item()
        return torch.where(total > 0, self.reference_items * num_micro_batches / total, 0.0)

    def _multiply_gradients(self, factor: torch.Tensor | float) -> None:
        if isinstance(factor, float) and factor == 1.0:
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor if isinstance(factor, float) else factor.to(parameter.grad.dtype))

    def _averaged_norm(
        self, local_norm: torch.Tensor, table: torch.Tensor, factor: torch.Tensor | float
    ) -> torch.Tensor:
        """Norm of the gradient as it will be applied, from the norms measured before it was scaled."""
        norm = table[:, Column.GRADIENT].sum().sqrt() if self._is_sharded else local_norm
        if not (isinstance(factor, float) and factor == 1.0):
            norm = norm * factor
        return norm if self.trainable.scaler is None else norm / self.trainable.scaler.get_scale()

    def _reduced_table(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, local_norm: torch.Tensor
    ) -> torch.Tensor:
        """One row a rank, summed over ranks: each rank's values, untouched by NaN of other ranks."""
        gradient = local_norm.double().square() if self._is_sharded else local_norm
        spare = [gradient, *(() if self._probe is None else self._probe.columns())]
        size = (self._collective.world_size, self._num_columns)
        table = torch.zeros(size, dtype=torch.float64, device=self.device)
        table[self._collective.rank] = self._row(loss_sum, items, spare)
        return self._collective.sum_(table)

    def _row(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        request = float(self._request())
        if not isinstance(loss_sum, torch.Tensor):
            row = [loss_sum, float(items), not math.isfinite(loss_sum), request, *map(float, spare)]
            return torch.tensor(row, dtype=torch.float64)
        on_device = torch.full((self._num_columns,), request, dtype=torch.float64, device=self.device)
        on_device[Column.LOSS_SUM] = loss_sum
        on_device[Column.ITEMS] = items
        on_device[Column.NON_FINITE] = ~torch.isfinite(loss_sum)
        for column, value in enumerate(spare, start=Column.GRADIENT):
            on_device[column] = value
        return on_device

    def _grad_norm(self) -> torch.Tensor:
        """L2 norm of the gradient on this rank, of its shard under FSDP; zero-dimensional, on its device."""
        gradients = [local_part(p.grad) for p in self._parameters if p.grad is not None]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        if self._on_cpu and gradients:  # half the time of torch's own, which first sorts by device and type
            norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        else:
            norm = torch.nn.utils.get_total_norm(gradients)
        return norm

    def _step_optimizer(self) -> bool:
        """Step; returns whether the gradient scaler found an overflow and skipped it."""
        t = self.trainable
        if t.scaler is None:
            t.optimizer.step()
            return False
        scale_before = t.scaler.get_scale()
        t.scaler.step(t.optimizer)
        t.scaler.update()
        return bool(t.scaler.get_scale() < scale_before)

    def _pending(self, index: int, skipped: bool, table: torch.Tensor, grad_norm: torch.Tensor) -> PendingStep:
        payload = torch.cat([table.flatten(), grad_norm.detach().double().reshape(1)])
        if self._on_cpu or not self.reads_late:
            return PendingStep(index, skipped, payload.cpu())
        on_host = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        on_host.copy_(payload, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return PendingStep(index, skipped, on_host, copied)


def _scaled(loss: torch.Tensor, multiplier: torch.Tensor | float) -> torch.Tensor:
    """The loss times a weight; in 32 bits at least, since 16 would round the weight."""
    if isinstance(multiplier, float) and multiplier == 1.0:
        return loss
    loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    return loss * (multiplier.to(loss.dtype) if isinstance(multiplier, torch.Tensor) else multiplier)


def _zero_loss(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """A loss that reaches every parameter and moves none, so that a rank without a loss takes part in the reduction."""
    return torch.stack([(p.flatten()[:1] * 0.0).sum() for p in parameters if p.requires_grad]).sum()


def _has_local_parameters(model: torch.nn.Module) -> bool:
    """Whether DDP leaves some parameters alone, which may then differ between ranks."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    return any(
        name in wrapper.parameters_to_ignore for wrapper in wrappers for name, _ in wrapper.module.named_parameters()
    )
