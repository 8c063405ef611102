"""The library call in one process: every regime it takes, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import lrrunner
from lrrunner.config.schema import SuggestionConfig, SweepConfig
from lrrunner.library.range_test import disagreements
from lrrunner.results.reader import read_run
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.training.unusual_optimizers import AveragingSGD, Lookahead, SelfScalingSGD


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*regression_data()), **({"batch_size": 48, "shuffle": True} | options))


def swept(model: nn.Module | None = None, optimizer: Any = None, loss_fn: Any = squared_error, **options: Any) -> Any:
    """A range test of the small model without Accelerate."""
    model = small_model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3) if optimizer is None else optimizer
    batches = options.pop("train_loader", None) or loader()
    settings = {"start_lr": 1e-6, "auto_range": False}
    return lrrunner.range_test(None, model, optimizer, batches, loss_fn, **(settings | options))


def losses(result: lrrunner.RangeTest) -> list[float]:
    return result.records["loss"].tolist()


def test_options_have_the_names_and_defaults_of_the_command_line() -> None:
    """Who knows one way in knows the other."""
    parameters = inspect.signature(lrrunner.range_test).parameters
    defaults = {item.name: item.default for item in dataclasses.fields(SweepConfig)}
    defaults |= {"method": SuggestionConfig().method}
    for name in ("start_lr", "end_lr", "num_steps", "mode", "smoothing", "stop_rule", "diverge_factor", "repeats"):
        expected = getattr(defaults[name], "value", defaults[name])
        assert parameters[name].default == expected
    for name in ("seed", "auto_range", "sync_every_step", "method"):
        assert parameters[name].default == defaults[name]


def test_public_names_are_found_when_they_are_asked_for() -> None:
    """PEP 562: the command line must not wait for torch."""
    assert set(lrrunner.__all__) <= set(dir(lrrunner))
    assert all(getattr(lrrunner, name) is not None for name in lrrunner.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        lrrunner.no_such_name  # noqa: B018


def test_the_result_says_what_was_found_and_holds_the_records() -> None:
    """Rows 70, 77, 84 of torch-lr-finder's issues: a suggestion without a plot, and figures as arrays."""
    result = swept()
    assert result.suggestion.verdict == lrrunner.Verdict.OK
    assert result.suggestion.lr is not None
    assert result.records["step"].dtype == np.int64
    assert result.records["lr"][0] == 1e-6
    assert result.records.to_pandas().shape == (len(result.steps), len(result.records))
    assert repr(result).startswith("RangeTest(suggested lr: ")
    assert len(repr(result)) < 200
    figure = result.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_nothing_is_applied_until_it_is_asked_for() -> None:
    """Row 33: and then each group keeps its ratio."""
    model = small_model()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-4}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    result = swept(model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    result.apply(optimizer)
    lr = result.suggestion.lr
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr / 10])
    assert result.group_lrs == pytest.approx((lr, lr / 10))
    none = dataclasses.replace(result, suggestion=dataclasses.replace(result.suggestion, lr=None, interval=None))
    with pytest.raises(ValueError, match="got none"):
        none.apply(optimizer)


def test_an_lr_that_a_scheduler_will_overwrite_is_applied_with_a_warning() -> None:
    """Lightning#21030: found but not applied."""
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    result = swept(model, optimizer)
    with pytest.warns(UserWarning, match="scheduler keeps the LRs it was made with; make it again"):
        result.apply(optimizer)


def test_all_that_is_wrong_is_told_at_once_in_the_words_of_the_command_line() -> None:
    """Field, rule, value, next move; no traceback through our insides to read it from."""
    with pytest.raises(ValueError, match="the arguments are wrong") as caught:
        swept(
            train_loader=iter([1]),
            loss_fn=3,
            start_lr=-1.0,
            num_steps=2.5,
            mode="cubic",
            auto_range=1,
            smoothing="x",
            max_grad_norm=-1.0,
            accumulation_steps=0,
            method="magic",
        )
    told = str(caught.value)
    for message in (
        "(10 errors)",
        "start_lr must be above 0, got -1; try 1e-7",
        "num_steps must be a whole number, got 2.5; try 100",
        "mode must be one of exponential, linear, got 'cubic'; try exponential",
        "auto_range must be true or false, got 1; try True",
        "smoothing must be a number, got 'x'; try 0.9",
        "max_grad_norm must be above 0, got -1; None turns clipping off",
        "accumulation_steps must be at least 1, got 0; try 1",
        "method must be one of auto, steepest, minimum, valley, slide, largest_drop; got magic",
        "train_loader must begin anew when it is iterated again, got list_iterator",
        "loss_fn must be callable as loss_fn(model, batch), got int",
    ):
        assert message in told
    assert "sweep." not in told


def test_objects_that_cannot_be_swept_are_refused_with_what_to_do() -> None:
    """One optimizer at a time, without a closure, of this model, which holds all of its parameters."""
    model, other = small_model(), small_model()
    for given, message in (
        ([1, 2], "optimizer must be one optimizer, got 2; sweep one at a time"),
        (3, "optimizer must be a torch.optim.Optimizer, got int"),
        (torch.optim.LBFGS(model.parameters()), "optimizer must step without a closure, got LBFGS"),
        (torch.optim.SGD(other.parameters(), lr=0.1), "got none of them; give the optimizer of this model"),
        (torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1), "got 4 others"),
        (Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)), "got Lookahead around SGD; sweep with an optimizer"),
        (SimpleNamespace(base=torch.optim.SGD(model.parameters(), lr=0.1)), "got SimpleNamespace, which wraps one"),
    ):
        with pytest.raises(ValueError, match="wrong") as caught:
            swept(model, given)
        assert message in str(caught.value)
    for accelerator, message in (
        (SimpleNamespace(distributed_type="DistributedType.DEEPSPEED"), "sweep the same global batch with DDP"),
        (
            SimpleNamespace(distributed_type="DistributedType.NO", mixed_precision="fp8"),
            "accelerator must compute in fp32, fp16 or bf16, got fp8",
        ),
        (3, "accelerator must be an accelerate.Accelerator or None, got int"),
    ):
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="wrong") as caught:
            lrrunner.range_test(accelerator, model, optimizer, loader(), squared_error)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="model must be a torch"):
        lrrunner.range_test(None, 3, optimizer, loader(), squared_error)  # type: ignore[arg-type]


def test_a_loss_that_is_none_says_so_and_leaves_everything_as_it_was() -> None:
    """A tensor of losses, a model's whole output, or batches that cannot be counted."""
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    for loss_fn, message in (
        (lambda m, b: (m(b[0]) - b[1]) ** 2, r"got a tensor of shape \(48, 1\); return its mean"),
        (lambda m, b: {"loss": squared_error(m, b)}, "got dict; return its mean"),
        (lambda m, b: (squared_error(m, b), m(b[0])), r"number of items, got a tensor of shape \(48, 1\); count them"),
        (lambda m, b: (squared_error(m, b), -3), "number of items, got -3; count them"),
        (lambda m, b: (squared_error(m, b), torch.tensor(math.nan)), "number of items, got nan; count them"),
        (lambda m, b: (squared_error(m, b), "8"), "number of items, got str; count them"),
    ):
        with pytest.raises(ValueError, match=message):
            swept(model, loss_fn=loss_fn)
    inputs, targets = regression_data()
    with pytest.raises(ValueError, match=r"must return \(loss, num_items\) where a batch holds no tensor"):
        swept(model, loss_fn=lambda m, b: squared_error(m, (inputs, targets)), train_loader=[["a", "b"]])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_ragged_batches_weigh_by_their_size_and_dictionaries_are_batches_too() -> None:
    """The last batch of an epoch is smaller; accumulated with a full one it counts for less."""
    inputs, targets = regression_data()
    batches = [{"x": inputs[:20], "y": targets[:20]}, {"x": inputs[20:24], "y": targets[20:24]}]
    result = swept(
        train_loader=batches, loss_fn=lambda m, b: squared_error(m, (b["x"], b["y"])), accumulation_steps=2, num_steps=2
    )
    with torch.no_grad():
        expected = squared_error(small_model(), (inputs[:24], targets[:24])).item()
    assert result.steps[0].loss == pytest.approx(expected, rel=1e-12)
    assert result.global_batch_size == 24


def test_negative_losses_are_swept_like_others() -> None:
    """Row 5: a loss is a loss, wherever its zero is."""
    plain, shifted = swept(), swept(loss_fn=lambda m, b: squared_error(m, b) - 1000.0)
    assert shifted.suggestion.lr == pytest.approx(plain.suggestion.lr, rel=1e-6)
    assert max(losses(shifted)[:10]) < 0


class Checkpointed(nn.Module):
    """Computes its activations again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = checkpoint(self.inner, inputs, use_reentrant=False)
        return outputs


def test_gradient_checkpointing_changes_nothing() -> None:
    """Memory is no reason for another LR."""
    assert losses(swept(Checkpointed())) == losses(swept())


def test_a_compiled_model_is_swept_and_left_as_it_was() -> None:
    """Compiled code holds on to the very parameters."""
    model = small_model()
    compiled: Any = torch.compile(model, backend="aot_eager")
    inputs, _ = regression_data()
    before = compiled(inputs).detach()
    result = swept(compiled, torch.optim.Adam(model.parameters(), lr=1e-3))
    np.testing.assert_allclose(losses(result)[:30], losses(swept())[:30], rtol=1e-9)
    assert torch.equal(compiled(inputs), before)
    assert result.job.model["_target_"].endswith("Sequential")
    torch.compiler.reset()


@pytest.mark.soak
def test_an_inductor_compiled_model_is_swept() -> None:
    """The compiler that people use takes half a minute."""
    model = small_model()
    result = swept(torch.compile(model), torch.optim.Adam(model.parameters(), lr=1e-3))  # type: ignore[arg-type]
    np.testing.assert_allclose(losses(result)[:30], losses(swept())[:30], rtol=1e-6)
    torch.compiler.reset()


def test_optimizers_with_modes_or_step_sizes_of_their_own_are_swept() -> None:
    """Schedule-free ones train in their training mode; those that find their step size say what the LR is."""
    model = small_model()
    averaging = AveragingSGD(model.parameters(), lr=0.1)
    found = swept(model, averaging).suggestion
    assert found.lr is not None
    assert found.reason.endswith(
        "the LR multiplies all steps of AveragingSGD, which needs no schedule: keep it constant"
    )
    assert not averaging.param_groups[0]["train_mode"]
    own = SelfScalingSGD(model.parameters())
    result = swept(model, own)
    assert result.suggestion.reason.endswith("the LR multiplies the step size that SelfScalingSGD finds by itself")
    assert (own.param_groups[0]["lr"], own.param_groups[0]["d"]) == (1.0, 1e-6)


def test_repeats_read_other_orders_and_a_range_that_was_wrong_is_swept_again() -> None:
    """Also in a script."""
    result = swept(repeats=2, num_steps=20)
    records = result.records
    first, second = (records["loss"][records["repeat"] == repeat] for repeat in (0, 1))
    assert first[0] != second[0]
    wider = swept(end_lr=1e-2, auto_range=True)
    assert len(wider.passes) > 1
    assert wider.curve_pass == len(wider.passes) - 1


def test_a_saved_result_is_a_run_directory(tmp_path: Path) -> None:
    """What reads one, reads the other; a second sweep does not overwrite the first."""
    result = swept()
    path = result.save(tmp_path / "run")
    run = read_run(path)
    assert run.records.steps == [dataclasses.replace(step, rank_losses=()) for step in result.steps]
    assert run.test is not None
    assert run.test.suggestion.lr == result.suggestion.lr
    assert run.job.sweep == result.job.sweep
    assert run.status["state"] == "finished"
    assert "lrrunner.range_test(accelerator, model, optimizer, train_loader, loss_fn, start_lr=1e-06" in run.note
    assert (path / "lr_sweep.png").stat().st_size > 1000
    assert json.loads((path / "suggestion.json").read_text())["group_lrs"] == [result.suggestion.lr]
    with pytest.raises(ValueError, match="directory must not hold a run yet"):
        result.save(path)
    other = dataclasses.replace(result, rank=1)
    assert other.save(tmp_path / "other") == tmp_path / "other"
    assert other.log_to_mlflow() is None
    assert not (tmp_path / "other").exists()


def test_a_sweep_that_finds_nothing_suggests_nothing() -> None:
    """Row 27: a constant loss has no LR, and the result says what to change."""
    result = swept(loss_fn=lambda m, b: squared_error(m, b) * 0 + 1.0, num_steps=30)
    assert result.suggestion.lr is None
    assert result.suggestion.verdict == lrrunner.Verdict.FLAT
    assert result.group_lrs is None
    assert "sweep." not in result.suggestion.reason
    assert "batch size" in result.suggestion.reason or "end_lr" in result.suggestion.reason
    assert math.isfinite(result.records["loss"].sum())


class PartlyFrozen(nn.Module):
    """Records in which modes its two parts train."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = small_model(), nn.BatchNorm1d(10, dtype=torch.float64)
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.modes.add((self.inner.training, self.norm.training))
        outputs: torch.Tensor = self.inner(self.norm(inputs))
        return outputs


def test_parts_that_are_kept_in_evaluation_mode_stay_in_it() -> None:
    """Frozen batch norms are part of the training; a model that as a whole evaluates is brought to train."""
    frozen, evaluated = PartlyFrozen(), PartlyFrozen().eval()
    frozen.norm.eval()
    for model, modes in ((frozen, {(True, False)}), (evaluated, {(True, True)})):
        before = [module.training for module in model.modules()]
        swept(model, torch.optim.SGD(model.parameters(), lr=0.1), num_steps=4, repeats=2)
        assert model.modes == modes
        assert [module.training for module in model.modules()] == before


def test_a_scaler_is_used_and_left_as_it_was_even_between_unscaling_and_stepping() -> None:
    """A plain fp16 training may ask for a sweep anywhere; a scaler that is switched off is none."""
    model = small_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs, targets = regression_data(torch.float32)
    data = [(inputs, targets)]
    scaler.scale(squared_error(model, data[0])).backward()
    scaler.unscale_(optimizer)
    scales: list[float] = []

    def loss_fn(given: nn.Module, batch: Any) -> torch.Tensor:
        scales.append(scaler.get_scale())
        without_slope = (next(given.parameters()) * 0).sum().sqrt() if len(scales) == 1 else 0.0
        return squared_error(given, batch) + without_slope

    options: dict[str, Any] = {"train_loader": data, "num_steps": 4, "repeats": 2, "end_lr": 1e-3}
    plain = swept(model, optimizer, squared_error, **options)
    scaled = swept(model, optimizer, squared_error, scaler=scaler, **options)
    assert losses(scaled) == pytest.approx(losses(plain), rel=1e-5)
    swept(model, optimizer, loss_fn, scaler=scaler, **options)
    assert scales[:2] == [8.0, 4.0]
    assert scaler.get_scale() == 8.0
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert losses(swept(model, optimizer, squared_error, scaler=off, **options))[0] != losses(plain)[0]


def test_gradients_are_clipped_and_tensor_lrs_filled() -> None:
    """The first step of SGD is as long as the clipped gradient times the LR."""
    model = small_model()
    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, foreach=False)
    lengths: list[float] = []
    optimizer.register_step_pre_hook(
        lambda *_: lengths.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))  # type: ignore[misc]
    )
    result = swept(model, optimizer, max_grad_norm=0.01, num_steps=5, end_lr=1e-3)
    assert lengths == pytest.approx([0.01] * 5, rel=1e-3)
    assert result.records["grad_norm"].min() > 0.01
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_a_further_pass_is_told_without_any_logging_set_up(caplog: pytest.LogCaptureFixture) -> None:
    """Else a script takes twice the time for a reason that nobody sees."""
    swept(end_lr=1e-2, auto_range=True)
    assert any("sweeping again from" in record.message and record.levelname == "WARNING" for record in caplog.records)


def test_options_that_differ_by_rank_are_named() -> None:
    """Ranks with ladders of their own would train apart, or wait for ever; 1 and 1.0 are the same."""
    base = {"num_steps": 20, "start_lr": 1, "method": "auto"}
    assert disagreements([base, base | {"start_lr": 1.0}]) == []
    (told,) = disagreements([base, base, base | {"num_steps": 30}])
    assert told.startswith("num_steps must be the same on every rank, got 20 on rank 0, 30 on rank 2; ")
