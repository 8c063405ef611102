"""One rank's loop. Its collaborators are arguments, and it never asks whether it is distributed.

A step trains on ``accumulation_steps`` micro-batches, fills one row of a table, sums the table over ranks and steps the
optimizer. Everything decided from then on (the mean loss, the stop) is read from that table, whose bits are the same on
every rank. On a GPU the table of step k is read while step k + 1 runs, so the host never waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch

from lrrunner.core.noise_scale import gradient_variance
from lrrunner.core.smoothing import Ema
from lrrunner.core.stop_rules import StopRule
from lrrunner.records import Step, Stop, StopReason
from lrrunner.training.checkpoints import Checkpoints, UnfinishedRepeat
from lrrunner.training.collectives import Collective
from lrrunner.training.evaluation import Evaluation
from lrrunner.training.fsdp import is_sharded, local_part
from lrrunner.training.gradient_probe import GradientProbe
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.snapshot import RngState, Snapshot, seed_rngs
from lrrunner.training.trainable import Batches, Trainable, preserved

MAX_SKIPS_IN_A_ROW = 10
"""A scaler that starts at 2**16 has halved its scale to 64 by then: more overflows are not the scale's fault."""


class Column(IntEnum):
    """What each rank reports of a step, in its own row of the table; what a probe reports comes behind."""

    LOSS_SUM = 0
    ITEMS = 1
    NON_FINITE = 2
    REQUEST = 3


class Request(IntEnum):
    """What a rank asks of all ranks; a stop includes a save."""

    NONE = 0
    SAVE = 1
    STOP = 2


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What one sweep does, apart from what it trains. The schedule of a short training is a ladder, too.

    Attributes:
        lrs: Base learning rate of every step.
        beta: Memory of the causal EMA that serves the stop.
        new_stop_rule: Makes a fresh stop rule for each repeat.
        repeats: How often the ladder is climbed, each time from the same initial state with another data order.
        first_repeat: Number of the first of these repeats.
        seed: With the repeat's number, fixes data order and random numbers.
        sync_every_step: Read each step before the next one starts, also on a GPU.
        sweep_pass: Number of this ladder among those that auto-range tries.
        name: Tells it from other ladders of the same run, in checkpoints.
        evaluate_every: Rungs from one evaluation to the next, where the sweep is judged by evaluating.
    """

    lrs: Sequence[float]
    beta: float
    new_stop_rule: Callable[[], StopRule]
    repeats: int = 1
    first_repeat: int = 0
    seed: int = 0
    sync_every_step: bool = False
    sweep_pass: int = 0
    name: str = "sweep"
    evaluate_every: int = 1

    @property
    def prefix(self) -> str:
        """What the keys of its repeats begin with."""
        return f"{self.name}/{self.sweep_pass}/"

    def key(self, repeat: int) -> str:
        """One repeat of it, in checkpoints."""
        return f"{self.prefix}{repeat}"


class SweepResult(NamedTuple):
    """Records of all repeats in order, and where each repeat ended."""

    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]


def run_sweep(
    trainable: Trainable,
    ladder: SweepPlan,
    batches: Batches,
    *,
    collective: Collective,
    on_step: Callable[[Step], None] = lambda step: None,
    on_end: Callable[[Stop], None] = lambda stop: None,
    stop_requested: Callable[[], bool] = lambda: False,
    started: float | None = None,
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[], Evaluation] | None = None,
    probe: GradientProbe | None = None,
) -> SweepResult:
    """Climb the ladder on this rank, together with all others. Every rank must call this.

    Model, optimizer, scaler and random number generators are afterwards as before, on every rank, whatever happens.

    Args:
        trainable: What to train.
        ladder: What to do.
        batches: Repeat number, first step -> endless micro-batches of this rank.
        collective: The world this rank belongs to.
        on_step: Called with each record as soon as it is known; the same records on every rank. Those that a checkpoint
            holds are not new.
        on_end: Called on every rank when a repeat has ended, while its model is still the trained one.
        stop_requested: This rank's wish to stop, which all ranks then follow at the same step.
        started: ``time.perf_counter()`` at which elapsed times begin; None is now.
        checkpoints: Where the state is saved, and where it comes from in a resumed run; None saves nothing.
        evaluate: Measures the loss that the sweep is judged by instead of the training loss, behind a step, the same on
            every rank; leaves everything as it was.
        probe: Measures the noise of the gradient, on every rank or on none.

    Raises:
        Exception: whatever model, objective, data or optimizer raise.
    """
    steps: list[Step] = []
    stops: list[Stop] = []
    started = time.perf_counter() if started is None else started

    def record(step: Step) -> None:
        steps.append(step)
        on_step(step)

    with preserved(trainable) as snapshot, probe or nullcontext():
        for repeat in range(ladder.first_repeat, ladder.first_repeat + ladder.repeats):
            done = None if checkpoints is None else checkpoints.finished(ladder.key(repeat))
            if done is not None:
                steps += done.steps
                stops.append(done.stop)
                continue
            if repeat > ladder.first_repeat:
                snapshot.restore()
            trainable.train()
            climb = _SweepRun(
                trainable, ladder, collective, repeat, started, record, stop_requested, checkpoints, evaluate, probe
            )
            unfinished = None if checkpoints is None else checkpoints.unfinished(ladder.key(repeat))
            steps += () if unfinished is None else unfinished.steps
            stops.append(climb.run(batches) if unfinished is None else climb.resume(batches, unfinished))
            on_end(stops[-1])
            if stops[-1].reason == StopReason.INTERRUPTED:
                break
            if checkpoints is not None:
                of_repeat = tuple(step for step in steps if step.repeat == repeat)
                checkpoints.finish(ladder.key(repeat), of_repeat, stops[-1])
    return SweepResult(tuple(steps), tuple(stops))


def reads_late(device: torch.device, scaler: torch.amp.GradScaler | None, *, sync_every_step: bool) -> bool:
    """Whether a step is read while the next one runs: where the host would wait for the device, and may be late.

    A gradient scaler waits by itself, to know whether it skipped.
    """
    return device.type == "cuda" and scaler is None and not sync_every_step


class _InFlight(NamedTuple):
    """A step that the host has issued and not read yet."""

    rung: int
    skipped: bool
    payload: torch.Tensor | list[float]
    copied: torch.cuda.Event | None

    def read(self) -> list[float]:
        """The summed table, row by row, and the gradient norm behind it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.payload.tolist() if isinstance(self.payload, torch.Tensor) else self.payload


class _SweepRun:
    """One ladder, once."""

    def __init__(
        self,
        trainable: Trainable,
        ladder: SweepPlan,
        collective: Collective,
        repeat: int,
        started: float,
        record: Callable[[Step], None],
        stop_requested: Callable[[], bool],
        checkpoints: Checkpoints | None = None,
        evaluate: Callable[[], Evaluation] | None = None,
        probe: GradientProbe | None = None,
    ) -> None:
        self._trainable = trainable
        self._ladder = ladder
        self._collective = collective
        self._repeat = repeat
        self._started = started
        self._take_in = record
        self._stop_requested = stop_requested
        self._checkpoints = checkpoints
        self._evaluate = evaluate
        self._probe = probe
        self._is_sharded = is_sharded(trainable.model)
        num_spare = int(self._is_sharded) if probe is None else probe.num_columns
        self._num_columns = len(Column) + num_spare
        self._steps: list[Step] = []
        self._save_requested = self._has_diverged = False
        self._learning_rate = LearningRate(trainable.optimizer)
        self._parameters = trainable.parameters
        self._device = trainable.device
        self._on_cpu = self._device.type == "cpu"
        reads_at_once = ladder.sync_every_step or evaluate is not None
        self._reads_late = reads_late(self._device, trainable.scaler, sync_every_step=reads_at_once)
        self._ema = Ema(ladder.beta)
        self._stop_rule = ladder.new_stop_rule()
        self._skips_in_a_row = 0
        self._reference_items: torch.Tensor | None = None

    def run(self, batches: Batches) -> Stop:
        """Train rung by rung until the ladder ends or a step says stop."""
        self._seed()
        return self._run(batches(self._repeat), first_rung=0)

    def resume(self, batches: Batches, unfinished: UnfinishedRepeat) -> Stop:
        """Go on where a checkpoint was taken, as if nothing had happened.

        What follows from the records (average, stop rule, rung, position in the data) is rebuilt from them. One forward
        and backward pass is thrown away first: DDP orders its buckets anew after its first one, and another order of
        summation would change the last bit of the next step.
        """
        self._seed()
        if self._collective.world_size > 1:
            self._backward(batches(self._repeat))
            self._trainable.optimizer.zero_grad(set_to_none=True)
        self._started = min(self._started, time.perf_counter() - unfinished.steps[-1].elapsed_s)
        for step in unfinished.steps:
            self._replay(step)
        if self._has_diverged:  # at the very step behind which it was told to stop
            return self._stop(StopReason.DIVERGED, unfinished.steps[-1].step)
        self._seed()  # loader workers draw their own seed from this rank's generator
        stream = batches(self._repeat, len(self._steps))
        snapshot = Snapshot(self._trainable.model, self._trainable.optimizer, self._trainable.scaler)
        self._reference_items = unfinished.restore(snapshot, self._device)
        return self._run(stream, first_rung=sum(not step.skipped for step in self._steps))

    def _seed(self) -> None:
        seed_rngs(self._ladder.seed, self._repeat, self._collective.rank)

    def _replay(self, step: Step) -> None:
        """Take in a step of an earlier life."""
        self._steps.append(step)
        self._skips_in_a_row = self._skips_in_a_row + 1 if step.skipped else 0
        if (monitored := step.monitored_loss) is not None:
            self._ema.update(monitored)
            self._has_diverged = self._diverges(monitored, step.loss)

    def _run(self, batches: Iterator[Any], *, first_rung: int) -> Stop:
        unread: _InFlight | None = None
        rung = first_rung
        while rung < len(self._ladder.lrs):
            self._learning_rate.set(self._ladder.lrs[rung])
            try:
                issued = self._train_step(rung, batches)
            except Exception:
                # The step before may have gone bad first; then that is the reason, and this error its consequence.
                stop = self._settle(unread) if unread is not None else None
                if stop is not None:
                    return stop
                raise
            settled, unread = (unread, issued) if self._reads_late else (issued, None)
            stop = self._settle(settled) if settled is not None else None
            if self._save_requested and (stop is None or stop.reason == StopReason.INTERRUPTED):
                stop, unread = self._save(unread, stop), None
            if stop is not None:
                return stop
            rung += not issued.skipped
        stop = self._settle(unread) if unread is not None else None
        return stop or self._stop(StopReason.END_OF_SCHEDULE, len(self._ladder.lrs) - 1)

    def _save(self, unread: _InFlight | None, stop: Stop | None) -> Stop | None:
        """Save what the model has come to; every rank is here, behind the same step.

        A step that runs already has changed the model, so that its record belongs to the checkpoint.
        """
        if unread is not None and not self._has_diverged:
            stop = self._settle(unread) or stop
            if stop is not None and stop.reason != StopReason.INTERRUPTED:
                return stop
        assert self._checkpoints is not None
        snapshot = Snapshot(self._trainable.model, self._trainable.optimizer, self._trainable.scaler)
        self._checkpoints.save(
            self._ladder.key(self._repeat),
            self._steps,
            snapshot,
            rng=RngState.capture(self._device),
            reference_items=self._reference_items,
        )
        return stop

    def _train_step(self, rung: int, batches: Iterator[Any]) -> _InFlight:
        """Forward, backward, one reduction, one optimizer step."""
        t = self._trainable
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
        return self._in_flight(rung, skipped, table, grad_norm)

    def _backward(self, batches: Iterator[Any]) -> tuple[torch.Tensor | float, torch.Tensor | float, bool]:
        """Accumulate gradients; returns sum(loss * n), sum(n), and whether losses came with their own n."""
        t = self._trainable
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
                if weighted:  # the mean over no items is NaN; it takes part in the reduction and counts nothing
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
        """A scalar in float64: on the host at once on a CPU, where reading is free and every tensor operation costs."""
        return tensor.item() if self._on_cpu else tensor.detach().double()

    def _weight(self, count: torch.Tensor | float) -> torch.Tensor:
        """n over a reference count that all ranks share, so that a loss keeps its order of magnitude.

        The reference is agreed once a repeat, from each rank's first micro-batch; what it leaves is corrected exactly
        in ``_rescale_gradients``.
        """
        number = self._number(count)
        if self._reference_items is None:
            total = self._collective.sum_(number.clone().reshape(1))
            self._reference_items = total.clamp(min=1.0)[0] / self._collective.world_size
        return number / self._reference_items

    def _number(self, count: torch.Tensor | float) -> torch.Tensor:
        """A count on the device, in float64, without the host waiting for the device."""
        if isinstance(count, torch.Tensor):
            return count.to(torch.float64)
        return torch.full((), count, dtype=torch.float64, device=self._device)

    def _rescale_gradients(self, table: torch.Tensor) -> torch.Tensor:
        """From the mean over micro-batches of n / reference * gradient to sum(n * gradient) / sum(n).

        Returns:
            What the gradients were multiplied by.
        """
        assert self._reference_items is not None
        num_micro_batches = self._collective.world_size * self._trainable.accumulation_steps
        factor = self._reference_items * num_micro_batches / table[:, Column.ITEMS].sum()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
        return factor

    def _spare_columns(self) -> Sequence[torch.Tensor | float]:
        """What else the table carries: a probe's figures, or the squared norm of this rank's shard of the gradient."""
        if self._probe is not None:
            return self._probe.columns()
        return (self._grad_norm().double().square(),) if self._is_sharded else ()

    def _whole_norm(self, table: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
        """The norm of the gradient that ranks share out, scaled as the gradient was since the shards' were taken."""
        scale = 1.0 if self._trainable.scaler is None else self._trainable.scaler.get_scale()
        return table[:, len(Column)].sum().sqrt() * factor / scale

    def _reduced_table(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        """One row a rank, summed over ranks: each rank's figures, untouched by the others' NaN."""
        size = (self._collective.world_size, self._num_columns)
        table = torch.zeros(size, dtype=torch.float64, device=self._device)
        table[self._collective.rank] = self._row(loss_sum, items, spare)
        return self._collective.sum_(table)

    def _row(
        self, loss_sum: torch.Tensor | float, items: torch.Tensor | float, spare: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        request = float(self._request())
        if not isinstance(loss_sum, torch.Tensor):
            row = [loss_sum, float(items), not math.isfinite(loss_sum), request, *spare]
            return torch.tensor(row, dtype=torch.float64)
        on_device = torch.full((self._num_columns,), request, dtype=torch.float64, device=self._device)
        on_device[Column.LOSS_SUM] = loss_sum
        on_device[Column.ITEMS] = items
        on_device[Column.NON_FINITE] = ~torch.isfinite(loss_sum)
        for column, value in enumerate(spare, start=len(Column)):
            on_device[column] = value
        return on_device

    def _request(self) -> Request:
        if self._stop_requested():
            return Request.STOP
        return Request.SAVE if self._checkpoints is not None and self._checkpoints.due() else Request.NONE

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
        """Step; True when the scaler found an overflow and skipped it."""
        t = self._trainable
        if t.scaler is None:
            t.optimizer.step()
            return False
        scale_before = t.scaler.get_scale()
        t.scaler.step(t.optimizer)
        t.scaler.update()
        return bool(t.scaler.get_scale() < scale_before)

    def _in_flight(self, rung: int, skipped: bool, table: torch.Tensor, grad_norm: torch.Tensor) -> _InFlight:
        if self._on_cpu:
            return _InFlight(rung, skipped, [*table.flatten().tolist(), grad_norm.item()], None)
        payload = torch.cat([table.flatten(), grad_norm.detach().double().reshape(1)])
        if not self._reads_late:
            return _InFlight(rung, skipped, payload.tolist(), None)
        on_host = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        on_host.copy_(payload, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return _InFlight(rung, skipped, on_host, copied)

    def _settle(self, step: _InFlight) -> Stop | None:
        """Read a step, record it, and decide; the same values on every rank, hence the same decision."""
        *values, grad_norm = step.read()
        rows = [values[i : i + self._num_columns] for i in range(0, len(values), self._num_columns)]
        num_items = math.fsum(row[Column.ITEMS] for row in rows)
        loss = sum(row[Column.LOSS_SUM] for row in rows) / num_items if num_items else math.nan
        bad_ranks = tuple(rank for rank, row in enumerate(rows) if row[Column.NON_FINITE])
        finite = math.isfinite(loss) and not bad_ranks
        evaluation = self._evaluation(step) if finite else None
        monitored = loss if self._evaluate is None else None
        if evaluation is not None:
            monitored, bad_ranks = evaluation.loss, evaluation.non_finite
            finite = math.isfinite(monitored)
        if step.skipped or not finite:
            monitored = None
        if monitored is not None:
            self._ema.update(monitored)
        self._record(
            Step(
                sweep_pass=self._ladder.sweep_pass,
                repeat=self._repeat,
                step=step.rung,
                lr=self._ladder.lrs[step.rung],
                loss=loss,
                smoothed_loss=self._ema.value if finite and self._ema.num_updates else math.nan,
                grad_norm=grad_norm,
                num_items=num_items,
                skipped=step.skipped,
                elapsed_s=time.perf_counter() - self._started,
                timestamp_ms=time.time_ns() // 1_000_000,
                rank_losses=tuple(
                    row[Column.LOSS_SUM] / row[Column.ITEMS] if row[Column.ITEMS] else math.nan for row in rows
                ),
                val_loss=None if evaluation is None else evaluation.loss,
                val_items=None if evaluation is None else evaluation.num_items,
                is_monitored=self._evaluate is None or evaluation is not None,
                gradient_variance=self._gradient_variance(rows, grad_norm, num_items),
            )
        )
        self._skips_in_a_row = self._skips_in_a_row + 1 if step.skipped else 0
        if not finite or self._skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            return self._stop(StopReason.NON_FINITE, step.rung, bad_ranks)
        self._has_diverged = monitored is not None and self._diverges(monitored, loss)
        return self._decision(step, rows)

    def _evaluation(self, step: _InFlight) -> Evaluation | None:
        """What the model is worth behind a step; None where that is not asked for."""
        is_due = not step.skipped and step.rung % self._ladder.evaluate_every == 0
        return self._evaluate() if self._evaluate is not None and is_due else None

    def _gradient_variance(self, rows: list[list[float]], grad_norm: float, num_items: float) -> float | None:
        """From what the probes of all ranks report; None without them."""
        if self._probe is None:
            return None
        if not num_items:
            return math.nan
        squares, num_parts = (sum(row[column] for row in rows) for column in range(len(Column), self._num_columns))
        return gradient_variance(squares / num_items, grad_norm, num_items=num_items, num_parts=num_parts)

    def _decision(self, step: _InFlight, rows: list[list[float]]) -> Stop | None:
        """What the ranks ask for behind a finite step, and whether it ends the ladder."""
        self._save_requested = self._checkpoints is not None and any(row[Column.REQUEST] for row in rows)
        requesting = tuple(rank for rank, row in enumerate(rows) if row[Column.REQUEST] == Request.STOP)
        if requesting:
            return self._stop(StopReason.INTERRUPTED, step.rung, requesting)
        return self._stop(StopReason.DIVERGED, step.rung) if self._has_diverged else None

    def _diverges(self, monitored: float, training_loss: float) -> bool:
        """The noise that a rise must stand out of is the training loss's, also where another loss is monitored:
        evaluations on always the same samples have none, so that any rise at all would.
        """
        return self._stop_rule.update(monitored, self._ema.value, noisy_loss=training_loss)

    def _record(self, step: Step) -> None:
        self._steps.append(step)
        self._take_in(step)

    def _stop(self, reason: StopReason, rung: int, ranks: tuple[int, ...] = ()) -> Stop:
        return Stop(reason=reason, step=rung, ranks=ranks, repeat=self._repeat, sweep_pass=self._ladder.sweep_pass)
