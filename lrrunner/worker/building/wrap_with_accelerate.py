"""Wrap the components of a job for the world, with Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel

from lrrunner.config.schema import Config
from lrrunner.library.arguments.model_wrappers import no_sync, uncompiled
from lrrunner.system.environment import USE_FSDP_VARIABLE
from lrrunner.training import fsdp
from lrrunner.training.state.loss_modules import loss_modules
from lrrunner.training.trainable import Trainable, to_device
from lrrunner.worker.building.build import Components
from lrrunner.worker.building.execution_settings import ExecutionSettings


def make_accelerator(job: Config, settings: ExecutionSettings, *, on_cpu: bool) -> Accelerator:
    """The accelerator of one job; free it with ``free_memory``."""
    with _fsdp_switch_hidden():
        return Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if settings.mixed_precision == "fp32" else settings.mixed_precision,
            dynamo_backend=settings.dynamo_backend,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=job.train.ddp.find_unused_parameters,
                    static_graph=job.train.ddp.static_graph,
                )
            ],
        )


def make_trainable(
    job: Config, components: Components, settings: ExecutionSettings, accelerator: Accelerator
) -> Trainable:
    """The components, the model compiled and wrapped in DDP where the settings and the world ask for it."""
    # evaluation_mode leaves out DDP only; with device_placement given, Accelerate does not import DTensor to choose it
    model = accelerator.prepare_model(
        components.model, device_placement=not settings.fsdp, evaluation_mode=settings.fsdp
    )
    inner, world_size = uncompiled(model), accelerator.num_processes
    if settings.fsdp:
        assert fsdp.is_fsdp_module(inner), type(model)
    else:
        assert world_size == 1 or isinstance(inner, DistributedDataParallel), type(model)
    return Trainable(
        model=model,
        optimizer=components.optimizer,
        objective=components.objective,
        micro_batch_size=job.data.global_batch_size // (world_size * job.train.accumulation_steps),
        accumulation_steps=job.train.accumulation_steps,
        max_grad_norm=job.train.max_grad_norm,
        eval_mode=job.train.eval_mode,
        scaler=accelerator.scaler,
        autocast=nullcontext if settings.mixed_precision == "fp32" else accelerator.autocast,
        no_sync=no_sync(accelerator, model),
        to_device=to_device(accelerator.device),
        loss_modules=loss_modules(components.objective, model),
    )


@contextmanager
def _fsdp_switch_hidden() -> Iterator[None]:
    """Hide the launcher's FSDP switch from Accelerate, which would shard by itself on GPUs and never on CPUs.

    No argument of ``Accelerator`` switches it off.
    """
    value = os.environ.pop(USE_FSDP_VARIABLE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[USE_FSDP_VARIABLE] = value
