"""Save and restore what a sweep changes: model, optimizer, scaler, random number generators. In memory, on each rank.

Nothing here communicates, so a rank can restore whatever became of the others. Of sharded tensors, each rank saves and
restores its shard; no rank ever holds the whole. The portable form of what is saved holds
plain values and tensors in host memory only, so that ``torch.load(weights_only=True)`` reads it back.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lrrunner.training.fsdp import Layout, is_sharded, local_part, reshard


class _SavedTensor(NamedTuple):
    """A copy in host memory (a snapshot must not raise the peak of device memory), and where it belongs.

    Of a sharded tensor, this rank's shard.
    """

    values: torch.Tensor
    device: torch.device
    layout: Layout | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _SavedTensor:
        return cls(local_part(tensor).detach().to("cpu", copy=True), tensor.device, Layout.of(tensor))

    def tensor(self) -> torch.Tensor:
        values = self.values.to(self.device, copy=True)
        return values if self.layout is None else self.layout.whole(values)

    def write_to(self, tensor: torch.Tensor) -> None:
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
        """Remember the generators of this process and of ``device``."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    @classmethod
    def from_portable(cls, tree: dict[str, Any]) -> RngState:
        """The state that :meth:`portable` has written down."""
        name, keys, *rest = tree["numpy"]
        numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
        version, words, gauss = tree["python"]
        return cls((version, tuple(words), gauss), numpy_state, tree["torch_cpu"], tree["cuda"])

    def portable(self) -> dict[str, Any]:
        """Plain values and tensors."""
        name, keys, *rest = self.numpy
        return {
            "python": self.python,
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch_cpu": self.torch_cpu,
            "cuda": self.cuda,
        }

    def restore(self, device: torch.device) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def seed_rngs(*entropy: int) -> None:
    """Seed every generator of this process from a tuple of non-negative integers, such as (seed, repeat, rank)."""
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class Snapshot:
    """Bitwise copies of parameters, buffers, gradients, train flags, optimizer and scaler; a rank's shards of them.

    The optimizer's own counters are among them.

    Restoring writes into the live parameters and buffers, so references to them stay valid, and can be done any number
    of times. Gradients and the optimizer's state come back as new tensors; one that several entries of the state share
    is shared again.

    Args:
        model: The module whose parameters the optimizer holds (wrapped or not).
        optimizer: Its optimizer; lazily created state that is not there yet is not created.
        scaler: Gradient scaler, if the training uses one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._parameters = [_SavedTensor.of(p) for p in model.parameters()]
        self._gradients = [None if p.grad is None else _SavedTensor.of(p.grad) for p in model.parameters()]
        self._buffers = saved_buffers(model)
        self._training = [module.training for module in model.modules()]
        copies: dict[int, _SavedTensor] = {}
        self._optimizer_state = {param: _saved(state, copies) for param, state in optimizer.state.items()}
        self._groups = [
            {key: _saved(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        self._optimizer_counters = _counters(optimizer)
        self._scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, bit for bit."""
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
            self._scaler._per_optimizer_states.clear()  # an exception between unscale_ and update leaves its mark here

    @property
    def is_sharded(self) -> bool:
        """Whether it holds one rank's shards."""
        return is_sharded(self._model)

    def portable(self) -> dict[str, Any]:
        """Parameters, optimizer, scaler and train flags: what ranks have in common, or their shards of it.

        Gradients are left out.

        Raises:
            TypeError: an optimizer keeps something that is neither a tensor nor a plain value.
        """
        numbers = {param: number for number, param in enumerate(self._optimizer_parameters())}
        return {
            "parameters": [_portable(saved) for saved in self._parameters],
            "training": list(self._training),
            "optimizer": [(numbers[param], _portable(state)) for param, state in self._optimizer_state.items()],
            "groups": [_portable(group) for group in self._groups],
            "scaler": _portable(self._scaler_state),
        }

    def portable_buffers(self) -> list[Any]:
        """What may differ by rank: the buffers of every module, in order."""
        return [{name: _portable(saved) for name, (_, saved) in buffers.items()} for _, buffers in self._buffers]

    def adopt(self, tree: dict[str, Any], buffers: list[Any]) -> None:
        """Remember what :meth:`portable` and :meth:`portable_buffers` of such a model wrote down, instead."""
        model, parameters = self._model, self._optimizer_parameters()
        self._parameters = [_adopted(saved, model) for saved in tree["parameters"]]
        self._gradients = [None] * len(self._parameters)
        self._training = list(tree["training"])
        self._optimizer_state = {parameters[number]: _adopted(state, model) for number, state in tree["optimizer"]}
        self._groups = [_adopted(group, model) for group in tree["groups"]]
        self._scaler_state = _adopted(tree["scaler"], model)
        self._buffers = [
            (module, {name: _matching_buffer(module, name, _adopted(saved, model)) for name, saved in named.items()})
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
                if isinstance(value, _SavedTensor) and isinstance(group.get(key), torch.Tensor):
                    value.write_to(group[key])  # compiled and capturable optimizers hold this very tensor
                else:
                    group[key] = _restored(value)


SavedBuffers = list[tuple[nn.Module, dict[str, tuple[torch.Tensor | None, Any]]]]
"""Every module and, by name, its buffers and copies of them."""


def saved_buffers(model: nn.Module) -> SavedBuffers:
    """Copies of all buffers, for :func:`restore_buffers`."""
    return [
        (module, {name: (buffer, _saved(buffer)) for name, buffer in module._buffers.items()})
        for module in model.modules()
    ]


def restore_buffers(saved: SavedBuffers) -> None:
    """Put the very buffers back, with their values."""
    for module, buffers in saved:
        _restore_buffers(module, buffers)


def _counters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer keeps in plain attributes: whether it has stepped yet, for its scheduler's warning, say."""
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, bool | int | float)}


def _restore_buffers(module: nn.Module, buffers: dict[str, tuple[torch.Tensor | None, Any]]) -> None:
    """Forward may have replaced, resized, set or removed a buffer: the original object comes back, with its values."""
    for name in module._buffers.keys() - buffers.keys():
        del module._buffers[name]
    for name, (original, saved) in buffers.items():
        if original is not None and not _same_bits(
            local_part(original).cpu(), saved.values
        ):  # expanded ones refuse any write
            original.copy_(saved.values)
        module._buffers[name] = original


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one type in host memory are the same, of which 0 and -0 are not."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second)))


def _matching_buffer(module: nn.Module, name: str, saved: Any) -> tuple[torch.Tensor | None, Any]:
    """The module's own buffer where it fits, and what goes into it."""
    if saved is None:
        return None, None
    current = module._buffers.get(name)
    fits = current is not None and current.shape == saved.values.shape and current.dtype == saved.values.dtype
    return (current if fits else saved.tensor()), saved


def _portable(value: Any) -> Any:
    """A saved value as plain values and tensors; a dictionary as pairs, so that it cannot be taken for a tensor."""
    if isinstance(value, _SavedTensor):
        layout = {} if value.layout is None else {"layout": value.layout.portable()}
        return {"tensor": value.values, "device": value.device.type} | layout
    if isinstance(value, dict):
        return {"items": [(_portable(key), _portable(item)) for key, item in value.items()]}
    if isinstance(value, list):
        return {"list": [_portable(item) for item in value]}
    if isinstance(value, tuple) and type(value) is tuple:
        return {"tuple": [_portable(_saved(item)) for item in value]}
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if value is None:
        return None
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is neither a tensor nor a plain value")


def _adopted(value: Any, model: nn.Module) -> Any:
    """The saved value behind a portable one, for a ``model`` like the one it was taken from."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        on_host = value["device"] == "cpu"
        device = torch.device("cpu") if on_host else next(model.parameters()).device
        layout = Layout.from_portable(value["layout"], model) if "layout" in value else None
        return _SavedTensor(value["tensor"], device, layout)
    if "items" in value:
        return {_adopted(key, model): _adopted(item, model) for key, item in value["items"]}
    if "list" in value:
        return [_adopted(item, model) for item in value["list"]]
    return tuple(_restored(_adopted(item, model)) for item in value["tuple"])


def _saved(value: Any, copies: dict[int, _SavedTensor] | None = None) -> Any:
    """A copy of a value; of a tensor that ``copies`` has by its identity, the one that is there."""
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        if id(value) not in copies:
            copies[id(value)] = _SavedTensor.of(value)
        return copies[id(value)]
    if isinstance(value, dict):
        return {key: _saved(item, copies) for key, item in value.items()}
    if isinstance(value, list):
        return [_saved(item, copies) for item in value]
    return copy.deepcopy(value)


def _restored(value: Any, tensors: dict[int, torch.Tensor] | None = None) -> Any:
    """The value behind a saved one; the same tensor again for a copy that ``tensors`` has by its identity."""
    tensors = {} if tensors is None else tensors
    if isinstance(value, _SavedTensor):
        if id(value) not in tensors:
            tensors[id(value)] = value.tensor()
        return tensors[id(value)]
    if isinstance(value, dict):
        return {key: _restored(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    return copy.deepcopy(value)
