"""The library call in one process: how models, optimizers and losses are trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrrunner
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.unit.library.script import losses, swept
from tests.unit.training.optimizer.unusual_optimizers import AveragingSGD, SelfScalingSGD


def test_public_names_are_imported_lazily() -> None:
    """PEP 562: the command line must not wait for torch."""
    assert set(lrrunner.__all__) <= set(dir(lrrunner))
    assert all(getattr(lrrunner, name) is not None for name in lrrunner.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        lrrunner.no_such_name  # noqa: B018


def test_only_apply_changes_the_optimizer() -> None:
    """Row 33: each group keeps its ratio."""
    model = small_model()
    groups: list[dict[str, Any]] = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-4}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    result = swept(model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    result.apply(optimizer)
    lr = result.suggestion.lr
    assert lr is not None
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr / 10])
    assert result.group_lrs == pytest.approx((lr, lr / 10))
    none = dataclasses.replace(result, suggestion=dataclasses.replace(result.suggestion, lr=None, interval=None))
    with pytest.raises(ValueError, match="got none"):
        none.apply(optimizer)


def test_an_lr_that_a_scheduler_will_overwrite_is_applied_with_a_warning() -> None:
    """Lightning#21030: the suggestion had no effect."""
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    result = swept(model, optimizer)
    with pytest.warns(UserWarning, match="scheduler keeps the LRs it was made with; make it again"):
        result.apply(optimizer)


class Checkpointed(nn.Module):
    """Recomputes its activations in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = checkpoint(self.inner, inputs, use_reentrant=False)
        return outputs


def test_gradient_checkpointing_changes_nothing() -> None:
    """Recomputed activations are the same bits."""
    assert losses(swept(Checkpointed())) == losses(swept())


def test_a_compiled_model_is_swept_and_restored() -> None:
    """Compiled code holds references to the parameters, so they must stay the same tensors."""
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
    """The default compiler; it takes half a minute."""
    model = small_model()
    result = swept(torch.compile(model), torch.optim.Adam(model.parameters(), lr=1e-3))  # type: ignore[arg-type]
    np.testing.assert_allclose(losses(result)[:30], losses(swept())[:30], rtol=1e-6)
    torch.compiler.reset()


def test_schedule_free_and_self_scaling_optimizers_are_swept() -> None:
    """The first train in their training mode; for the second, the reason says what the LR means."""
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


def test_repeats_read_other_orders_and_a_wrong_range_is_swept_again() -> None:
    """As on the command line."""
    result = swept(repeats=2, num_steps=20)
    records = result.records
    first, second = (records["loss"][records["repeat"] == repeat] for repeat in (0, 1))
    assert first[0] != second[0]
    wider = swept(end_lr=1e-2, auto_range=True)
    assert len(wider.passes) > 1
    assert wider.curve_pass == len(wider.passes) - 1


def test_a_sweep_that_finds_nothing_suggests_nothing() -> None:
    """Row 27: a constant loss has no LR, and the result says what to change."""
    result = swept(loss_fn=lambda m, b: squared_error(m, b) * 0 + 1.0, num_steps=30)
    assert result.suggestion.lr is None
    assert result.suggestion.verdict == lrrunner.Verdict.FLAT
    assert result.group_lrs is None
    assert "sweep." not in result.suggestion.reason
    assert "batch size" in result.suggestion.reason or "end_lr" in result.suggestion.reason
    assert math.isfinite(result.records["loss"].sum())


def test_a_noisy_loss_that_the_range_hardly_moves_names_the_argument_of_its_end() -> None:
    """The verdict too_noisy sent a caller to batch size and repeats, where end_lr=1e-4 was at fault."""
    generator = torch.Generator().manual_seed(0)

    def noisy_error(model: nn.Module, batch: Any) -> torch.Tensor:
        return squared_error(model, batch) * torch.rand((), generator=generator) * 2

    found = swept(loss_fn=noisy_error, end_lr=1e-4, auto_range=True).suggestion
    assert found.verdict == lrrunner.Verdict.TOO_NOISY
    assert found.reason.endswith("; end_lr=1.0e-04 may also be too low to move the loss: raise it")


class PartlyFrozen(nn.Module):
    """Records the modes in which its two parts train."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = small_model(), nn.BatchNorm1d(10, dtype=torch.float64)
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.modes.add((self.inner.training, self.norm.training))
        outputs: torch.Tensor = self.inner(self.norm(inputs))
        return outputs


def test_submodules_in_evaluation_mode_stay_in_it() -> None:
    """Frozen batch norms are part of the training; a model in evaluation mode is set to training mode."""
    frozen, evaluated = PartlyFrozen(), PartlyFrozen().eval()
    frozen.norm.eval()
    for model, modes in ((frozen, {(True, False)}), (evaluated, {(True, True)})):
        before = [module.training for module in model.modules()]
        swept(model, torch.optim.SGD(model.parameters(), lr=0.1), num_steps=4, repeats=2)
        assert model.modes == modes
        assert [module.training for module in model.modules()] == before


def test_gradients_are_clipped_and_tensor_lrs_filled() -> None:
    """The records hold the norm before clipping; a tensor LR stays the same tensor."""
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


def test_a_further_pass_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A script that has not configured logging shows nothing below, and would take twice the time without a reason."""
    swept(end_lr=1e-2, auto_range=True)
    assert any("sweeping again from" in record.message and record.levelname == "WARNING" for record in caplog.records)
