"""How steps are computed, where the launcher and the configuration both have a say: precision, compiler, FSDP.

null in the configuration inherits the launcher's setting. A contradiction is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from lrrunner.config.schema import Config, Precision
from lrrunner.config.validation import FSDP_HIDES_NOISE, FSDP_NEEDS_RANKS
from lrrunner.system.environment import USE_FSDP_VARIABLE, launcher_switch_is_on

UNSUPPORTED_FSDP_SWITCHES = {
    "FSDP_OFFLOAD_PARAMS": ("--fsdp_offload_params", "shards stay on their device"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("--fsdp_activation_checkpointing", "use torch.utils.checkpoint in the model"),
}
"""Environment variable of ``accelerate launch`` -> its flag, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How steps are computed.

    Attributes:
        mixed_precision: "fp32", "bf16" or "fp16".
        dynamo_backend: Accelerate's name of the compiler back end, "no" for none.
        fsdp: Whether parameters are sharded over the ranks.
        block_classes: Names of the module classes that are sharded one by one, if the launcher was given any.
    """

    mixed_precision: str
    dynamo_backend: str
    fsdp: bool = False
    block_classes: tuple[str, ...] = ()


def execution_settings(
    job: Config, *, device: torch.device, errors: list[str], world_size: int = 1
) -> ExecutionSettings:
    """What the launcher's environment and the configuration agree on.

    Args:
        job: What the configuration says; null inherits.
        device: Device of this rank.
        errors: Receives one message per contradiction and per setting that cannot be used.
        world_size: Number of ranks.
    """
    precision = _mixed_precision(job, errors)
    if precision == "fp16" and device.type == "cpu":
        errors.append("train.mixed_precision must not be fp16 on a CPU, got fp16; use bf16 or fp32")
    if job.train.sync_batchnorm and device.type == "cpu":
        errors.append("train.sync_batchnorm must be false on a CPU (torch has none there), got true; set it to false")
    return ExecutionSettings(
        mixed_precision=precision,
        dynamo_backend=_dynamo_backend(job, errors),
        fsdp=_uses_fsdp(job, world_size, errors),
        block_classes=tuple(filter(None, os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(","))),
    )


def with_settings(job: Config, settings: ExecutionSettings) -> Config:
    """The configuration with the settings in place of null."""
    precision = Precision.__members__.get(settings.mixed_precision)  # others are errors by now
    train = replace(job.train, mixed_precision=precision, compile=settings.dynamo_backend != "no", fsdp=settings.fsdp)
    return replace(job, train=train)


def _mixed_precision(job: Config, errors: list[str]) -> str:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    configured = job.train.mixed_precision.value if job.train.mixed_precision else None
    if configured and launched not in ("no", configured):
        errors.append(
            f"train.mixed_precision must agree with accelerate launch --mixed_precision={launched}, got {configured}; "
            "give one of the two, or leave train.mixed_precision=null"
        )
    precision = configured or ("fp32" if launched == "no" else launched)
    if precision not in ("fp32", "bf16", "fp16"):
        errors.append(f"train.mixed_precision must be one of fp32, bf16, fp16; got {precision} from accelerate launch")
    return precision


def _dynamo_backend(job: Config, errors: list[str]) -> str:
    launched = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if job.train.compile is False and launched != "no":
        errors.append(
            f"train.compile must agree with accelerate launch --dynamo_backend={launched}, got false; leave one out"
        )
    return "inductor" if job.train.compile and launched == "no" else launched


def _uses_fsdp(job: Config, world_size: int, errors: list[str]) -> bool:
    launched = launcher_switch_is_on(USE_FSDP_VARIABLE)
    if launched and job.train.fsdp is False:
        errors.append("train.fsdp must agree with accelerate launch --use_fsdp, got false; leave one of the two out")
        return False
    if not launched and not job.train.fsdp:
        return False
    if world_size == 1:
        errors.append(FSDP_NEEDS_RANKS)
        return False
    if job.sweep.noise_scale:
        errors.append(FSDP_HIDES_NOISE)
    if launched:
        errors += _launcher_fsdp_errors()
    for name in ("find_unused_parameters", "static_graph"):
        if getattr(job.train.ddp, name):
            errors.append(f"train.ddp.{name} must be false with train.fsdp, which has no use for it, got true; drop it")
    return True


def _launcher_fsdp_errors() -> list[str]:
    """FSDP settings of the launcher that lrrunner does not support."""
    errors = []
    version = os.environ.get("FSDP_VERSION", "2")
    if version != "2":
        errors.append(f"train.fsdp must be version 2, got accelerate launch --fsdp_version {version}; use 2")
    for variable, (flag, instead) in UNSUPPORTED_FSDP_SWITCHES.items():
        if launcher_switch_is_on(variable):
            errors.append(f"train.fsdp must go without accelerate launch {flag}, got true; {instead}")
    return errors
