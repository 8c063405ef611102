"""What a sweep does with many optimizers: python scripts/benchmarks/optimizers.py.

Each optimizer of torch, and of timm, transformers, bitsandbytes, torchao, schedulefree, prodigyopt, dadaptation and
lion-pytorch where they are installed, is swept on a small classifier on a CPU. Prints a Markdown table:
swept, swept with a remark, or refused, and whether the LR in the parameter groups at each step was the recorded one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrrunner

TORCH = "SGD Adam AdamW NAdam RAdam Adamax Adagrad Adadelta RMSprop Adafactor Muon Rprop ASGD SparseAdam LBFGS"

TIMM = "Lamb Lars Lion Adan MADGRAD NvNovoGrad AdaBelief Lookahead"

CANDIDATES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    *(("torch", "torch.optim", name, {}) for name in TORCH.split()),
    *(("timm", f"timm.optim.{name.lower()}", name, {}) for name in TIMM.split()),
    ("transformers", "transformers.optimization", "Adafactor", {"relative_step": False}),
    ("transformers", "transformers.optimization", "Adafactor", {"relative_step": True, "lr": None}),
    *(("bitsandbytes", "bitsandbytes.optim", name, {}) for name in ("AdamW8bit", "Lion8bit")),
    *(("torchao", "torchao.optim", name, {}) for name in ("AdamW8bit", "AdamW4bit")),
    *(("schedulefree", "schedulefree", name, {}) for name in ("AdamWScheduleFree", "SGDScheduleFree")),
    ("prodigyopt", "prodigyopt", "Prodigy", {"lr": 1.0}),
    ("dadaptation", "dadaptation", "DAdaptAdam", {"lr": 1.0}),
    ("lion-pytorch", "lion_pytorch", "Lion", {}),
)
"""(package, module, class, arguments)."""


def main() -> None:
    """Sweep, and print the table."""
    print("| package | optimizer | sweep | suggested LR | recorded = used | remark |\n|---|---|---|---|---|---|")
    for package, module, name, options in CANDIDATES:
        print(f"| {row(package, module, name, options)} |", flush=True)


def bypass_init(*packages: str) -> None:
    """Make the modules of packages importable without running what their ``__init__`` imports.

    timm imports torchvision, which often does not fit a build of torch for CPUs; its optimizers do without.
    """
    for name in packages:
        if (spec := importlib.util.find_spec(name)) is not None:
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations or ())


def row(package: str, module: str, name: str, options: dict[str, Any]) -> str:
    """One optimizer."""
    shown = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
    try:
        make = getattr(importlib.import_module(module), name)
        version = metadata.version(package)
    except Exception as error:  # noqa: BLE001 - a package that does not import on a CPU may raise anything
        return f"{package} | {shown} | not installed | | | {first_line(error)}"
    return f"{package} {version} | {shown} | {swept(make, options)}"


def swept(make: Callable[..., Any], options: dict[str, Any]) -> str:
    """What a sweep gives: the cells after the name."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] + inputs[:, 1] > 0).long()), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 2, bias=False))
    try:
        optimizer = constructed(make, model, options)
    except Exception as error:  # noqa: BLE001 - whatever a foreign optimizer raises
        return f"cannot be constructed | | | {first_line(error)}"
    used: list[float] = []
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.register_step_pre_hook(lambda own, *rest: used.append(float(own.param_groups[0]["lr"])))

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    try:
        result = lrrunner.range_test(None, model, optimizer, loader, loss_fn)
    except ValueError as error:
        return f"refused | | | {str(error).splitlines()[-1].strip(' -')}"
    except Exception as error:  # noqa: BLE001 - kernels that a CPU does not have
        return f"fails on a CPU | | | {first_line(error)}"
    recorded = [step.lr for step in result.steps]
    equal = len(used) == len(recorded) and torch.allclose(torch.tensor(used), torch.tensor(recorded), rtol=1e-6, atol=0)
    suggestion = result.suggestion
    lr = "none" if suggestion.lr is None else f"{suggestion.lr:.1e}"
    return f"{suggestion.verdict} | {lr} | {'yes' if equal else 'no'} | {suggestion.reason}"


def constructed(make: Callable[..., Any], model: nn.Module, options: dict[str, Any]) -> Any:
    """The optimizer, around another one where it needs that."""
    if make.__name__ == "Lookahead":
        return make(torch.optim.AdamW(model.parameters(), lr=1e-3))
    return make(model.parameters(), **({"lr": 1e-3} | options))


def first_line(error: Exception) -> str:
    """The error as one cell."""
    text = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {text}"[:120]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    bypass_init("timm", "timm.optim")
    main()
