"""How the step of an optimizer responds to its LR, tried on a few small tensors instead of the model."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

TRIED_LRS = (1e-3, 1e-1, 10.0, 1000.0)

MIN_GROWTH = 1.01
"""A step that grows less than this when the LR grows a hundredfold does not depend on it."""

MAX_TRIED = 3
"""Parameters of a group that are imitated, each with another number of dimensions."""

SIDE = 4
"""Length of an imitated parameter along each dimension."""


class LrResponse(NamedTuple):
    """How the steps of an optimizer depend on its LR.

    Attributes:
        is_ignored: Whether they do not, or only the first one does.
        highest_lr: LR above which they do not; infinite for most optimizers, and where it could not be tried.
    """

    is_ignored: bool = False
    highest_lr: float = math.inf


_known: WeakKeyDictionary[torch.optim.Optimizer, LrResponse] = WeakKeyDictionary()


def lr_response(optimizer: torch.optim.Optimizer) -> LrResponse:
    """How an optimizer responds to its LR; tried once."""
    if optimizer not in _known:
        _known[optimizer] = _tried(optimizer)
    return _known[optimizer]


def _tried(optimizer: torch.optim.Optimizer) -> LrResponse:
    """Try the steps of an optimizer like this one at several LRs. Changes nothing, and draws no random numbers.

    An optimizer that cannot be imitated (one that needs its own kernels, or holds the model) counts as responding.
    """
    versions = [p._version for group in optimizer.param_groups for p in group["params"]]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = [_step_length(optimizer, lr) for lr in TRIED_LRS]
            second = [_step_length(optimizer, TRIED_LRS[0], lr) for lr in (TRIED_LRS[0], TRIED_LRS[-1])]
    except Exception:  # noqa: BLE001 - whatever a foreign optimizer raises on parameters that it does not expect
        return LrResponse()
    if versions != [p._version for group in optimizer.param_groups for p in group["params"]]:
        return LrResponse()
    return LrResponse(is_ignored=True) if not _grows(*second) else _response(first)


def _response(steps: list[float]) -> LrResponse:
    """From the lengths of steps at ``TRIED_LRS``."""
    if not all(map(math.isfinite, steps)) or not min(steps) > 0:
        return LrResponse()
    grows = [_grows(shorter, longer) for shorter, longer in itertools.pairwise(steps)]
    if not any(grows):
        return LrResponse(is_ignored=True)
    if grows[-1] or not grows[0]:
        return LrResponse()
    return LrResponse(highest_lr=float(f"{TRIED_LRS[0] * steps[-1] / steps[0]:.3g}"))


def _grows(shorter: float, longer: float) -> bool:
    """Whether a step is longer at a higher LR; also True where it cannot be seen."""
    return not (shorter > 0 and math.isfinite(longer) and longer <= MIN_GROWTH * shorter)


def _step_length(optimizer: torch.optim.Optimizer, *lrs: float) -> float:
    """Length of the last step of a small copy that steps at these LRs."""
    copied = _small_copy(optimizer)
    parameters = [parameter for group in copied.param_groups for parameter in group["params"]]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
    for lr in lrs:
        before = [parameter.double().clone() for parameter in parameters]
        for group in copied.param_groups:
            group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], torch.Tensor) else lr
        with torch.enable_grad():
            type(copied).step(copied)
    moved = [(parameter.double() - old).square().sum() for parameter, old in zip(parameters, before, strict=True)]
    return float(torch.stack(moved).sum().sqrt())


def _small_copy(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with the same settings and no state, whose parameters are small tensors."""
    memo: dict[int, Any] = {id(optimizer.state): defaultdict(dict)}
    groups = []
    for group in optimizer.param_groups:
        by_ndim = {parameter.ndim: parameter for parameter in reversed(group["params"])}
        kept = [_small(parameter) for parameter in list(by_ndim.values())[:MAX_TRIED]]
        groups.append({**{key: copy.deepcopy(value, memo) for key, value in group.items() if key != "params"}})
        groups[-1]["params"] = kept
        memo |= {id(parameter): kept[0] for parameter in group["params"]}
    attributes = {
        name: value
        for name, value in vars(optimizer).items()
        # a scheduler replaces ``step`` by a function that steps the original
        if name not in ("step", "zero_grad", "param_groups", "state") and not name.startswith("_optimizer_")
    }
    if any(isinstance(value, nn.Module | torch.Tensor) for value in attributes.values()):
        raise TypeError("a module or tensor of its own may be large")
    copied: torch.optim.Optimizer = object.__new__(type(optimizer))
    vars(copied).update(copy.deepcopy(attributes, memo))
    vars(copied).update({name: OrderedDict() for name in vars(optimizer) if name.startswith("_optimizer_")})
    copied.param_groups, copied.state = groups, defaultdict(dict)
    return copied


def _small(parameter: torch.Tensor) -> nn.Parameter:
    dtype = parameter.dtype if parameter.dtype in (torch.float32, torch.float64) else torch.float32
    return nn.Parameter(torch.zeros((SIDE,) * parameter.ndim, dtype=dtype))
