"""What a rank that has nothing to learn from does in a backward pass that the other ranks wait for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

NO_CALL = (
    "objective (loss_fn) must call the model in every micro-batch under {}, since all ranks run it together, got None "
    "without a call; call the model and return (0 * loss, 0)"
)

_Wrapper = tuple[nn.Module, DistributedDataParallel | None]


class ModelCalls:
    """Remembers what the model returned in a micro-batch, and gives a loss of 0 that reaches what ranks reduce.

    Args:
        model: The model, whose parts may be wrapped in DDP, or sharded.
        parameters: Parameters that the optimizer updates.
        is_sharded: Whether the model is sharded.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[torch.Tensor], *, is_sharded: bool) -> None:
        self._wrappers: list[_Wrapper] = [(model, None)]
        if not is_sharded:
            self._wrappers = _ddp_wrappers(model, {id(p) for p in parameters})
        self._outputs: dict[nn.Module, list[torch.Tensor]] = {}
        self._called: set[nn.Module] = set()  # by the last micro-batch with a loss

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Remember the outputs of the calls inside."""
        self._outputs.clear()
        with ExitStack() as hooks:
            for hooked, _ in self._wrappers:
                hooks.enter_context(hooked.register_forward_hook(self._record))
            yield

    def forget(self, *, with_loss: bool) -> None:
        """Free the outputs. After a micro-batch with a loss, the modules it called are those that ranks reduce."""
        if with_loss and self._outputs:
            self._called = set(self._outputs)
        self._outputs.clear()

    def zero_loss(self) -> torch.Tensor:
        """A loss of 0 whose backward pass reduces the gradients that the other ranks reduce.

        Raises:
            ValueError: the model was not called, and only its own forward pass could take part.
        """
        parts = []
        awaited = self._called | self._outputs.keys() or {hooked for hooked, _ in self._wrappers}
        if not self._outputs and not self._called and len(awaited) > 1:
            raise ValueError(NO_CALL.format("several DistributedDataParallel modules, at first"))
        for hooked, ddp in self._wrappers:
            if hooked in awaited:
                outputs = self._outputs.get(hooked)
                if not outputs:
                    outputs = [_without_forward_pass(ddp, was_called=hooked in self._outputs)]
                finite = [output for output in outputs if torch.isfinite(output.detach()).all()]
                parts += [(output * 0.0).sum() for output in finite or outputs]
        return torch.stack([part.float() for part in parts]).sum()

    def _record(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._outputs.setdefault(module, []).extend(t for t in _tensors(output) if t.requires_grad)


def _ddp_wrappers(model: nn.Module, parameters: set[int]) -> list[_Wrapper]:
    """Each trained part in DDP: the module that is called (compiled or not), and the wrapper."""
    found: dict[DistributedDataParallel, nn.Module] = {}
    for module in model.modules():
        inner = getattr(module, "_orig_mod", module)
        if isinstance(inner, DistributedDataParallel) and any(id(p) in parameters for p in inner.parameters()):
            found.setdefault(inner, module)
    return [(hooked, ddp) for ddp, hooked in found.items()]


def _without_forward_pass(ddp: DistributedDataParallel | None, *, was_called: bool) -> torch.Tensor:
    """What a DDP wrapper returns around a module that only touches its parameters: the reduction needs no more.

    Args:
        ddp: The wrapper; None for a sharded model.
        was_called: Whether its forward pass, which returned no tensor, has synchronised the buffers already.

    Raises:
        ValueError: it is sharded, or its graph is static, so that only the real forward pass will do.
    """
    if ddp is None or ddp.static_graph:
        raise ValueError(NO_CALL.format("FSDP2" if ddp is None else "DDP with static_graph"))
    module = ddp.module
    ddp.module = _Untouched(ddp)
    if was_called:
        ddp.require_forward_param_sync = False  # the wrapper sets it again at the end of this call
    try:
        output: torch.Tensor = ddp()
    finally:
        ddp.module = module
    return output


class _Untouched(nn.Module):
    """Takes the place of a module for one call, and returns 0 as a function of its parameters."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        super().__init__()
        self._buffers_of_ddp = ddp.module.named_buffers  # other ranks wait for the broadcast of these
        ignored = ddp.parameters_to_ignore
        reduced = [p for name, p in ddp.module.named_parameters() if p.requires_grad and name not in ignored]
        # where parameters may be unused, one that is touched gets a gradient on all ranks, of 0 if none uses it
        self._touched = reduced[-1:] if ddp.find_unused_parameters else reduced

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Those of the module whose place it takes."""
        yield from self._buffers_of_ddp(*args, **kwargs)

    def forward(self) -> torch.Tensor:
        """0, as a function of the parameters."""
        return torch.stack([(parameter.flatten()[:1] * 0.0).sum().float() for parameter in self._touched]).sum()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a model's output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
