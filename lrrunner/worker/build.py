"""Stage B: from names to objects. Every error is collected, so that all ranks can agree on all of them at once."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from torch import nn
from torch.utils.data import Dataset

from lrrunner.config.schema import Config, Monitor
from lrrunner.config.validation import FSDP_HIDES_NOISE, FSDP_NEEDS_RANKS
from lrrunner.sweep.data_loading import Datasets
from lrrunner.system.environment import USE_FSDP_VARIABLE, launcher_switch_is_on
from lrrunner.training import fsdp
from lrrunner.training.optimizers import optimizer_errors
from lrrunner.training.snapshot import seed_rngs
from lrrunner.training.trainable import Objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a job is made of, before it is wrapped for the world; a model that is sharded is so already.

    ``weights_checksum`` is there where ranks must have begun with the same weights.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    datasets: Datasets
    weights_checksum: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How steps are computed, once launcher and configuration agree.

    Attributes:
        mixed_precision: "fp32", "bf16" or "fp16".
        dynamo_backend: Accelerate's name of the compiler back end, "no" for none.
        fsdp: Whether ranks share out the parameters.
        block_classes: Names of the classes that are sharded one by one, if the launcher was told any.
    """

    mixed_precision: str
    dynamo_backend: str
    fsdp: bool = False
    block_classes: tuple[str, ...] = ()


FSDP_SWITCHES = {
    "FSDP_OFFLOAD_PARAMS": ("--fsdp_offload_params", "shards stay on their device"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("--fsdp_activation_checkpointing", "use torch.utils.checkpoint in the model"),
}
"""Variables of ``accelerate launch`` that cannot be followed: their flags, and what holds instead."""


def execution_settings(
    job: Config, *, device: torch.device, errors: list[str], world_size: int = 1
) -> ExecutionSettings:
    """Precision, compiler and sharding: null inherits what the launcher was told, a contradiction is an error."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    asked = job.train.mixed_precision.value if job.train.mixed_precision else None
    precision = asked or ("fp32" if told == "no" else told)
    if asked and told not in ("no", asked):
        errors.append(
            f"train.mixed_precision must agree with accelerate launch --mixed_precision={told}, got {asked}; "
            "give one of the two, or leave train.mixed_precision=null"
        )
    if precision not in ("fp32", "bf16", "fp16"):
        errors.append(f"train.mixed_precision must be one of fp32, bf16, fp16; got {precision} from accelerate launch")
    if precision == "fp16" and device.type == "cpu":
        errors.append("train.mixed_precision must not be fp16 on a CPU, got fp16; use bf16 or fp32")
    if job.train.sync_batchnorm and device.type == "cpu":
        errors.append("train.sync_batchnorm must be false on a CPU (torch has none there), got true; set it to false")
    return ExecutionSettings(
        mixed_precision=precision,
        dynamo_backend=_dynamo_backend(job, errors),
        fsdp=_fsdp(job, world_size, errors),
        block_classes=tuple(filter(None, os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(","))),
    )


def build(
    job: Config, *, device: torch.device, errors: list[str], chosen: ExecutionSettings | None = None
) -> Components | None:
    """Instantiate every part under the common seed; None after an error.

    Args:
        job: Typed job.
        device: Where the model goes.
        errors: Takes one message per error.
        chosen: Says whether the model is sharded, which its optimizer must find done.
    """
    before = len(errors)
    seed_rngs(job.sweep.seed)
    model = _instantiate("model", job.model, errors)
    dataset = _instantiate("data.train", job.data.train, errors)
    collate_fn = _instantiate("data.collate_fn", job.data.collate_fn, errors)
    objective = _objective(job, errors)
    validation = _validation(job, errors) if job.data.val is not None else None
    optimizer = checksum = None
    if model is not None and _is_model(model, errors):
        if job.train.sync_batchnorm and device.type != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if chosen is not None and chosen.fsdp:
            checksum = _weights_checksum(model)
            _shard(model, device, chosen.block_classes, errors)
        else:
            model = model.to(device)
        optimizer = _optimizer(job, model, errors)
    else:  # what does not depend on the model is still checked, so that all mistakes come at once
        for name, part in (("optimizer", job.optimizer), ("optimizer_groups", job.optimizer_groups)):
            if part is not None:
                _target(name, {**part, "_partial_": True}, errors)
    num_samples = _num_samples(dataset, job, errors) if dataset is not None else 0
    if len(errors) > before or model is None or optimizer is None or objective is None or dataset is None:
        return None
    return Components(
        model=model,
        optimizer=optimizer,
        objective=objective,
        datasets=Datasets(train=dataset, num_samples=num_samples, validation=validation, collate_fn=collate_fn),
        weights_checksum=checksum,
    )


def _fsdp(job: Config, world_size: int, errors: list[str]) -> bool:
    """Whether to shard. The launcher's switch and names of blocks count; what cannot be followed is refused."""
    told = launcher_switch_is_on(USE_FSDP_VARIABLE)
    if told and job.train.fsdp is False:
        errors.append("train.fsdp must agree with accelerate launch --use_fsdp, got false; leave one of the two out")
        return False
    if not told and not job.train.fsdp:
        return False
    if world_size == 1:
        errors.append(FSDP_NEEDS_RANKS)
        return False
    if job.sweep.noise_scale:
        errors.append(FSDP_HIDES_NOISE)
    version = os.environ.get("FSDP_VERSION", "2") if told else "2"
    if version != "2":
        errors.append(f"train.fsdp must be version 2, got accelerate launch --fsdp_version {version}; use 2")
    for variable, (flag, instead) in FSDP_SWITCHES.items():
        if told and launcher_switch_is_on(variable):
            errors.append(f"train.fsdp must go without accelerate launch {flag}, got true; {instead}")
    for name in ("find_unused_parameters", "static_graph"):
        if getattr(job.train.ddp, name):
            errors.append(f"train.ddp.{name} must be false with train.fsdp, which has no use for it, got true; drop it")
    return True


def _shard(model: nn.Module, device: torch.device, block_classes: Sequence[str], errors: list[str]) -> None:
    try:
        fsdp.shard(model, device=device, block_classes=block_classes)
    except Exception as error:
        logger.info("the model could not be sharded", exc_info=error)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        errors.append(f"train.fsdp must be able to shard {type(model).__name__}, got: {reason}; use train.fsdp=false")


def _weights_checksum(model: nn.Module) -> int:
    """Of all initial values, in order."""
    checksum = 0
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, checksum)
    return checksum


def _dynamo_backend(job: Config, errors: list[str]) -> str:
    told = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if job.train.compile is False and told != "no":
        errors.append(
            f"train.compile must agree with accelerate launch --dynamo_backend={told}, got false; leave one out"
        )
    return "inductor" if job.train.compile and told == "no" else told


def _instantiate(name: str, part: Mapping[str, Any] | None, errors: list[str], *arguments: Any) -> Any:
    """Instantiate one part; a message instead of an exception."""
    if part is None or not _target(name, part, errors, *arguments):
        return None
    try:
        return hydra.utils.instantiate(dict(part), *arguments, _convert_="all")
    except (Exception, SystemExit) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        logger.info("%s could not be built", name, exc_info=cause)
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else "no message"
        errors.append(f"{name} could not be built: {part['_target_']} raised {type(cause).__name__}: {reason}")
        return None


def _target(name: str, part: Mapping[str, Any], errors: list[str], *arguments: Any) -> bool:
    """Whether a `_target_` can be imported and takes its arguments."""
    path = part["_target_"]
    try:
        target = hydra.utils.get_object(path)
    except (Exception, SystemExit) as error:
        cause = error.__cause__ or error
        logger.info("%s could not be imported", path, exc_info=cause)
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        errors.append(
            f"{name}._target_ must be importable, got {path} ({reason}); correct the name, or run where it is"
        )
        return False
    if not callable(target):
        errors.append(f"{name}._target_ must be a class or a function, got {path}; name something to call")
        return False
    refused = _refused_arguments(target, part, *arguments)
    if refused:
        hint = f"correct the keys of {name}"
        if name in ("objective", "data.collate_fn") and "missing a required" in refused:
            hint += f", or add {name}._partial_=true to name the function itself"
        errors.append(f"{name} must take the arguments it is given: {path} {refused}; {hint}")
    return not refused


def _refused_arguments(target: Callable[..., Any], part: Mapping[str, Any], *arguments: Any) -> str | None:
    """What a call with these arguments would raise, or None; callables without a signature are tried later."""
    keywords = {key: value for key, value in part.items() if not (key.startswith("_") and key.endswith("_"))}
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    bind = signature.bind_partial if part.get("_partial_") else signature.bind
    try:
        bind(*arguments, *part.get("_args_", ()), **keywords)
    except TypeError as error:
        return str(error)
    return None


def _objective(job: Config, errors: list[str]) -> Objective | None:
    if job.loss is not None and _instantiate("loss", job.loss, errors) is None:
        return None  # the objective holds the loss; one message is enough
    objective: Objective | None = _instantiate("objective", job.objective, errors)
    return objective


def _is_model(model: Any, errors: list[str]) -> bool:
    if not isinstance(model, nn.Module):
        errors.append(f"model must be a torch.nn.Module, got {type(model).__name__}; correct model._target_")
        return False
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        errors.append(f"model must have its parameters, got lazy ones in {type(model).__name__}; give their sizes")
        return False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        errors.append(f"model must have trainable parameters, got none in {type(model).__name__}; unfreeze some")
        return False
    return True


def _optimizer(job: Config, model: nn.Module, errors: list[str]) -> torch.optim.Optimizer | None:
    parameters: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if job.optimizer_groups is not None:
        parameters = _instantiate("optimizer_groups", job.optimizer_groups, errors, model)
        if parameters is None:
            return None
    optimizer = _instantiate("optimizer", {**job.optimizer, "_partial_": False, "_args_": [parameters]}, errors)
    if optimizer is None:
        return None
    if not isinstance(optimizer, torch.optim.Optimizer):
        errors.append(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; correct optimizer._target_"
        )
        return None
    if refused := optimizer_errors(optimizer):
        errors += refused
        return None
    return optimizer


def _validation(job: Config, errors: list[str]) -> Dataset[Any] | None:
    """The validation set, built where it is read; else only its name and arguments are checked."""
    if not job.confirm.enabled and job.sweep.monitor == Monitor.train:
        _target("data.val", job.data.val, errors)
        return None
    dataset: Dataset[Any] | None = _instantiate("data.val", job.data.val, errors)
    num_samples = 0 if dataset is None else _length("data.val", dataset, errors)
    if job.sweep.monitor == Monitor.val and 0 < num_samples < job.data.global_batch_size:
        errors.append(
            f"data.val must hold at least one global batch of {job.data.global_batch_size} samples for "
            f"sweep.monitor=val, got {num_samples}; hold out more, or lower data.global_batch_size"
        )
    return dataset


def _length(name: str, dataset: Any, errors: list[str]) -> int:
    """Samples of a dataset; a message where it has none or cannot say."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        errors.append(f"{name} must have a length and an index, got {type(dataset).__name__}; use a map-style dataset")
        return 0
    if len(dataset) == 0:
        errors.append(f"{name} must hold samples, got none; check its folder and arguments")
    return len(dataset)


def _num_samples(dataset: Any, job: Config, errors: list[str]) -> int:
    num_samples = _length("data.train", dataset, errors)
    if 0 < num_samples < job.data.global_batch_size:
        errors.append(
            f"data.train must hold at least one global batch of {job.data.global_batch_size} samples, "
            f"got {num_samples}; lower data.global_batch_size"
        )
    return num_samples
