"""What a recorded learning rate means, and how a suggested one is applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrrunner.training.optimizer.learning_rate import LearningRate
from tests.multiprocess.sweeps import small_model


def two_groups(**options: Any) -> list[dict[str, Any]]:
    model = small_model()
    return [{"params": model[0].parameters()}, {"params": model[2].parameters(), **options}]


def test_groups_that_share_an_lr_are_recorded_by_it() -> None:
    """If a script sets param_groups by hand, nothing uses the default any more."""
    optimizer = torch.optim.SGD(two_groups(), lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    learning_rate = LearningRate(optimizer)
    assert (learning_rate.base_lr, learning_rate.ratios) == (0.02, (1.0, 1.0))


def test_groups_that_differ_are_recorded_by_the_optimizers_default() -> None:
    """It is what a user writes as optimizer.lr."""
    learning_rate = LearningRate(torch.optim.SGD(two_groups(lr=0.01), lr=0.1))
    assert learning_rate.base_lr == 0.1
    assert learning_rate.ratios == pytest.approx((1.0, 0.1))


def test_groups_that_all_left_the_default_are_recorded_by_the_largest() -> None:
    """Nothing trains with the default, 1e-3 for SGD: an LR that means it would be read as a group's."""
    optimizer = torch.optim.SGD(two_groups(lr=0.05))
    optimizer.param_groups[0]["lr"] = 0.5
    learning_rate = LearningRate(optimizer)
    assert learning_rate.base_lr == 0.5
    assert learning_rate.ratios == pytest.approx((1.0, 0.1))


def test_a_schedule_on_tensor_learning_rates_leaves_the_ratios_alone() -> None:
    """The scheduler fills the tensor that is the optimizer's default at the same time."""
    lr, other = torch.tensor(0.1), torch.tensor(0.01)
    optimizer = torch.optim.Adam(two_groups(lr=other), lr=lr, foreach=False)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert optimizer.defaults["lr"].item() == pytest.approx(0.05)
    assert LearningRate(optimizer).ratios == pytest.approx((1.0, 0.1))


def test_an_applied_lr_keeps_ratios_also_for_later_schedulers() -> None:
    """A scheduler that is made later starts from initial_lr, if an earlier one has set it."""
    optimizer = torch.optim.SGD(two_groups(lr=0.01), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    with pytest.warns(UserWarning, match="make it again"):
        LearningRate(optimizer).apply(0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04])
    assert [group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04])
    again = LearningRate(optimizer)
    assert again.base_lr == 0.4
    assert again.ratios == pytest.approx((1.0, 0.1))


def test_an_applied_lr_fills_a_tensor() -> None:
    """Capturable optimizers hold on to it."""
    lr = torch.tensor(0.1)
    optimizer = torch.optim.Adam(small_model().parameters(), lr=lr, foreach=False)
    LearningRate(optimizer).apply(0.25)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


def decayed_groups(**of_body: Any) -> list[dict[str, Any]]:
    """A body and a head with layer-wise LR decay."""
    body, head = two_groups(lr=1.0)
    return [{"params": body["params"], "lr_scale": 0.1, **of_body}, {"params": head["params"], "lr_scale": 1.0}]


def test_groups_keep_the_ratio_of_their_lr_scale_in_the_sweep_only() -> None:
    """timm, MAE, BEiT and open_clip: the training's scheduler multiplies by it, so that applying an LR must not."""
    optimizer = torch.optim.SGD(decayed_groups(), lr=0.5)
    learning_rate = LearningRate(optimizer)
    assert learning_rate.base_lr == 0.5
    assert learning_rate.ratios == (0.1, 1.0)
    learning_rate.set(2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 2.0]
    learning_rate.apply(2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 2.0]


def test_an_lr_scale_that_a_scheduler_has_applied_counts_once() -> None:
    """A sweep in the middle of such a training finds the scaled LRs."""
    learning_rate = LearningRate(torch.optim.SGD(decayed_groups(lr=0.05), lr=0.5))
    assert learning_rate.base_lr == 0.5
    assert learning_rate.ratios == (0.1, 1.0)


def test_an_optimizer_that_changes_its_lr_is_noticed() -> None:
    """The recorded LR must be the one that the step used."""
    optimizer = torch.optim.SGD(two_groups(lr=0.01), lr=0.1)
    learning_rate = LearningRate(optimizer)
    learning_rate.set(0.3)
    assert learning_rate.changed_lr(0.3) is None
    optimizer.param_groups[1]["lr"] = 0.7
    assert learning_rate.changed_lr(0.3) == 0.7


@pytest.mark.parametrize("lr", [None, 0.0])
def test_an_optimizer_without_an_lr_says_what_to_do(lr: float | None) -> None:
    """transformers' Adafactor has lr=None with relative_step=True; float() raised a bare TypeError."""
    optimizer = torch.optim.SGD(two_groups(lr=0.01), lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = lr
    with pytest.raises(
        ValueError, match=rf"optimizer\.lr must be a number above 0 in every group, got {lr}; .* Give an LR"
    ):
        LearningRate(optimizer)


def test_lrs_that_contain_their_lr_scale_keep_it_when_one_is_applied() -> None:
    """Without a scheduler that multiplies, the body would train at the LR of the head."""
    optimizer = torch.optim.SGD(decayed_groups(lr=0.01), lr=0.1)
    LearningRate(optimizer).apply(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 1.0])


def test_an_lr_in_a_tensor_is_read_back() -> None:
    """Capturable and compiled optimizers hold the LR in a tensor, and may schedule it by themselves."""
    lr = torch.tensor(0.1)
    learning_rate = LearningRate(torch.optim.Adam(small_model().parameters(), lr=lr))
    learning_rate.set(0.3)
    assert learning_rate.changed_lr(0.3) is None
    lr.mul_(0.5)
    assert learning_rate.changed_lr(0.3) == pytest.approx(0.15)
