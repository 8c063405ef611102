"""FSDP2: each rank keeps a shard of every parameter, gradient and optimizer state. Alone in knowing DTensors.

Nothing here communicates but the model's own forward and backward passes, which gather the parameters of one block at a
time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard


def shard(model: nn.Module, *, device: torch.device, block_classes: Collection[str] = ()) -> None:
    """Keep only this rank's shard of every parameter, in place: block by block, then what is left at the root.

    The device never holds more than the shards and one block. Ranks must hold the same weights before: unlike DDP,
    nothing is broadcast. Blocks are gathered anew for the backward pass, so that between steps a model is its shards.

    Args:
        model: On the host or on ``device``.
        device: Where the shards go.
        block_classes: Names of the classes whose modules are blocks; empty: see :func:`blocks`.

    Raises:
        ValueError: no module is of such a class, or a parameter is part of two blocks.
        Exception: what torch raises on parameters that it cannot shard.
    """
    found = blocks(model, block_classes)
    if name := _shared_between(found, model):
        raise ValueError(f"the parameter {name} is shared between blocks")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in [*found, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module, classes: Collection[str] = ()) -> list[nn.Module]:
    """The repeated parts of a model that hold parameters, without parts of these.

    Those of the named classes, else of the classes that the model itself says not to split (``_no_split_modules``, as
    Hugging Face models do), else the elements of its outermost ``nn.ModuleList``s.

    Raises:
        ValueError: none is of the named classes.
    """
    found = list(_outermost(model, set(classes) or set(getattr(model, "_no_split_modules", None) or ())))
    if classes and not found:
        raise ValueError(f"no module is a {' or '.join(sorted(classes))}")
    found = found or [element for element in _elements_of_lists(model) if _has_parameters(element)]
    return list(dict.fromkeys(found))  # a block may be applied several times


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether some parameter is a shard of one."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def is_sharded_over(model: nn.Module, world_size: int) -> bool:
    """Whether FSDP2 holds every parameter, from the root down, in one shard for each of so many ranks."""
    return isinstance(model, FSDPModule) and all(
        isinstance(parameter, DTensor)
        and parameter.device_mesh.shape == (world_size,)
        and isinstance(parameter.placements[0], Shard)
        for parameter in model.parameters()
    )


def reshard(model: nn.Module) -> None:
    """Give up gathered parameters and half a pass, which an exception in forward or backward leaves behind."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if modules:
        with suppress(AttributeError):  # before the first pass, or before torch 2.13
            modules[0].reset_iter_state()
    for module in modules:
        module.reshard()


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Backward passes inside leave gradients whole and local; the next one outside reduces their sum."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


class Layout(NamedTuple):
    """How shards make up a tensor.

    Attributes:
        mesh: The ranks.
        placements: What each of them holds.
        shape: Of the whole tensor.
        stride: Of the whole tensor.
    """

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self | None:
        """That of a sharded tensor; None for any other."""
        if not isinstance(tensor, DTensor):
            return None
        return cls(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())

    def whole(self, local: torch.Tensor) -> torch.Tensor:
        """The sharded tensor that ``local`` is this rank's part of."""
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def portable(self) -> dict[str, Any]:
        """Plain values, but for the ranks.

        Raises:
            TypeError: parts that are neither shards nor copies.
        """
        if not all(isinstance(placement, Shard | Replicate) for placement in self.placements):
            raise TypeError(f"a tensor placed as {self.placements} is neither sharded nor replicated")
        dims = [placement.dim if isinstance(placement, Shard) else None for placement in self.placements]
        return {"dims": dims, "shape": list(self.shape), "stride": list(self.stride)}

    @classmethod
    def from_portable(cls, content: dict[str, Any], model: nn.Module) -> Self:
        """The layout that :meth:`portable` has written down, on the ranks that share ``model``."""
        mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
        placements = tuple(Replicate() if dim is None else Shard(dim) for dim in content["dims"])
        return cls(mesh, placements, torch.Size(content["shape"]), tuple(content["stride"]))


def _outermost(module: nn.Module, classes: set[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in classes:
            yield child
        else:
            yield from _outermost(child, classes)


def _elements_of_lists(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _elements_of_lists(child)


def _shared_between(blocks: list[nn.Module], model: nn.Module) -> str | None:
    """Name of a parameter that two blocks, or a block and what is beside the blocks, both use; None without any."""
    owners = {id(parameter): block for block in blocks for parameter in block.parameters()}
    inside = {id(module) for block in blocks for module in block.modules()}
    for block in blocks:
        for name, parameter in block.named_parameters():
            if owners[id(parameter)] is not block:
                return name
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if id(module) not in inside and id(parameter) in owners:
                return f"{path}.{name}"
    return None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
