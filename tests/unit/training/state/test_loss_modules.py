"""Modules that a loss uses beside the trained model are found, saved and restored."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.training.state.loss_modules import LossModule, LossModulesSnapshot, loss_modules, reachable_modules


def discriminator() -> nn.Sequential:
    """Batch norm, and a frozen layer."""
    layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    layers[2].requires_grad_(False)
    return layers


NET = discriminator()
nets = ModuleType("nets")
nets.critic = NET  # type: ignore[attr-defined]


def by_global(model: nn.Module, batch: Any) -> Any:
    """Names a global of its module."""
    return NET(model(batch)).mean()


def by_module(model: nn.Module, batch: Any) -> Any:
    """Names an attribute of an imported module."""
    return nets.critic(model(batch)).mean()


def by_helper(model: nn.Module, batch: Any) -> Any:
    """Calls a function that names a global, in a nested function."""
    return (lambda: by_global(model, batch))()


def by_argument(model: nn.Module, batch: Any, *, critics: Any) -> Any:
    """Has it as an argument."""
    return critics[0](model(batch))


class Training:
    """Holds networks in a dictionary; its method, or the object itself, is the loss."""

    def __init__(self, net: nn.Module) -> None:
        self.nets = {"critic": [net]}

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """A bound method."""
        return self.nets["critic"][0](model(batch)).mean()

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """A callable object."""
        return self.loss(model, batch)


class CallsHelper:
    """A callable object without attributes, whose method names a function that names a global."""

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The loss."""
        return by_helper(model, batch)


def closure(net: nn.Module) -> Any:
    """A function that holds the network in a cell, behind a decorator."""

    @functools.wraps(by_global)
    def loss(model: nn.Module, batch: Any) -> Any:
        return net(model(batch)).mean()

    return loss


@pytest.mark.parametrize(
    "function",
    [
        by_global,
        by_module,
        by_helper,
        CallsHelper(),
        Training(NET).loss,
        Training(NET),
        closure(NET),
        functools.partial(by_argument, critics=[NET]),
        functools.partial(closure(NET)),
        lambda model, batch, net=NET: net(model(batch)),
    ],
)
def test_a_module_is_found_wherever_a_loss_may_hold_it(function: Any) -> None:
    """Its submodules are part of it."""
    assert reachable_modules(function) == [NET]


def test_the_model_itself_large_data_and_torch_are_not_searched() -> None:
    """The model has a snapshot of its own; a list of a million numbers would take a second."""
    model = nn.Linear(2, 2)
    data = list(range(10**6))

    def loss(given: nn.Module, batch: Any) -> Any:
        return torch.nn.functional.mse_loss(given(batch), model(batch)) * len(data) * sys.maxsize

    assert reachable_modules(loss) == [model]
    assert loss_modules(loss, nn.Sequential(model)) == ()
    assert reachable_modules(torch.nn.functional.cross_entropy) == []
    assert reachable_modules(3) == []


def test_given_modules_come_first_and_once() -> None:
    """They may also change in their frozen parameters."""
    other = nn.Linear(1, 1)
    assert loss_modules(by_global, nn.Linear(2, 2), [other, NET]) == (
        LossModule(other, is_changed=True),
        LossModule(NET, is_changed=True),
    )


def disturb(net: nn.Module) -> None:
    """What a loss does to a network."""
    net(torch.randn(3, 2)).sum().backward()
    net.requires_grad_(False)
    net.eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)


def test_buffers_gradients_flags_and_trained_parameters_are_restored() -> None:
    """Bit for bit and in place: an optimizer of the discriminator holds the same tensors."""
    net = discriminator()
    net(torch.randn(3, 2)).sum().backward()
    net[0].eval()
    weight = net.get_parameter("0.weight")
    gradient = weight.grad
    assert gradient is not None
    before = {name: value.clone() for name, value in net.state_dict().items()}
    before_gradient = gradient.clone()
    snapshot = LossModulesSnapshot([LossModule(net)], nn.Linear(2, 2))
    for _ in range(2):
        disturb(net)
        net.zero_grad()
        gradient.add_(1)
        snapshot.restore()
        assert weight.grad is gradient
        assert torch.equal(gradient, before_gradient)
        assert [part.training for part in net] == [False, True, True]
        assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] * 2
        changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
        assert changed == ["2.weight", "2.bias"]
        net[2].load_state_dict({"weight": before["2.weight"], "bias": before["2.bias"]})


def test_frozen_parameters_of_a_given_module_are_restored() -> None:
    """A teacher that the loss itself moves."""
    net = discriminator()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    snapshot = LossModulesSnapshot([LossModule(net, is_changed=True)], nn.Linear(2, 2))
    disturb(net)
    snapshot.restore()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_is_not_there_yet_or_belongs_to_the_model_is_left_alone() -> None:
    """Lazy modules, tensors on the meta device, a wrapper around the model."""
    model = nn.Linear(2, 2)
    parts = nn.ModuleList([model, nn.LazyLinear(3), nn.BatchNorm1d(2, device="meta"), nn.LazyBatchNorm1d()])
    snapshot = LossModulesSnapshot([LossModule(parts, is_changed=True)], model)
    with torch.no_grad():
        model.weight.zero_()
    snapshot.restore()
    assert not model.weight.any()
