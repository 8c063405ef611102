"""Which tensors of a model a step looks at, and their norm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training.fsdp import is_dtensor


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """L2 norm of all values of some tensors; zero-dimensional, on their device."""
    if tensors and tensors[0].device.type == "cpu":
        # half the time of torch's own, which first sorts by device and type
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
        return norm
    return torch.nn.utils.get_total_norm(tensors)


def finite_buffers(model: nn.Module) -> list[torch.Tensor]:
    """The buffers of real numbers that are finite now and should stay so: a mask of infinities is not among them."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    return [
        buffer
        for buffer in buffers
        if not (buffer.is_meta or buffer.is_sparse or is_dtensor(buffer)) and bool(buffer.isfinite().all())
    ]


def local_parameters(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Parameters that DDP leaves alone, which may then differ between ranks."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    return {
        parameter
        for wrapper in wrappers
        for name, parameter in wrapper.module.named_parameters()
        if name in wrapper.parameters_to_ignore
    }
