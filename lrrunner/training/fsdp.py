"""FSDP2: each rank keeps a shard of every parameter, gradient and optimizer state. No other module knows DTensors.

Nothing here communicates; the model's own forward and backward passes gather the parameters of one block at a time.
``torch.distributed.fsdp`` takes most of a second to import. It is imported here only to shard a model: if nothing has
imported it, no tensor and no module is sharded.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeGuard

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, *, device: torch.device, block_classes: Collection[str] = ()) -> None:
    """Keep only this rank's shard of every parameter, in place: block by block, then the rest at the root.

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
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = blocks(model, block_classes)
    if name := _parameter_of_two_blocks(found, model):
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


def is_dtensor(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is sharded or replicated over ranks."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fsdp_module(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether ``fully_shard`` was applied to a module itself."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def has_fsdp1(model: nn.Module) -> bool:
    """Whether a module of a model is sharded by the first FSDP, which shards flattened parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules())


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local().detach() if is_dtensor(tensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether some parameter of a model is sharded."""
    return any(is_dtensor(parameter) for parameter in model.parameters())


def is_sharded_over(model: nn.Module, world_size: int) -> bool:
    """Whether FSDP2 holds every parameter, from the root down, in one shard for each of so many ranks."""
    parameters = list(model.parameters())
    if not is_fsdp_module(model):
        return False
    from torch.distributed.tensor import Shard

    return all(
        is_dtensor(parameter)
        and parameter.device_mesh.shape == (world_size,)
        and isinstance(parameter.placements[0], Shard)
        for parameter in parameters
    )


def reshard(model: nn.Module) -> None:
    """Free gathered parameters and end half a pass, which an exception in forward or backward leaves behind."""
    modules = [module for module in model.modules() if is_fsdp_module(module)]
    if modules:
        with suppress(AttributeError):  # before the first pass, or before torch 2.13
            modules[0].reset_iter_state()
    for module in modules:
        module.reshard()


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Backward passes inside leave gradients whole and local; the next one outside reduces their sum."""
    assert is_fsdp_module(model)
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
        """The layout of a sharded tensor; None for any other."""
        if not is_dtensor(tensor):
            return None
        return cls(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())

    def whole(self, local: torch.Tensor) -> torch.Tensor:
        """The sharded tensor whose part on this rank is ``local``."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def state_dict(self) -> dict[str, Any]:
        """The layout as plain values, without the ranks.

        Raises:
            TypeError: the tensor is neither sharded nor replicated.
        """
        from torch.distributed.tensor import Replicate, Shard

        if not all(isinstance(placement, Shard | Replicate) for placement in self.placements):
            raise TypeError(f"a tensor placed as {self.placements} is neither sharded nor replicated")
        dims = [placement.dim if isinstance(placement, Shard) else None for placement in self.placements]
        return {"dims": dims, "shape": list(self.shape), "stride": list(self.stride)}

    @classmethod
    def from_state_dict(cls, content: dict[str, Any], model: nn.Module) -> Self:
        """The layout that :meth:`state_dict` was made of, on the ranks of ``model``."""
        from torch.distributed.tensor import Replicate, Shard

        mesh = next(parameter.device_mesh for parameter in model.parameters() if is_dtensor(parameter))
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


def _parameter_of_two_blocks(blocks: list[nn.Module], model: nn.Module) -> str | None:
    """Name of a parameter that two blocks, or a block and a module outside of blocks, share; None without any."""
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
