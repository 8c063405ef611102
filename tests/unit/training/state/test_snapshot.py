"""Snapshots are copies, restore is bitwise, and neither creates state that was not there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from lrrunner.training.state.snapshot import RngState, Snapshot, seed_rngs


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def test_restoring_writes_into_the_live_tensors() -> None:
    """Others hold references to parameters and buffers, which would not follow replaced tensors."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    held = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in held]
    snapshot = Snapshot(model, optimizer)
    stepped(model, optimizer)
    assert not all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == [id(t) for t in held]


def test_a_fresh_optimizer_stays_fresh() -> None:
    """Torch's own state dict calls create Adam's state with step 1, which shifts its bias correction."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    snapshot = Snapshot(model, optimizer)
    assert not optimizer.state
    stepped(model, optimizer)
    assert optimizer.state
    snapshot.restore()
    assert not optimizer.state


def test_a_snapshot_can_be_restored_twice_and_is_not_changed_by_training() -> None:
    """On a CPU, torch's state dicts alias live tensors and change with them."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped(model, optimizer)
    momentum = optimizer.state[model.weight]["momentum_buffer"].clone()
    weight = model.weight.detach().clone()
    snapshot = Snapshot(model, optimizer)
    for _ in range(2):
        stepped(model, optimizer)
        snapshot.restore()
        assert torch.equal(model.weight, weight)
        assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], momentum)


def test_gradients_of_an_unfinished_accumulation_come_back() -> None:
    """A sweep between backward and step must not eat the gradient."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad is not None
    gradient = model.weight.grad.clone()
    snapshot = Snapshot(model, optimizer)
    optimizer.zero_grad(set_to_none=True)
    snapshot.restore()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, gradient)


def test_keys_that_an_optimizer_adds_to_its_groups_go_away() -> None:
    """Schedule-free optimizers and schedulers write into parameter groups."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshot = Snapshot(model, optimizer)
    optimizer.param_groups[0]["added"] = 1
    optimizer.param_groups[0]["lr"] = 7.0
    snapshot.restore()
    assert "added" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_scaler_left_between_unscale_and_update_works_again() -> None:
    """An exception there would make the next sweep fail with 'unscale_() has already been called'."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    snapshot = Snapshot(model, optimizer, scaler)
    for _ in range(2):
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.unscale_(optimizer)
        snapshot.restore()
    assert scaler.get_scale() == 8.0


def test_all_generators_come_back() -> None:
    """What is drawn after a sweep is what would have been drawn without it."""

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    state = RngState.capture(torch.device("cpu"))
    expected = draws()
    seed_rngs(1, 2, 3)
    assert draws() != expected
    state.restore(torch.device("cpu"))
    assert draws() == expected


def test_seeds_differ_by_every_number_of_the_tuple() -> None:
    """Ranks must not draw the same dropout masks, nor repeats the same augmentations."""
    drawn = set()
    for entropy in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed_rngs(*entropy)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 4


class Restless(nn.Module):
    """Its forward sets, replaces and aliases buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("unset", None)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("expanded", torch.ones(1).expand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unset = x.detach()
        self.replaced = torch.ones(5)
        self.register_buffer("new", torch.ones(1), persistent=False)
        return self.weight * x


def test_buffers_that_forward_replaces_come_back_as_they_were() -> None:
    """Caches and running statistics: None again, the original object again, no new ones."""
    model: Any = Restless()
    replaced = model.replaced
    snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.ones(3))
    snapshot.restore()
    assert model.unset is None
    assert model.replaced is replaced
    assert model.replaced.tolist() == [0.0, 0.0]
    assert dict(model.named_buffers()).keys() == {"replaced", "expanded"}


def test_the_optimizers_own_counters_come_back() -> None:
    """A scheduler asks the optimizer whether it has stepped; after a sweep it has not."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    optimizer.num_seen = 5  # type: ignore[attr-defined]
    snapshot = Snapshot(model, optimizer)
    stepped(model, optimizer)
    optimizer.num_seen, optimizer.num_new = 6, 1  # type: ignore[attr-defined]
    assert vars(optimizer)["_opt_called"]
    snapshot.restore()
    assert vars(optimizer)["num_seen"] == 5
    assert not {"_opt_called", "num_new"} & vars(optimizer).keys()


def test_a_zero_that_became_negative_comes_back() -> None:
    """They are equal, and divide into different infinities."""
    model = nn.Linear(3, 1)
    model.register_buffer("zero", torch.zeros(()))
    snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.get_buffer("zero").neg_()
    snapshot.restore()
    assert not torch.signbit(model.get_buffer("zero"))


def test_a_tensor_that_entries_of_the_state_share_is_shared_again() -> None:
    """A counter for all parameters, say: copies of it would each count for themselves."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = torch.zeros(())
    for parameter in model.parameters():
        optimizer.state[parameter] = {"count": counter, "own": torch.ones(2)}
    snapshot = Snapshot(model, optimizer)
    counter += 5
    for _ in range(2):
        snapshot.restore()
        weight, bias = (optimizer.state[parameter] for parameter in model.parameters())
        assert weight["count"] is bias["count"]
        assert weight["own"] is not bias["own"]
        assert weight["count"].item() == 0.0
        weight["count"] += 3
