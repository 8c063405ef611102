"""Save and restore what a sweep changes: model, optimizer, scaler, random number generators. In memory, on each rank.

Nothing here communicates, so that a rank can restore although another one has failed. Of sharded tensors, each rank
saves and restores its shard; no rank ever holds the whole. State dictionaries hold plain values and tensors in host
memory only, so that ``torch.load(weights_only=True)`` reads them back.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lrrunner.training.fsdp import Layout, is_sharded, local_part, reshard


class SavedTensor(NamedTuple):
    """A copy in host memory (a snapshot must not raise the peak of device memory), and the device it belongs to.

    Of a sharded tensor, it is this rank's shard.
    """

    values: torch.Tensor
    device: torch.device
    layout: Layout | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> SavedTensor:
        """A copy of a tensor."""
        return cls(local_part(tensor).detach().to("cpu", copy=True), tensor.device, Layout.of(tensor))

    def tensor(self) -> torch.Tensor:
        """A new tensor with these values."""
        values = self.values.to(self.device, copy=True)
        return values if self.layout is None else self.layout.whole(values)

    def write_to(self, tensor: torch.Tensor) -> None:
        """Write the values into a tensor."""
        local_part(tensor).copy_(self.values)


@dataclass(frozen=True)
class RngState:
    """The states of Python's, numpy's and torch's generators, and of the device's if it has one."""

    python: Any
    numpy: Any
    torch_cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> RngState:
        """The state of the generators of this process and of ``device``."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RngState:
        """The state that :meth:`state_dict` was made of."""
        name, keys, *rest = state["numpy"]
        numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
        version, internal, gauss = state["python"]
        return cls((version, tuple(internal), gauss), numpy_state, state["torch_cpu"], state["cuda"])

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        name, keys, *rest = self.numpy
        return {
            "python": self.python,
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch_cpu": self.torch_cpu,
            "cuda": self.cuda,
        }

    def restore(self, device: torch.device) -> None:
        """Restore every generator."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def seed_rngs(*entropy: int) -> None:
    """Seed every generator of this process from a tuple of non-negative integers, such as (seed, repeat, rank)."""
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]))


class Snapshot:
    """Bitwise copies of parameters, buffers, gradients, train flags, optimizer and scaler; of shards where sharded.

    The optimizer's own counters are copied, too. Restoring can be repeated. It writes into the live parameters and
    buffers, so that references to them stay valid; gradients and the optimizer's state become new tensors, and one that
    several entries of the state share is shared again.

    Args:
        model: The module whose parameters the optimizer holds (wrapped or not).
        optimizer: Its optimizer; state that it has not created yet is not created here.
        scaler: Gradient scaler, if the training uses one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._parameters = [SavedTensor.of(p) for p in model.parameters()]
        self._gradients = [None if p.grad is None else SavedTensor.of(p.grad) for p in model.parameters()]
        self._buffers = saved_buffers(model.modules())
        self._training = [module.training for module in model.modules()]
        copies: dict[int, SavedTensor] = {}
        self._optimizer_state = {param: _saved(state, copies) for param, state in optimizer.state.items()}
        self._groups = [
            {key: _saved(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        self._optimizer_counters = _counters(optimizer)
        self._scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything, bit for bit."""
        reshard(self._model)
        for parameter, values, gradient in zip(
            self._model.parameters(), self._parameters, self._gradients, strict=True
        ):
            values.write_to(parameter)
            parameter.grad = None if gradient is None else gradient.tensor()
        restore_buffers(self._buffers)
        for module, training in zip(self._model.modules(), self._training, strict=True):
            module.training = training
        self._restore_optimizer()
        if self._scaler is not None and self._scaler_state is not None:
            self._scaler.load_state_dict(self._scaler_state)
            self._scaler._per_optimizer_states.clear()  # an exception between unscale_ and update leaves an entry

    @property
    def is_sharded(self) -> bool:
        """Whether it holds this rank's shards."""
        return is_sharded(self._model)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimizer, scaler and train flags, which are the same on all ranks, or their shards.

        Gradients are left out.

        Raises:
            TypeError: an optimizer keeps something that is neither a tensor nor a plain value.
        """
        numbers = {param: number for number, param in enumerate(self._optimizer_parameters())}
        return {
            "parameters": [_plain(saved) for saved in self._parameters],
            "training": list(self._training),
            "optimizer": [(numbers[param], _plain(state)) for param, state in self._optimizer_state.items()],
            "groups": [_plain(group) for group in self._groups],
            "scaler": _plain(self._scaler_state),
        }

    def buffers_state(self) -> list[Any]:
        """The buffers of every module, in order, which may differ by rank."""
        return [{name: _plain(saved) for name, (_, saved) in buffers.items()} for _, buffers in self._buffers]

    def load_state_dict(self, state: dict[str, Any], buffers: list[Any]) -> None:
        """Replace the copies by those that :meth:`state_dict` and :meth:`buffers_state` were made of.

        The model itself is changed by :meth:`restore` only.
        """
        model, parameters = self._model, self._optimizer_parameters()
        self._parameters = [_from_plain(saved, model) for saved in state["parameters"]]
        self._gradients = [None] * len(self._parameters)
        self._training = list(state["training"])
        self._optimizer_state = {parameters[number]: _from_plain(entry, model) for number, entry in state["optimizer"]}
        self._groups = [_from_plain(group, model) for group in state["groups"]]
        self._scaler_state = _from_plain(state["scaler"], model)
        self._buffers = [
            (module, {name: _matching_buffer(module, name, _from_plain(saved, model)) for name, saved in named.items()})
            for module, named in zip(model.modules(), buffers, strict=True)
        ]

    def _optimizer_parameters(self) -> list[Any]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _restore_optimizer(self) -> None:
        for name in _counters(self._optimizer).keys() - self._optimizer_counters.keys():
            delattr(self._optimizer, name)
        vars(self._optimizer).update(self._optimizer_counters)
        self._optimizer.state.clear()
        tensors: dict[int, torch.Tensor] = {}
        for param, state in self._optimizer_state.items():
            self._optimizer.state[param] = _restored(state, tensors)
        for group, saved in zip(self._optimizer.param_groups, self._groups, strict=True):
            for key in group.keys() - saved.keys() - {"params"}:
                del group[key]
            for key, value in saved.items():
                if isinstance(value, SavedTensor) and isinstance(group.get(key), torch.Tensor):
                    value.write_to(group[key])  # compiled and capturable optimizers hold this very tensor
                else:
                    group[key] = _restored(value)


SavedBuffers = list[tuple[nn.Module, dict[str, tuple[torch.Tensor | None, Any]]]]
"""Every module and, by name, its buffers and copies of them."""


def saved_buffers(modules: Iterable[nn.Module]) -> SavedBuffers:
    """Copies of the modules' own buffers, for :func:`restore_buffers`."""
    return [
        (module, {name: (buffer, _saved(buffer)) for name, buffer in module._buffers.items()}) for module in modules
    ]


def restore_buffers(saved: SavedBuffers) -> None:
    """Restore the original buffers and their values."""
    for module, buffers in saved:
        _restore_buffers(module, buffers)


def _counters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Plain attributes of an optimizer: whether it has stepped yet, for its scheduler's warning, say."""
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, bool | int | float)}


def _restore_buffers(module: nn.Module, buffers: dict[str, tuple[torch.Tensor | None, Any]]) -> None:
    """Restore the original objects and their values; forward may have replaced, resized, set or removed a buffer."""
    for name in module._buffers.keys() - buffers.keys():
        del module._buffers[name]
    for name, (original, saved) in buffers.items():
        if original is not None and not same_bits(
            local_part(original).cpu(), saved.values
        ):  # expanded ones refuse any write
            original.copy_(saved.values)
        module._buffers[name] = original


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one type in host memory are the same, of which 0 and -0 are not."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second)))


def _matching_buffer(module: nn.Module, name: str, saved: Any) -> tuple[torch.Tensor | None, Any]:
    """The module's own buffer if it fits, else a new one; and its copy."""
    if saved is None:
        return None, None
    current = module._buffers.get(name)
    fits = current is not None and current.shape == saved.values.shape and current.dtype == saved.values.dtype
    return (current if fits else saved.tensor()), saved


def _plain(value: Any) -> Any:
    """A copy as plain values and tensors; a dictionary as pairs, so that it cannot be mistaken for a tensor."""
    if isinstance(value, SavedTensor):
        layout = {} if value.layout is None else {"layout": value.layout.state_dict()}
        return {"tensor": value.values, "device": value.device.type} | layout
    if isinstance(value, dict):
        return {"items": [(_plain(key), _plain(item)) for key, item in value.items()]}
    if isinstance(value, list):
        return {"list": [_plain(item) for item in value]}
    if isinstance(value, tuple) and type(value) is tuple:
        return {"tuple": [_plain(_saved(item)) for item in value]}
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if value is None:
        return None
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is neither a tensor nor a plain value")


def _from_plain(value: Any, model: nn.Module) -> Any:
    """The copy that :func:`_plain` was made of, for a ``model`` like the one that it was made from."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        on_host = value["device"] == "cpu"
        device = torch.device("cpu") if on_host else next(model.parameters()).device
        layout = Layout.from_state_dict(value["layout"], model) if "layout" in value else None
        return SavedTensor(value["tensor"], device, layout)
    if "items" in value:
        return {_from_plain(key, model): _from_plain(item, model) for key, item in value["items"]}
    if "list" in value:
        return [_from_plain(item, model) for item in value["list"]]
    return tuple(_restored(_from_plain(item, model)) for item in value["tuple"])


def _saved(value: Any, copies: dict[int, SavedTensor] | None = None) -> Any:
    """A copy of a value; a tensor whose identity is in ``copies`` has that copy."""
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        if id(value) not in copies:
            copies[id(value)] = SavedTensor.of(value)
        return copies[id(value)]
    if isinstance(value, dict):
        return {key: _saved(item, copies) for key, item in value.items()}
    if isinstance(value, list):
        return [_saved(item, copies) for item in value]
    return copy.deepcopy(value)


def _restored(value: Any, tensors: dict[int, torch.Tensor] | None = None) -> Any:
    """The value of a copy; a copy whose identity is in ``tensors`` has that tensor."""
    tensors = {} if tensors is None else tensors
    if isinstance(value, SavedTensor):
        if id(value) not in tensors:
            tensors[id(value)] = value.tensor()
        return tensors[id(value)]
    if isinstance(value, dict):
        return {key: _restored(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    return copy.deepcopy(value)
