"""One training step: forward, backward, one all-reduce, clip, optimizer step.

A step trains on ``accumulation_steps`` micro-batches, fills this rank's row of a table, and sums the table over ranks.
What is decided after the step is read from that table, whose bits are the same on every rank. On a GPU the table of
step k is read while step k + 1 runs, so that the host never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lrrunner.training.collectives import Collective
from lrrunner.training.fsdp import is_sharded, local_part
from lrrunner.training.gradient_probe import GradientProbe
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.step_table import Column, Request, StepReading
from lrrunner.training.trainable import Trainable


@dataclass(frozen=True)
class PendingStep:
    """A step that was issued and is not read yet.

    Attributes:
        index: Its index in the LR schedule.
        skipped: Whether the gradient scaler skipped the update.
        payload: The summed table and the gradient norm.
        copied: Event after which ``payload`` is on the host; None if it is.
    """

    index: int
    skipped: bool
    payload: torch.Tensor | list[float]
    copied: torch.cuda.Event | None

    def read(self, *, num_rows: int) -> StepReading:
        """Wait for the values, and return them."""
        if self.copied is not None:
            self.copied.synchronize()
        *values, grad_norm = self.payload.tolist() if isinstance(self.payload, torch.Tensor) else self.payload
        width = len(values) // num_rows
        return StepReading([values[i : i + width] for i in range(0, len(values), width)], grad_norm)


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
        reference_items: Item count that all ranks weight their losses by; None until a loss comes with a count.
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
        num_spare = int(self._is_sharded) if probe is None else probe.num_columns
        self._num_columns = len(Column) + num_spare
        self._learning_rate = LearningRate(trainable.optimizer)
        self._parameters = trainable.parameters
        self.device = trainable.device
        self._on_cpu = self.device.type == "cpu"
        self.reads_late = reads_late(self.device, trainable.scaler, sync_every_step=sync_every_step)
        self.reference_items: torch.Tensor | None = None

    def run(self, index: int, lr: float, batches: Iterator[Any]) -> PendingStep:
        """Do step ``index`` of the LR schedule, at ``lr``: forward, backward, one all-reduce, one optimizer step."""
        t = self.trainable
        self._learning_rate.set(lr)
        t.optimizer.zero_grad(set_to_none=True)
        loss_sum, items, weighted = self._backward(batches)
        spare = self._spare_columns()
        table = self._reduced_table(loss_sum, items, spare)
        factor = self._rescale_gradients(table) if weighted else 1.0
        if t.scaler is not None:
            t.scaler.unscale_(t.optimizer)
        grad_norm = self._whole_norm(table, factor) if self._is_sharded else self._grad_norm()
        if t.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, t.max_grad_norm, grad_norm)
        skipped = self._step_optimizer()
        return self._pending(index, skipped, table, grad_norm)

    def discard_pass(self, batches: Iterator[Any]) -> None:
        """Do one forward and backward pass and drop the gradients.

        DDP rebuilds its buckets after its first backward pass. Another order of summation would change the last bit.
        """
        self._backward(batches)
        self.trainable.optimizer.zero_grad(set_to_none=True)

    def _backward(self, batches: Iterator[Any]) -> tuple[torch.Tensor | float, torch.Tensor | float, bool]:
        """Accumulate gradients; returns sum(loss * n), sum(n), and whether losses came with their own n."""
        t = self.trainable
        loss_sum: torch.Tensor | float = 0.0
        items: torch.Tensor | float = 0.0
        weighted = False
        if self._probe is not None:
            self._probe.begin()
        for i in range(t.accumulation_steps):
            batch = t.to_device(next(batches))
            is_last = i == t.accumulation_steps - 1
            with nullcontext() if is_last else t.no_sync():
                with t.autocast():
                    result = t.objective(t.model, batch)
                weighted = isinstance(result, tuple)
                loss, count = result if weighted else (result, t.micro_batch_size)
                if self._on_cpu and isinstance(count, torch.Tensor):
                    count = count.item()
                if weighted:  # the mean over no items is NaN; it must not count
                    loss = torch.where(self._number(count) > 0, loss, 0.0)
                    loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # 16 bits would round its weight
                share = self._weight(count).to(loss.dtype) if weighted else 1.0
                multiplier = share / t.accumulation_steps
                scaled = loss * multiplier if weighted or t.accumulation_steps > 1 else loss
                (scaled if t.scaler is None else t.scaler.scale(scaled)).backward()
                if self._probe is not None:
                    self._probe.take(count, multiplier if t.scaler is None else multiplier * t.scaler.get_scale())
            loss_sum = loss_sum + self._value(loss) * count
            items = items + count
        return loss_sum, items, weighted

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | float:
        """A scalar in float64; on a CPU as a float, since reading costs nothing there and tensor operations do."""
        return tensor.item() if self._on_cpu else tensor.detach().double()

    def _weight(self, count: torch.Tensor | float) -> torch.Tensor:
        """n over a reference count that all ranks share, so that a loss keeps its order of magnitude.

        The reference is agreed once a repeat, from each rank's first micro-batch. ``_rescale_gradients`` corrects the
        rest exactly.
        """
        number = self._number(count)
        if self.reference_items is None:
            total = self._collective.sum_(number.clone().reshape(1))
            self.reference_items = total.clamp(min=1.0)[0] / self._collective.world_size
        return number / self.reference_items

    def _number(self, count: torch.Tensor | float) -> torch.Tensor:
        """A count on the device, in float64, without the host waiting for the device."""
        if isinstance(count, torch.Tensor):
            return count.to(torch.float64)
        return torch.full((), count, dtype=torch.float64, device=self.device)

    def _rescale_gradients(self, table: torch.Tensor) -> torch.Tensor:
        """From the mean over micro-batches of n / reference * gradient to sum(n * gradient) / sum(n).

        Returns:
            What the gradients were multiplied by.
        """
        assert self.reference_items is not None
        num_micro_batches = self._collective.world_size * self.trainable.accumulation_steps
        factor = self.reference_items * num_micro_batches / table[:, Column.ITEMS].sum()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
        return factor

    def _spare_columns(self) -> Sequence[torch.Tensor | float]:
        """Values of a probe, or the squared norm of this rank's shard of the gradient."""
        if self._probe is not None:
            return self._probe.columns()
        return (self._grad_norm().double().square(),) if self._is_sharded else ()

    def _whole_norm(self, table: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
        """Norm of a sharded gradient, scaled as the gradient was since the norms of its shards were measured."""
        scale = 1.0 if self.trainable.scaler is None else self.trainable.scaler.get_scale()
        return table[:, len(Column)].sum().sqrt() * factor / scale

    def _reduced_table(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        """One row a rank, summed over ranks: each rank's values, untouched by NaN of other ranks."""
        size = (self._collective.world_size, self._num_columns)
        table = torch.zeros(size, dtype=torch.float64, device=self.device)
        table[self._collective.rank] = self._row(loss_sum, items, spare)
        return self._collective.sum_(table)

    def _row(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        request = float(self._request())
        if not isinstance(loss_sum, torch.Tensor):
            row = [loss_sum, float(items), not math.isfinite(loss_sum), request, *spare]
            return torch.tensor(row, dtype=torch.float64)
        on_device = torch.full((self._num_columns,), request, dtype=torch.float64, device=self.device)
        on_device[Column.LOSS_SUM] = loss_sum
        on_device[Column.ITEMS] = items
        on_device[Column.NON_FINITE] = ~torch.isfinite(loss_sum)
        for column, value in enumerate(spare, start=len(Column)):
            on_device[column] = value
        return on_device

    def _grad_norm(self) -> torch.Tensor:
        """L2 norm of the averaged gradient, or of this rank's shard of it; zero-dimensional, on its device."""
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
        if self._on_cpu:
            return PendingStep(index, skipped, [*table.flatten().tolist(), grad_norm.item()], None)
        payload = torch.cat([table.flatten(), grad_norm.detach().double().reshape(1)])
        if not self.reads_late:
            return PendingStep(index, skipped, payload.tolist(), None)
        on_host = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        on_host.copy_(payload, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return PendingStep(index, skipped, on_host, copied)
