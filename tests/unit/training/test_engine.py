"""One rank's loop, without other ranks. Row numbers are those of a catalogue of cases that broke other LR finders."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.records import Step, StopReason
from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.step import train_step
from lrrunner.training.sweep_run import MAX_SKIPS_IN_A_ROW
from lrrunner.training.trainable import Trainable
from tests.multiprocess.sweeps import planned_batches, rank_context, small_model, squared_error, sweep_plan, trainable
from tests.unit.training.optimizer.unusual_optimizers import AveragingSGD


def sweep(part: Trainable, batches: Any = None, **changes: Any) -> SweepResult:
    return run_sweep(part, sweep_plan(**changes), batches or planned_batches(), context=rank_context())


class SpySGD(torch.optim.SGD):
    """Notes the LRs that each step really used."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.used: list[list[float]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.used.append([float(group["lr"]) for group in self.param_groups])
        super().step(closure)


def test_recorded_lr_is_the_one_the_step_used_and_the_schedule_is_exact() -> None:
    """Rows 20, 21, 22: ignite records the next step's LR, ignores start_lr at step 1 and overshoots end_lr."""
    part = trainable(optimizer=lambda p: SpySGD(p, lr=0.3))
    result = sweep(part, start_lr=1e-4, end_lr=1e-2, num_steps=5)
    assert [step.lr for step in result.steps] == exponential_lr(start_lr=1e-4, end_lr=1e-2, num_steps=5).tolist()
    assert isinstance(part.optimizer, SpySGD)
    assert part.optimizer.used == [[step.lr] for step in result.steps]
    assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
    assert result.stops[0].step == 4


def test_lr_moves_once_per_optimizer_step_under_accumulation() -> None:
    """Rows 23, 24: fastai moves it per micro-batch; the loss is the mean over micro-batches, not the last one's."""
    values = iter([1.0, 2.0, 6.0] * 10)
    part = trainable(
        accumulation_steps=3,
        objective=lambda model, batch: squared_error(model, batch) * 0 + next(values),
        optimizer=lambda p: SpySGD(p, lr=1.0),
    )
    result = sweep(part, planned_batches(accumulation_steps=3), num_steps=4)
    assert isinstance(part.optimizer, SpySGD)
    assert len(part.optimizer.used) == 4
    assert [step.loss for step in result.steps] == [3.0] * 4


def test_parameter_groups_keep_their_ratio_to_the_base_lr() -> None:
    """Row 33: Lightning erases ratios; here the recorded LR is the optimizer's base LR."""
    model = small_model()
    first, second = model[0], model[2]
    optimizer = SpySGD(
        [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.02}], lr=0.2, weight_decay=0.0
    )
    part = trainable(model=model, optimizer=lambda p: optimizer)
    result = sweep(part, num_steps=3, start_lr=1e-3, end_lr=1e-1)
    assert [step.lr for step in result.steps] == pytest.approx([1e-3, 1e-2, 1e-1])
    np.testing.assert_allclose(optimizer.used, [[1e-3, 1e-4], [1e-2, 1e-3], [1e-1, 1e-2]])
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.02]


def test_tensor_learning_rates_are_filled_in_place_and_restored() -> None:
    """Compiled and capturable optimizers hold the very tensor; replacing it by a float would be ignored."""
    lr = torch.tensor(1e-3)
    part = trainable(optimizer=lambda p: torch.optim.Adam(p, lr=lr, capturable=False, foreach=False))
    held = part.optimizer.param_groups[0]["lr"]
    before = held.item()
    seen: list[float] = []
    run_sweep(
        part,
        sweep_plan(num_steps=3),
        planned_batches(),
        context=rank_context(),
        on_step=lambda step: seen.append(held.item()),
    )
    assert seen == pytest.approx([1e-6, 10**-2.5, 10.0], rel=1e-6)
    assert part.optimizer.param_groups[0]["lr"] is held
    assert held.item() == before


@pytest.mark.parametrize("options", [{"foreach": False}, {"fused": True}])
def test_tensor_learning_rates_give_the_curve_of_plain_ones(options: dict[str, Any]) -> None:
    """Capturable, fused and compiled optimizers keep their LR in a tensor."""
    plain = sweep(trainable(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, **options)), num_steps=20)
    filled = sweep(trainable(optimizer=lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), **options)), num_steps=20)
    np.testing.assert_allclose([s.loss for s in filled.steps], [s.loss for s in plain.steps], rtol=1e-5)


def test_an_optimizer_that_averages_weights_is_swept_in_training_mode_and_left_in_its_own() -> None:
    """Schedule-free optimizers refuse to step, or train the wrong weights, in evaluation mode."""
    part = trainable(optimizer=lambda p: AveragingSGD(p, lr=0.1))
    part.train()
    squared_error(part.model, next(planned_batches()(0))).backward()
    part.optimizer.step()
    optimizer: Any = part.optimizer
    optimizer.eval()
    before = [p.detach().clone() for p in part.model.parameters()]
    result = sweep(part, num_steps=30, start_lr=1e-3)
    assert len(result.steps) > 10
    assert not part.optimizer.param_groups[0]["train_mode"]
    assert all(torch.equal(p, old) for p, old in zip(part.model.parameters(), before, strict=True))


def test_an_optimizer_without_positive_lr_is_refused() -> None:
    """Row 32: an LR of 0 cannot be multiplied to reach the schedule."""
    with pytest.raises(ValueError, match=r"optimizer\.lr must be a number above 0 in every group, got 0"):
        LearningRate(torch.optim.SGD(small_model().parameters(), lr=0.0))


def test_an_attached_scheduler_neither_moves_the_sweep_nor_is_moved() -> None:
    """Row 31: a sweep inside a schedule bypasses it and leaves it where it was."""
    part = trainable(optimizer=lambda p: SpySGD(p, lr=0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(part.optimizer, step_size=1, gamma=0.1)
    before = dict(scheduler.state_dict())
    result = sweep(part, num_steps=3, start_lr=1e-3, end_lr=1e-1)
    assert [step.lr for step in result.steps] == pytest.approx([1e-3, 1e-2, 1e-1])
    after = scheduler.state_dict()
    assert {key: after[key] for key in ("last_epoch", "base_lrs")} == {
        key: before[key] for key in ("last_epoch", "base_lrs")
    }
    assert part.optimizer.param_groups[0]["lr"] == 0.5


def test_a_sweep_in_mid_training_starts_from_its_own_counters() -> None:
    """Row 17: Lightning's sweep at epoch 3 diverges at step 1, since its counters are the trainer's."""
    part = trainable(objective=lambda model, batch: squared_error(model, batch) * 0 + 1.0)
    first = sweep(part, num_steps=20)
    second = sweep(part, num_steps=20)
    for result in (first, second):
        assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
        assert {step.smoothed_loss for step in result.steps} == {1.0}


def dropout_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.3), nn.Linear(16, 1)).double()


def test_a_second_sweep_gives_the_same_records() -> None:
    """Rows 15, 16: nothing of the first sweep is left, data order and random numbers included."""
    part = trainable(model=dropout_model())
    first, _, second = sweep(part), torch.rand(5), sweep(part)
    assert [step.loss for step in first.steps] == [step.loss for step in second.steps]


def test_each_repeat_begins_with_the_weights_and_the_optimizer_of_the_first() -> None:
    """Law 1: without a restore in between, the second repeat would start from a diverged model."""
    seen: list[tuple[float, int]] = []
    part = trainable(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    steps = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(steps) % 20 == 0:
            weights = sum(float(p.detach().square().sum()) for p in model.parameters())
            seen.append((weights, len(part.optimizer.state)))
        return squared_error(model, batch)

    run_sweep(
        dataclasses.replace(part, objective=objective),
        sweep_plan(num_steps=20, repeats=3, new_stop_rule=Never),
        planned_batches(),
        context=rank_context(),
    )
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1] == 0


class Never:
    """A stop rule that never fires, and records its arguments."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        self.asked.append((raw_loss, smoothed_loss))
        return False


def test_the_stop_rule_sees_the_raw_loss_and_its_causal_average() -> None:
    """Losses 1, 3, 5 under beta 0.5: 1, (0.5 + 1.5 * 1) / 0.75 = 7/3, (0.25 + 0.75 * 2 + 2.5) / 0.875 = 27/7."""
    values = iter([1.0, 3.0, 5.0])
    rule = Never()
    part = trainable(objective=lambda model, batch: squared_error(model, batch) * 0 + next(values))
    result = sweep(part, num_steps=3, beta=0.5, new_stop_rule=lambda: rule)
    expected = [1.0, 7 / 3, 27 / 7]
    assert [raw for raw, _ in rule.asked] == [1.0, 3.0, 5.0]
    assert [smoothed for _, smoothed in rule.asked] == pytest.approx(expected)
    assert [step.smoothed_loss for step in result.steps] == pytest.approx(expected)


@pytest.mark.parametrize("factor", [0.1, 0.0])
def test_a_scheduler_that_has_already_acted_does_not_shift_the_schedule(factor: float) -> None:
    """Rows 20, 31: in mid-training, or in a warm-up from 0, the groups' LRs are not the base LRs."""
    part = trainable(optimizer=lambda p: SpySGD(p, lr=0.5))
    torch.optim.lr_scheduler.LambdaLR(part.optimizer, lambda step: factor)
    assert part.optimizer.param_groups[0]["lr"] == 0.5 * factor
    result = sweep(part, num_steps=3, start_lr=1e-3, end_lr=1e-1)
    assert isinstance(part.optimizer, SpySGD)
    assert part.optimizer.used == [[step.lr] for step in result.steps]
    assert part.optimizer.param_groups[0]["lr"] == 0.5 * factor


def test_gradients_stay_local_until_the_last_micro_batch() -> None:
    """Accumulation over k micro-batches communicates once: no_sync is entered k - 1 times a step."""
    entered: list[int] = []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        entered.append(1)
        yield

    part = dataclasses.replace(trainable(accumulation_steps=3), no_sync=no_sync)
    sweep(part, planned_batches(accumulation_steps=3), num_steps=4)
    assert len(entered) == 4 * 2


def test_the_forward_pass_runs_under_autocast() -> None:
    """Mixed precision that is only configured would give the curve of another training."""
    dtypes: list[torch.dtype] = []

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0])
        dtypes.append(output.dtype)
        return nn.functional.mse_loss(output.float(), batch[1])

    part = trainable(
        dtype=torch.float32, objective=objective, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    sweep(part, planned_batches(dtype=torch.float32), num_steps=2)
    assert dtypes == [torch.bfloat16] * 2


def test_scaled_gradients_are_unscaled_before_clipping_and_recording() -> None:
    """Otherwise max_grad_norm would clip the loss scale's 65536 instead of the gradient."""
    part = trainable(
        dtype=torch.float32,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16),
        max_grad_norm=1e6,
    )
    plain = trainable(dtype=torch.float32, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    scaled, expected = (sweep(p, planned_batches(dtype=torch.float32), num_steps=3) for p in (part, plain))
    assert [s.grad_norm for s in scaled.steps] == pytest.approx([s.grad_norm for s in expected.steps], rel=1e-5)
    assert [s.loss for s in scaled.steps] == pytest.approx([s.loss for s in expected.steps], rel=1e-5)


def keep_parameters(part: Trainable, kept: list[list[torch.Tensor]], step: Step) -> None:
    """Append a copy of the parameters as they are after a step."""
    kept.append([parameter.detach().clone() for parameter in part.model.parameters()])


def test_a_micro_batch_without_items_counts_nothing() -> None:
    """A batch whose targets are all ignored has a mean of 0 / 0; the step is that of the other one alone."""

    def objective(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets), (targets != -100).sum()

    def classifier() -> nn.Module:
        torch.manual_seed(1)
        return nn.Linear(10, 3).double()

    inputs = torch.randn(8, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = torch.arange(8) % 3
    ends: list[list[torch.Tensor]] = []
    for accumulation_steps in (1, 2):
        part = trainable(
            model=classifier(),
            objective=objective,
            accumulation_steps=accumulation_steps,
            optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        )
        result = run_sweep(
            part,
            sweep_plan(lrs=[0.5]),
            lambda repeat, first_step=0: iter([(inputs, targets), (inputs, torch.full_like(targets, -100))]),
            context=rank_context(),
            on_step=functools.partial(keep_parameters, part, ends),
        )
        assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
        assert result.steps[0].num_items == 8
    for alone, with_masked in zip(*ends, strict=True):
        torch.testing.assert_close(with_masked, alone, rtol=1e-12, atol=1e-14)


@pytest.fixture
def late_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read each step while the next one runs, as on a GPU."""
    monkeypatch.setattr(train_step, "reads_late", lambda *args, **kwargs: True)


def test_reading_late_changes_no_record(late_reading: None) -> None:
    """Law 12: every step of a full schedule is recorded, in order, with the same values."""
    late = sweep(trainable(), num_steps=20, end_lr=1e-3)
    assert [step.step for step in late.steps] == list(range(20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "reads_late", lambda *args, **kwargs: False)
        prompt = sweep(trainable(), num_steps=20, end_lr=1e-3)
    assert [step.loss for step in late.steps] == [step.loss for step in prompt.steps]


def test_reading_late_drops_the_step_after_the_stop(late_reading: None) -> None:
    """Law 12: the stop trails by a step; what was trained in between is no record."""
    calls = iter(range(100))
    part = trainable(
        objective=lambda m, b: squared_error(m, b) * (math.nan if next(calls) == 4 else 1.0),
    )
    result = sweep(part)
    assert [step.step for step in result.steps] == [0, 1, 2, 3, 4]
    assert (result.stops[0].reason, result.stops[0].step) == (StopReason.NON_FINITE, 4)
    assert next(calls) == 6


def test_an_error_after_a_bad_step_is_its_consequence(late_reading: None) -> None:
    """Law 12: step 5 raises because step 4 went NaN; NaN at step 4 is the reason, and nothing is raised."""
    calls = iter(range(100))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        call = next(calls)
        if call == 5:
            raise RuntimeError("device-side assert")
        return squared_error(model, batch) * (math.nan if call == 4 else 1.0)

    result = sweep(trainable(objective=objective))
    assert (result.stops[0].reason, result.stops[0].step) == (StopReason.NON_FINITE, 4)


def test_an_error_after_a_good_step_is_raised_and_the_good_step_recorded(late_reading: None) -> None:
    """Law 12: then the error is the reason."""
    calls = iter(range(100))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == 5:
            raise RuntimeError("out of memory")
        return squared_error(model, batch)

    seen: list[int] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        run_sweep(
            trainable(objective=objective),
            sweep_plan(),
            planned_batches(),
            context=rank_context(),
            on_step=lambda step: seen.append(step.step),
        )
    assert seen == [0, 1, 2, 3, 4]


def test_only_a_gpu_without_scaler_is_read_late() -> None:
    """fp16 waits anyway, and sync_every_step lets the user switch it off."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    scaler = torch.amp.GradScaler("cpu")
    assert train_step.reads_late(gpu, None, sync_every_step=False)
    assert not train_step.reads_late(gpu, None, sync_every_step=True)
    assert not train_step.reads_late(gpu, scaler, sync_every_step=False)
    assert not train_step.reads_late(cpu, None, sync_every_step=False)


def test_repeats_start_from_the_same_weights_with_another_data_order() -> None:
    """Law 1: differences between repeats are the data's, not the last repeat's training."""
    result = sweep(trainable(), repeats=3)
    by_repeat = [[s for s in result.steps if s.repeat == k] for k in range(3)]
    assert len(result.stops) == 3
    assert len({steps[0].loss for steps in by_repeat}) == 3
    again = sweep(trainable(), repeats=1)
    assert [step.loss for step in again.steps] == [step.loss for step in by_repeat[0]]


def test_non_finite_loss_at_the_first_step_stops_there() -> None:
    """Row 4: the record is kept, nothing else is trained."""
    part = trainable(objective=lambda model, batch: squared_error(model, batch) * math.inf)
    result = sweep(part)
    assert len(result.steps) == 1
    assert (result.stops[0].reason, result.stops[0].step) == (StopReason.NON_FINITE, 0)


def test_negative_losses_do_not_stop_the_sweep() -> None:
    """Row 5: four finders stop at step 1 or 2, since 4 x best is below best."""
    result = sweep(trainable(objective=lambda m, b: squared_error(m, b) - 100.0), end_lr=1e-2)
    assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
    assert len(result.steps) == 60


def test_weights_are_restored_after_keyboard_interrupt() -> None:
    """Row 14: not only exceptions leave weights dirty."""
    calls = iter(range(100))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return squared_error(model, batch)

    part = trainable(objective=objective)
    before = [p.detach().clone() for p in part.model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        sweep(part)
    assert all(torch.equal(a, b) for a, b in zip(before, part.model.parameters(), strict=True))
    assert not part.optimizer.state


def test_gradient_clipping_bounds_the_step_and_records_the_norm_before_it() -> None:
    """The recorded norm is the gradient's own; with SGD at LR 1 the update's norm is the bound."""
    part = trainable(optimizer=lambda p: torch.optim.SGD(p, lr=1.0), max_grad_norm=0.01)
    start = torch.cat([p.detach().flatten().clone() for p in part.model.parameters()])
    ends: list[torch.Tensor] = []

    def on_step(step: Step) -> None:
        ends.append(torch.cat([p.detach().flatten().clone() for p in part.model.parameters()]))

    result = run_sweep(part, sweep_plan(lrs=[1.0]), planned_batches(), context=rank_context(), on_step=on_step)
    squared_error(part.model, next(planned_batches()(0))).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in part.model.parameters() if p.grad is not None))
    assert result.steps[0].grad_norm == pytest.approx(norm, rel=1e-9)
    assert norm > 0.1
    assert float((ends[0] - start).norm()) == pytest.approx(0.01, rel=1e-3)


def overflowing(times: int) -> tuple[Trainable, list[float]]:
    """A float32 sweep through a real gradient scaler whose first ``times`` steps overflow."""
    calls = iter(range(10_000))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    seen: list[float] = []

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * (math.inf if next(calls) < times else 1.0)

    overflow: Callable[[torch.Tensor], torch.Tensor] = Overflow.apply
    part = trainable(
        dtype=torch.float32,
        objective=lambda model, batch: overflow(squared_error(model, batch)),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scaler=scaler,
    )
    return part, seen


def test_a_skipped_step_is_tried_again_at_the_same_lr() -> None:
    """Row 25, law 9: an LR whose step the scaler skipped was not tested."""
    part, _ = overflowing(times=3)
    result = sweep(part, planned_batches(dtype=torch.float32), num_steps=4, end_lr=1e-3)
    assert [(step.step, step.skipped) for step in result.steps] == [
        (0, True),
        (0, True),
        (0, True),
        (0, False),
        (1, False),
        (2, False),
        (3, False),
    ]
    assert part.scaler is not None
    assert part.scaler.get_scale() == 2.0**16
    assert result.steps[3].smoothed_loss == result.steps[3].loss


def test_ten_skipped_steps_in_a_row_stop_the_sweep() -> None:
    """Law 9: no loss scale helps any more."""
    part, _ = overflowing(times=1000)
    result = sweep(part, planned_batches(dtype=torch.float32))
    assert len(result.steps) == MAX_SKIPS_IN_A_ROW == 10
    assert (result.stops[0].reason, result.stops[0].step) == (StopReason.NON_FINITE, 0)


def test_the_model_trains_in_train_mode_and_returns_to_its_own() -> None:
    """Dropout and batch norm in eval mode would give the curve of another model."""
    modes: list[bool] = []

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        modes.append(model.training)
        return squared_error(model, batch)

    part = trainable(objective=objective)
    part.model.eval()
    sweep(part, num_steps=2)
    assert modes == [True, True]
    assert not part.model.training


def test_a_custom_objective_reads_any_batch() -> None:
    """Row 35: the objective handles dicts, tuples and several inputs."""

    def batches(repeat: int) -> Iterator[dict[str, Any]]:
        for inputs, targets in planned_batches()(repeat):
            yield {"x": {"deep": inputs}, "y": targets}

    part = trainable(objective=lambda model, batch: squared_error(model, (batch["x"]["deep"], batch["y"])))
    expected = [step.loss for step in sweep(trainable(), num_steps=5).steps]
    assert [step.loss for step in sweep(part, batches, num_steps=5).steps] == expected


def test_losses_are_computed_in_the_loop_not_read_from_a_running_mean() -> None:
    """Row 36: the record of a step is that step's loss alone."""
    values = iter([5.0, 1.0, 3.0])
    part = trainable(objective=lambda model, batch: squared_error(model, batch) * 0 + next(values))
    assert [step.loss for step in sweep(part, num_steps=3).steps] == [5.0, 1.0, 3.0]


def test_sparse_gradients_have_a_norm_too() -> None:
    """An embedding with sparse gradients must not fail, since the norm is only recorded."""
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 1, sparse=True).double()
    part = trainable(
        model=embedding,
        objective=lambda model, batch: model(torch.tensor([1, 1, 4])).square().sum(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )
    result = sweep(part, num_steps=2)
    first, second = (float(embedding.weight[i].detach()) for i in (1, 4))
    assert result.steps[0].grad_norm == pytest.approx(math.hypot(4 * first, 2 * second))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_counts_keep_float64_exact(as_tensor: bool) -> None:
    """Law 2 to the last digits: neither an int64 tensor nor a float32 weight may round the mean."""
    counts = iter([7, 3] * 10)

    def objective(model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any]:
        count = next(counts)
        loss = squared_error(model, (batch[0][:count], batch[1][:count]))
        return loss, torch.tensor(count) if as_tensor else count

    part = trainable(objective=objective, accumulation_steps=2, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    ends: list[torch.Tensor] = []
    result = run_sweep(
        part,
        sweep_plan(lrs=[0.5]),
        planned_batches(accumulation_steps=2),
        context=rank_context(),
        on_step=lambda step: ends.extend(p.detach().clone() for p in part.model.parameters()),
    )
    batches = planned_batches(accumulation_steps=2)(0)
    pieces = [(x[:n], y[:n]) for n, (x, y) in zip((7, 3), batches, strict=False)]
    model = small_model()
    loss = squared_error(model, (torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])))
    loss.backward()
    assert result.steps[0].loss == pytest.approx(loss.item(), rel=1e-14)
    for ours, parameter in zip(ends, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.detach() - 0.5 * parameter.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("count", "message"), [(0.53, "a fraction, 0.53"), (-1, "-1, below 0"), (10**6, "above the")])
def test_a_number_that_no_batch_can_hold_is_no_item_count(count: float, message: str) -> None:
    """(loss, accuracy) was taken for (loss, num_items): losses were up to 2.4 times off, silently."""
    part = trainable(objective=lambda model, batch: (squared_error(model, batch), count))
    with pytest.raises(ValueError, match=rf"must be \(loss, num_items\), got .*{message}.* return the loss alone"):
        run_sweep(part, sweep_plan(num_steps=3), planned_batches(), context=rank_context())


class SelfSchedulingSGD(torch.optim.SGD):
    """Sets its own LR in each step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.param_groups[0]["lr"] = 0.125
        super().step()


def test_an_optimizer_that_sets_its_own_lr_is_refused() -> None:
    """The recorded LR would not be the one that the step used."""
    part = trainable(optimizer=lambda p: SelfSchedulingSGD(p, lr=0.5))
    with pytest.raises(ValueError, match=r"got SelfSchedulingSGD, which replaced 1e-06 by 0\.125 in its step 0"):
        run_sweep(part, sweep_plan(num_steps=3), planned_batches(), context=rank_context())


def masked_mean(model: nn.Module, batch: Any) -> Any:
    """A mean over a mask that is empty in every third batch: 0 / 0, whose gradient is NaN."""
    errors = (model(batch[0]) - batch[1]).square().flatten()
    mask = torch.zeros_like(errors) if float(batch[0].sum()) > 0 else torch.ones_like(errors)
    return (errors * mask).sum() / mask.sum(), mask.sum()


def test_a_masked_mean_over_nothing_contributes_nothing() -> None:
    """torch.where keeps the NaN out of the loss, not out of the gradient of the division."""
    part = trainable(objective=masked_mean, accumulation_steps=4)
    result = run_sweep(part, sweep_plan(num_steps=20), planned_batches(accumulation_steps=4), context=rank_context())
    assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
    assert all(math.isfinite(step.grad_norm) for step in result.steps if not step.skipped)
    assert any(step.num_items < 48 for step in result.steps)


def test_a_constant_without_items_is_nothing_to_learn_from() -> None:
    """It has no graph to go back through."""
    calls = itertools.count()
    part = trainable(
        objective=lambda model, batch: (
            (torch.zeros(()), 0) if next(calls) % 3 == 1 else (squared_error(model, batch), len(batch[0]))
        )
    )
    result = run_sweep(part, sweep_plan(num_steps=9), planned_batches(), context=rank_context())
    assert [step.step for step in result.steps if not step.skipped] == list(range(9))
    assert sum(step.skipped for step in result.steps) == 4


def test_an_objective_that_empties_its_batch_is_not_run_again_on_it() -> None:
    """The origin of a bad gradient is looked for on the step's own batches."""

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = squared_error(model, (batch["x"], batch.pop("y")))
        return loss + torch.sqrt(loss - loss) if next(calls) == 5 else loss

    calls = itertools.count()
    batches = planned_batches()
    part = trainable(objective=objective)
    result = run_sweep(
        part,
        sweep_plan(num_steps=20),
        lambda repeat, first_step=0: ({"x": x, "y": y} for x, y in batches(repeat)),
        context=rank_context(),
    )
    assert (result.stops[0].reason, result.stops[0].step) == (StopReason.NON_FINITE, 5)
    assert result.stops[0].in_gradient


class Averaging(nn.Module):
    """Keeps an average of its inputs, and a mask of infinities."""

    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()
        self.register_buffer("average", torch.zeros(10, dtype=torch.float64))
        self.register_buffer("mask", torch.full((3, 3), -math.inf))
        self.num_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number a sample, which does not depend on the average."""
        self.num_calls += 1
        self.average.lerp_(x.mean(0) / (0.0 if self.num_calls == 8 else 1.0), 0.1)
        output: torch.Tensor = self.inner(x)
        return output


def test_a_buffer_that_is_not_finite_any_more_stops_the_sweep() -> None:
    """The loss does not show it before the model is evaluated, and the sweep said ok."""
    result = sweep(trainable(model=Averaging()), num_steps=20)
    (stop,) = result.stops
    assert (stop.reason, stop.step, stop.ranks, stop.in_buffer) == (StopReason.NON_FINITE, 7, (0,), True)
    assert math.isfinite(result.steps[-1].loss)
