"""Modules that a loss uses beside the trained model, such as the discriminator of a GAN: found, saved and restored."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from lrrunner.training.fsdp import is_sharded, local_part, reshard
from lrrunner.training.state.snapshot import SavedTensor, restore_buffers, same_bits, saved_buffers

MAX_VISITED = 20_000
"""Objects that are looked at to find modules; a loss reaches a few hundred, or too much to search."""

MAX_ITEMS = 1000
"""Longer containers hold data."""

LEAVES = (torch.Tensor, torch.optim.Optimizer, ModuleType, CodeType, str, bytes, int, float, complex, type(None))
"""Objects that hold no module of a loss, or are not searched."""

LIBRARIES = ("torch", "numpy", "accelerate", "builtins")
"""Packages whose functions use no module of the user's."""


@dataclass(frozen=True)
class LossModule:
    """A module that the loss uses and the optimizer does not train.

    Attributes:
        module: The module, with all its submodules.
        is_changed: Whether the loss changes its frozen parameters, too (a teacher that is an average of the model).
    """

    module: nn.Module
    is_changed: bool = False


def reachable_modules(function: Any) -> list[nn.Module]:
    """The modules that a function can reach: by its closure, its defaults, the globals that it names, or its object.

    Functions, partial functions, methods, callable objects, and containers and plain objects among what they hold are
    followed; modules inside of found modules are not listed. What a function looks up under a name that it computes
    (``globals()[name]``, a registry of another library) is not found.
    """
    found: dict[int, nn.Module] = {}
    seen: dict[int, Any] = {}  # keeps objects alive, so that identities stay unique
    queue = deque([function])
    while queue and len(seen) < MAX_VISITED:
        value = queue.popleft()
        if id(value) in seen or isinstance(value, LEAVES):
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            found[id(value)] = value
        queue += _parts(value)
    inside = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return [module for key, module in found.items() if key not in inside]


def loss_modules(function: Any, model: nn.Module, given: Iterable[nn.Module] = ()) -> tuple[LossModule, ...]:
    """The modules that a loss uses beside ``model``: those that were given, and those that it can reach."""
    own = {id(part) for part in model.modules()}
    listed = [LossModule(module, is_changed=True) for module in given]
    known = own | {id(part) for each in listed for part in each.module.modules()}
    return (*listed, *(LossModule(module) for module in reachable_modules(function) if id(module) not in known))


class LossModulesSnapshot:
    """Buffers, gradients, flags and parameters of modules that a loss uses, without those that the model holds itself.

    Frozen parameters are copied only where the loss is said to change them: a large frozen network would take its size
    in host memory.

    Args:
        modules: The modules.
        model: The trained model, which has a snapshot of its own.
    """

    def __init__(self, modules: Iterable[LossModule], model: nn.Module) -> None:
        own = {id(part) for part in model.modules()} | {id(parameter) for parameter in model.parameters()}
        known: set[int] = set(own)
        self._sharded = [each.module for each in modules if is_sharded(each.module)]
        self._training: list[tuple[nn.Module, bool]] = []
        self._parameters: list[_SavedParameter] = []
        self._buffers = []
        for each in modules:
            parts = [part for part in each.module.modules() if id(part) not in known]
            known |= {id(part) for part in parts}
            self._training += [(part, part.training) for part in parts]
            self._buffers += saved_buffers(part for part in parts if all(map(_has_values, part._buffers.values())))
            for parameter in each.module.parameters():
                if id(parameter) not in known and _has_values(parameter):
                    known.add(id(parameter))
                    self._parameters.append(_SavedParameter(parameter, is_changed=each.is_changed))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything, bit for bit."""
        for module in self._sharded:
            reshard(module)
        for parameter in self._parameters:
            parameter.restore()
        restore_buffers(self._buffers)
        for module, training in self._training:
            module.training = training


class _SavedParameter:
    """A parameter's gradient and flag, and its values where they may change."""

    def __init__(self, parameter: nn.Parameter, *, is_changed: bool) -> None:
        self._parameter, self._requires_grad = parameter, parameter.requires_grad
        self._values = SavedTensor.of(parameter) if is_changed or parameter.requires_grad else None
        self._gradient = parameter.grad
        self._gradient_values = None if parameter.grad is None else SavedTensor.of(parameter.grad)

    def restore(self) -> None:
        """Restore the original gradient object, too; what has not changed is not written."""
        _write_back(self._values, self._parameter)
        self._parameter.requires_grad_(self._requires_grad)
        if self._gradient is not None:
            _write_back(self._gradient_values, self._gradient)
        self._parameter.grad = self._gradient


def _write_back(saved: SavedTensor | None, tensor: torch.Tensor) -> None:
    if saved is not None and not same_bits(local_part(tensor.detach()).cpu(), saved.values):
        saved.write_to(tensor)


def _has_values(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor can be copied: a lazy one, or one on the meta device, holds nothing."""
    return tensor is None or not (tensor.is_meta or nn.parameter.is_lazy(tensor))


def _parts(value: Any) -> Iterator[Any]:
    """What a value holds that may be, or hold, a module."""
    if isinstance(value, nn.Module):
        yield from value._modules.values()
        yield from (part for name, part in vars(value).items() if not name.startswith("_"))
    elif isinstance(value, FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict | list | tuple | set | frozenset):
        if len(value) <= MAX_ITEMS:
            yield from value.values() if isinstance(value, dict) else value
    elif not isinstance(value, type):
        yield from _attributes(value)
        call = getattr(type(value), "__call__", None)  # noqa: B004 - the function, to search it
        if isinstance(call, FunctionType):
            yield call


def _attributes(value: Any) -> Iterator[Any]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return
    yield from list(attributes.values())


def _function_parts(function: FunctionType) -> Iterator[Any]:
    if str(function.__module__).partition(".")[0] in LIBRARIES:
        return
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):  # nets.discriminator
            yield from (vars(value)[other] for other in names & vars(value).keys())
        elif not inspect.isclass(value):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function's code looks up, in nested functions, too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not assigned yet
        return False
    return True
