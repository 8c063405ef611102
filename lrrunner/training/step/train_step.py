"""One training step: forward, backward, one all-reduce, clip, optimizer step.

A step trains on ``accumulation_steps`` micro-batches, fills this rank's row of a table, and sums the table over ranks.
What is decided after the step is read from that table, whose bits are the same on every rank. On a GPU the table of
step k is read while step k + 1 runs, so that the host never waits for the device.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from lrrunner.training.collectives import Collective
from lrrunner.training.fsdp import is_sharded, local_part
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.state.snapshot import RngState
from lrrunner.training.step.gradient_probe import GradientProbe
from lrrunner.training.step.loss_result import Count, loss_and_count, weighted
from lrrunner.training.step.model_calls import ModelCalls
from lrrunner.training.step.step_table import Column, Columns, Request, StepReading, columns_of
from lrrunner.training.step.watched_tensors import finite_buffers, local_parameters, norm_of
from lrrunner.training.trainable import Trainable

CHANGED_LR = (
    "optimizer must use the LR that the sweep sets, got {}, which replaced {:.3g} by {:.3g} in its step {}; switch off "
    "its own schedule, or use another optimizer"
)


@dataclass(frozen=True)
class PendingStep:
    """A step that was issued and is not read yet.

    Attributes:
        index: Its index in the LR schedule.
        skipped: Whether the update was skipped: by the gradient scaler, or because no rank had any items.
        read: Waits for the values, and returns them.
    """

    index: int
    skipped: bool
    read: Callable[[], StepReading]


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
        gradients_must_agree: Whether all ranks must have the same gradient after a backward pass, as under DDP, which
            may leave some parameters alone.
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
        self.gradients_must_agree = collective.world_size > 1 and not self._is_sharded
        self._learning_rate = LearningRate(trainable.optimizer)
        self._parameters = trainable.parameters
        local = local_parameters(trainable.model) if self.gradients_must_agree else set()
        self._reduced = [p for p in self._parameters if p not in local] if local else self._parameters
        self._num_micro_batches = collective.world_size * trainable.accumulation_steps
        self._clears_gradients = type(trainable.optimizer).zero_grad is torch.optim.Optimizer.zero_grad
        self._count_items = trainable.count_items or (lambda batch: trainable.micro_batch_size)
        self._calls = None
        if collective.world_size > 1:
            self._calls = ModelCalls(trainable.model, self._parameters, is_sharded=self._is_sharded)
        self._buffers = finite_buffers(trainable.model)
        self.device = trainable.device
        self._on_cpu = self.device.type == "cpu"
        self.reads_late = reads_late(self.device, trainable.scaler, sync_every_step=sync_every_step)
        self.reference_items: float | None = None
        self._micro_batches: list[Any] = []
        self._rng: RngState | None = None

    def run(self, index: int, lr: float, batches: Iterator[Any]) -> PendingStep:
        """Do step ``index`` of the LR schedule, at ``lr``: forward, backward, one all-reduce, one optimizer step."""
        self._learning_rate.set(lr)
        self._clear_gradients()
        loss_sum, items = self._backward(batches)
        local_norm = self._grad_norm(self._parameters)
        reduced_norm = local_norm
        if self._reduced is not self._parameters:  # also what a rank keeps to itself must be finite
            reduced_norm = self._grad_norm(self._reduced) + local_norm * 0.0
        if self._on_cpu:
            return self._finished_on_host(index, lr, self._reduced_columns(loss_sum, items, reduced_norm), local_norm)
        return self._finished_on_device(index, lr, self._reduced_table(loss_sum, items, reduced_norm), local_norm)

    def _finished_on_host(self, index: int, lr: float, columns: Columns, local_norm: torch.Tensor) -> PendingStep:
        """The rest of a step on a CPU, where reading costs nothing: a bad gradient is not applied."""
        assert self.reference_items is not None
        reading = StepReading(columns)
        pending = functools.partial(PendingStep, index, read=lambda: reading)
        if not reading.num_items:
            return pending(skipped=True)
        factor = self.reference_items * self._num_micro_batches / reading.num_items
        grad_norm = self._unscaled(local_norm, reading.gradient_sum, factor)
        if self._reduced is self._parameters:
            reading.grad_norm = float(grad_norm)
        else:
            reading.grad_norm = reading.gradient_sum / self._collective.world_size * factor / self._scale()
        if self.trainable.scaler is None and not math.isfinite(reading.gradient_sum):
            if not (reading.non_finite_ranks or self._is_sharded):
                reading.bad_gradient_ranks = self._ranks_with_bad_gradient()
            return pending(skipped=False)
        return pending(skipped=self._applied(index, lr, grad_norm))

    def _finished_on_device(self, index: int, lr: float, table: torch.Tensor, local_norm: torch.Tensor) -> PendingStep:
        """The rest of a step on a GPU, without waiting for it."""
        assert self.reference_items is not None
        total = table[:, Column.ITEMS].sum()
        factor = torch.where(total > 0, self.reference_items * self._num_micro_batches / total, 0.0)
        grad_norm = self._unscaled(local_norm, table[:, Column.GRADIENT].sum(), factor)
        skipped = self._applied(index, lr, grad_norm)
        if self._reduced is not self._parameters:
            grad_norm = table[:, Column.GRADIENT].sum() / len(table) * factor / self._scale()
        payload = torch.cat([table.flatten(), grad_norm.detach().double().reshape(1)])
        copied = None
        if self.reads_late:
            on_host = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
            on_host.copy_(payload, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            payload = on_host
        return PendingStep(index, skipped=skipped, read=functools.partial(_reading, payload, copied, len(table)))

    def _applied(self, index: int, lr: float, grad_norm: torch.Tensor) -> bool:
        """Clip, and step; returns whether the gradient scaler found an overflow and skipped the step.

        Raises:
            ValueError: the optimizer has replaced the LR.
        """
        t = self.trainable
        if t.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, t.max_grad_norm, grad_norm)
        skipped = self._step_optimizer()
        if (changed := self._learning_rate.changed_lr(lr)) is not None:
            raise ValueError(CHANGED_LR.format(type(t.optimizer).__name__, lr, changed, index))
        return skipped

    def discard_pass(self, batches: Iterator[Any]) -> None:
        """Do one forward and backward pass and drop the gradients.

        DDP rebuilds its buckets after its first backward pass. Another order of summation would change the last bit.
        """
        self._backward(batches)
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        """What ``optimizer.zero_grad(set_to_none=True)`` does; torch's own costs more than a small model's norm."""
        if not self._clears_gradients:
            self.trainable.optimizer.zero_grad(set_to_none=True)
            return
        for parameter in self._parameters:
            parameter.grad = None

    def _ranks_with_bad_gradient(self) -> tuple[int, ...]:
        """Ranks whose own micro-batches give a gradient that is not finite. Every rank must call this.

        After DDP's reduction the gradient is not finite on any rank. So every rank computes its own again, unreduced.
        """
        t = self.trainable
        if self._collective.world_size == 1:
            return (0,)
        self._clear_gradients()
        if self._rng is not None:
            self._rng.restore(self.device)
        with t.no_sync(), suppress(Exception):  # the objective may have changed a batch in place; then nobody is named
            for batch in self._micro_batches:
                with t.autocast():
                    loss, _ = self._loss_and_count(batch)
                if loss is not None:
                    loss.backward()
        flags = torch.zeros(self._collective.world_size, dtype=torch.float64)
        flags[self._collective.rank] = not torch.isfinite(self._grad_norm(self._parameters))
        return tuple(torch.nonzero(self._collective.sum_(flags)).flatten().tolist())

    def _backward(self, batches: Iterator[Any]) -> tuple[torch.Tensor | float, Count]:
        """Accumulate the gradient of sum(loss * n / reference) / accumulation_steps; returns sum(loss * n), sum(n)."""
        t = self.trainable
        loss_sum: torch.Tensor | float = 0.0
        items: Count = 0.0
        self._micro_batches.clear()
        if self._on_cpu and self._calls is not None:
            self._rng = RngState.capture(self.device)
        if self._probe is not None:
            self._probe.begin()
        for i in range(t.accumulation_steps):
            batch = t.to_device(next(batches))
            if self._on_cpu and self._calls is not None:
                self._micro_batches.append(copy.copy(batch))
            is_last = i == t.accumulation_steps - 1
            with nullcontext() if is_last else t.no_sync():
                with nullcontext() if self._calls is None else self._calls.recorded(), t.autocast():
                    loss, count = self._loss_and_count(batch)
                joined = None
                if loss is None and self._calls is not None and (is_last or self._is_sharded):
                    joined = self._calls.zero_loss()  # the other ranks wait for this one
                weight = self._weight(count) / t.accumulation_steps
                if loss is not None:
                    joined = weighted(loss, weight)
                if joined is not None:
                    self._propagate(joined)
            if self._calls is not None:
                self._calls.forget(with_loss=loss is not None)
            if self._probe is not None:
                self._probe.take(count, weight if t.scaler is None else weight * t.scaler.get_scale())
            if loss is not None:
                loss_sum = loss_sum + self._value(loss) * count
                items = items + count
        return loss_sum, items

    def _propagate(self, loss: torch.Tensor) -> None:
        scaler = self.trainable.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _loss_and_count(self, batch: Any) -> tuple[torch.Tensor | None, Count]:
        t = self.trainable
        return loss_and_count(
            t.objective(t.model, batch), batch=batch, count_items=self._count_items, on_cpu=self._on_cpu
        )

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | float:
        """A scalar in float64; on a CPU as a float, since reading costs nothing there and tensor operations do."""
        return tensor.item() if self._on_cpu else tensor.detach().double()

    def _weight(self, count: Count) -> torch.Tensor | float:
        """n over the reference count, so that a loss keeps its order of magnitude; 1 where all counts are equal.

        The reference is agreed once a repeat, from each rank's first micro-batch. ``_gradient_factor`` corrects the
        rest exactly.
        """
        if self.reference_items is None:
            first = torch.full((1,), float(count), dtype=torch.float64, device=self.device)
            self.reference_items = max(1.0, self._collective.sum_(first).item()) / self._collective.world_size
        return (count.to(torch.float64) if isinstance(count, torch.Tensor) else count) / self.reference_items

    def _unscaled(
        self, local_norm: torch.Tensor, square_sum: float | torch.Tensor, factor: torch.Tensor | float
    ) -> torch.Tensor:
        """Multiply the gradients by ``factor`` and divide them by the scale; returns their norm.

        That makes sum(n * gradient) / sum(n) of the mean over micro-batches of n / reference * gradient.
        """
        scaler = self.trainable.scaler
        norm = torch.as_tensor(square_sum, dtype=torch.float64).sqrt() if self._is_sharded else local_norm
        if not (isinstance(factor, float) and factor == 1.0):
            norm = norm * factor
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor if isinstance(factor, float) else factor.to(parameter.grad.dtype))
        if scaler is None:
            return norm
        scaler.unscale_(self.trainable.optimizer)
        return norm / scaler.get_scale()

    def _scale(self) -> float:
        return 1.0 if self.trainable.scaler is None else self.trainable.scaler.get_scale()

    def _reduced_columns(self, loss_sum: Any, items: Any, local_norm: torch.Tensor) -> Columns:
        """The table of all ranks: each rank's values, untouched by NaN of other ranks."""
        gradient = local_norm.item()
        if self._is_sharded:
            gradient = gradient**2
        is_bad = not math.isfinite(loss_sum) or (bool(self._buffers) and not norm_of(self._buffers).isfinite().item())
        row = [loss_sum, items, is_bad, self._request(), gradient]
        if self._probe is not None:
            row += map(float, self._probe.columns())
        if self._collective.world_size == 1:
            return [[value] for value in row]
        table = torch.zeros((self._collective.world_size, self._num_columns), dtype=torch.float64)
        table[self._collective.rank] = torch.tensor(row, dtype=torch.float64)
        return columns_of(self._collective.sum_(table).numpy())

    def _reduced_table(self, loss_sum: Any, items: Count, local_norm: torch.Tensor) -> torch.Tensor:
        """The table of all ranks, on the device."""
        gradient = local_norm.double().square() if self._is_sharded else local_norm
        spare = [gradient, *(() if self._probe is None else self._probe.columns())]
        size = (self._collective.world_size, self._num_columns)
        table = torch.zeros(size, dtype=torch.float64, device=self.device)
        table[self._collective.rank] = self._row_on_device(torch.as_tensor(loss_sum), items, spare)
        return self._collective.sum_(table)

    def _row_on_device(
        self, loss_sum: torch.Tensor, items: Count, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        on_device = torch.full((self._num_columns,), self._request(), dtype=torch.float64, device=self.device)
        on_device[Column.LOSS_SUM] = loss_sum
        on_device[Column.ITEMS] = items
        watched = loss_sum + norm_of(self._buffers) if self._buffers else loss_sum
        on_device[Column.NON_FINITE] = ~torch.isfinite(watched)
        for column, value in enumerate(spare, start=Column.GRADIENT):
            on_device[column] = value
        return on_device

    def _grad_norm(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """L2 norm of the gradient on this rank, of its shard under FSDP; zero-dimensional, on its device."""
        gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
        if self._is_sharded:
            gradients = [local_part(gradient) for gradient in gradients]
        if any(gradient.is_sparse for gradient in gradients):
            gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        return norm_of(gradients)

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


def _reading(payload: torch.Tensor, copied: torch.cuda.Event | None, num_rows: int) -> StepReading:
    """Read the values of a step, once they are on the host."""
    if copied is not None:
        copied.synchronize()
    values = payload.cpu().numpy()
    return StepReading(columns_of(values[:-1].reshape(num_rows, -1)), grad_norm=float(values[-1]))
