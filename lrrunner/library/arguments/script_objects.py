"""The objects that a script passes to the call, and why they cannot be swept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.config.schema import Config, Monitor
from lrrunner.config.validation import noise_scale_error
from lrrunner.library.arguments.loss_function import LossFunction, loss_function_errors
from lrrunner.library.arguments.model_wrappers import uncompiled
from lrrunner.library.loaders.restarted_loader import loader_errors
from lrrunner.system.environment import USE_FSDP_VARIABLE, launcher_switch_is_on
from lrrunner.training import fsdp
from lrrunner.training.optimizer.optimizers import held_optimizer, optimizer_errors, unwrapped

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_NAMED = 3
"""Parameters that a message names."""


@dataclass(frozen=True, kw_only=True)
class ScriptObjects:
    """The objects under their argument names; not checked yet."""

    accelerator: Accelerator | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_loader: Iterable[Any]
    loss_fn: LossFunction
    val_loader: Iterable[Any] | None = None
    modules: tuple[nn.Module, ...] = ()
    scaler: torch.amp.GradScaler | None = None

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per optimizer step, as the accelerator has them."""
        return 1 if self.accelerator is None else getattr(self.accelerator, "gradient_accumulation_steps", 1)

    @property
    def active_scaler(self) -> torch.amp.GradScaler | None:
        """The caller's gradient scaler, or the accelerator's; None where it is switched off."""
        scaler = self.scaler
        if scaler is None and self.accelerator is not None:
            scaler = self.accelerator.scaler
        return scaler if scaler is not None and scaler.is_enabled() else None


def object_errors(objects: ScriptObjects, *, world_size: int, accumulation_steps: int = 1) -> list[str]:
    """Why the objects cannot be swept on so many ranks; empty where they can."""
    if errors := _gradient_errors(objects.model):
        return errors  # the checks of the optimizer try its steps
    errors = accelerator_errors(objects.accelerator)
    errors += _model_errors(objects.model, world_size=world_size)
    if not errors:
        errors += _launcher_errors(objects, world_size=world_size)
        errors += _static_graph_errors(objects.model, accumulation_steps)
    errors += _optimizer_errors(objects.optimizer, objects.model, world_size=world_size)
    errors += loader_errors(objects.train_loader)
    if objects.val_loader is not None:
        errors += loader_errors(objects.val_loader, name="val_loader")
    errors += [
        f"modules must be torch.nn.Modules, got {type(module).__name__}; give the modules that loss_fn calls"
        for module in objects.modules
        if not isinstance(module, nn.Module)
    ]
    return errors + loss_function_errors(objects.loss_fn)


def option_errors(objects: ScriptObjects, job: Config, *, world_size: int) -> list[str]:
    """Options that these objects cannot be swept with."""
    errors = []
    if job.sweep.monitor == Monitor.val and objects.val_loader is None:
        errors.append("monitor must be train without val_loader, got val; give val_loader, or leave it at train")
    if job.sweep.noise_scale and isinstance(objects.model, nn.Module) and fsdp.is_sharded(objects.model):
        errors.append(
            "noise_scale must be False for a sharded model, where no rank sees its own gradient, got True; use DDP"
        )
    elif job.sweep.noise_scale and (error := noise_scale_error(job.train, world_size=world_size)):
        errors.append(error)
    return errors


def accelerator_errors(accelerator: Any) -> list[str]:
    """Why objects that an accelerator has prepared cannot be swept; empty where they can."""
    if accelerator is None:
        return []
    if not hasattr(accelerator, "distributed_type"):
        return [f"accelerator must be an accelerate.Accelerator or None, got {type(accelerator).__name__}; give one"]
    name = str(accelerator.distributed_type).rpartition(".")[2]
    if name == "DEEPSPEED":
        return [
            "accelerator must leave the optimizer's steps to the caller, got DeepSpeed, which steps inside of "
            "backward; sweep the same global batch with DDP: the LR holds for DeepSpeed, too"
        ]
    if name in ("MEGATRON_LM", "XLA", "TP"):
        return [
            f"accelerator must train in one process, with DDP or with FSDP2, got {name}; sweep the same global batch "
            "with DDP"
        ]
    precision = str(getattr(accelerator, "mixed_precision", "no"))
    if precision not in ("no", "fp16", "bf16"):
        return [f"accelerator must compute in fp32, fp16 or bf16, got {precision}; sweep the same global batch in bf16"]
    return []


def _model_errors(model: Any, *, world_size: int) -> list[str]:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        return [f"model must be a torch.nn.Module, got {name}; give the prepared model"]
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        return [f"model must have its parameters, got lazy ones in {name}; run one batch through it first"]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [f"model must have trainable parameters, got none in {name}; unfreeze some"]
    if fsdp.is_sharded(model):
        if fsdp.is_sharded_over(uncompiled(model), world_size):
            return []
        return [
            f"model must be sharded by fully_shard(model) over all {world_size} ranks and nothing else, got {name} on "
            "another mesh; sweep the same global batch with DDP"
        ]
    if fsdp.has_fsdp1(model):
        return [f"model must be sharded with FSDP2, got FSDP1 in {name}; set fsdp_version=2"]
    if world_size > 1 and not any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return [
            f"model must be wrapped for {world_size} ranks, got {name}; give what accelerator.prepare returned, or "
            "DistributedDataParallel(model), or fully_shard(model)"
        ]
    return []


def _gradient_errors(model: Any) -> list[str]:
    """A call from where torch records no gradients."""
    if torch.is_inference_mode_enabled():
        return ["range_test must compute gradients, got torch.inference_mode(); move the call out of it"]
    if not torch.is_grad_enabled():
        return [
            "range_test must compute gradients, got torch.no_grad() or torch.set_grad_enabled(False); move the call "
            "out of it"
        ]
    parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p)] if isinstance(model, nn.Module) else []
    if any(parameter.is_inference() for parameter in parameters):
        return [
            f"model must have parameters that can be trained, got {type(model).__name__}, constructed within "
            "torch.inference_mode(); construct it outside of it"
        ]
    return []


def _static_graph_errors(model: nn.Module, accumulation_steps: int) -> list[str]:
    """DDP that fails in its first accumulated step."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if accumulation_steps == 1 or not any(wrapper.static_graph for wrapper in wrappers):
        return []
    return [
        f"model must be wrapped without static_graph for {accumulation_steps} accumulation steps (DDP fails on both), "
        "got static_graph=True; leave it out"
    ]


def _launcher_errors(objects: ScriptObjects, *, world_size: int) -> list[str]:
    """A launcher that was asked for FSDP, where Accelerate made DDP of it."""
    uses_fsdp = objects.accelerator is not None and world_size > 1 and launcher_switch_is_on(USE_FSDP_VARIABLE)
    if not uses_fsdp or fsdp.is_sharded(objects.model):
        return []
    return [
        f"model must be sharded, since accelerate launch uses FSDP, got {type(objects.model).__name__}, which "
        "Accelerate returns on CPUs; leave FSDP out, or call torch.distributed.fsdp.fully_shard(model)"
    ]


def _optimizer_errors(optimizer: Any, model: Any, *, world_size: int) -> list[str]:
    name = type(optimizer).__name__
    if isinstance(optimizer, list | tuple):
        return [
            f"optimizer must be one optimizer, got {len(optimizer)}; sweep one at a time, the parameters of the "
            "others do not change"
        ]
    if not isinstance(optimizer, torch.optim.Optimizer):
        if held_optimizer(optimizer) is None:
            return [f"optimizer must be a torch.optim.Optimizer, got {name}; give one"]
        if type(optimizer).__module__.partition(".")[0] in ("lightning", "lightning_fabric"):
            return [
                f"optimizer must be a torch.optim.Optimizer, got Fabric's {name}; give optimizer.optimizer, and the "
                "model wrapped in DistributedDataParallel by the script on several ranks"
            ]
        return [
            f"optimizer must be a torch.optim.Optimizer, got {name}, which wraps one; sweep with an optimizer that "
            "wraps no other"
        ]
    errors = optimizer_errors(unwrapped(optimizer)) + _parameter_errors(optimizer, model)
    return errors or _unreduced_parameter_errors(optimizer, model, world_size=world_size)


def _parameter_errors(optimizer: torch.optim.Optimizer, model: Any) -> list[str]:
    """An optimizer that holds parameters of something else than the model."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else held
    if not held & own:
        return ["optimizer must hold the parameters of model, got none of them; give the optimizer of this model"]
    if others := held - own:
        return [
            f"optimizer must hold parameters of model only, since only these are restored, got {len(others)} others; "
            "give a model that holds all of them, such as an nn.ModuleList, wrapped as a whole on several ranks"
        ]
    return []


def _unreduced_parameter_errors(optimizer: torch.optim.Optimizer, model: Any, *, world_size: int) -> list[str]:
    """Trained parameters beside DDP, such as a criterion's: no rank reduces them, and a norm need not show it."""
    if world_size == 1 or not isinstance(model, nn.Module) or fsdp.is_sharded(model):
        return []
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    reduced = {id(p) for wrapper in wrappers for p in wrapper.parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    names = [name for name, p in model.named_parameters() if id(p) in held - reduced]
    if not names:
        return []
    shown = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
    return [
        f"model must have all that the optimizer trains inside of DistributedDataParallel on {world_size} ranks, got "
        f"{shown} outside, which ranks would train apart; wrap the nn.ModuleList of model and criterion as a whole"
    ]
