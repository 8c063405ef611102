"""Stage B: build the components of a job. Every error is collected, so that all ranks can agree on all of them."""

from __future__ import annotations

import itertools
import logging
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from lrrunner.config.schema import Config, Monitor
from lrrunner.core.batch_plan import EpochOrder, epoch_order
from lrrunner.sweep.data_loading import Datasets
from lrrunner.sweep.streams import is_stream
from lrrunner.training import fsdp
from lrrunner.training.collectives import Collective
from lrrunner.training.optimizer.optimizers import optimizer_errors
from lrrunner.training.state.snapshot import seed_rngs
from lrrunner.training.trainable import Objective
from lrrunner.worker.building.execution_settings import ExecutionSettings
from lrrunner.worker.building.instantiation import check_target, instantiate
from lrrunner.worker.building.sampler import sample_order
from lrrunner.worker.building.stream_checks import stream_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Components:
    """The components of a job, before the model is wrapped for the world.

    Attributes:
        model: On its device; sharded already under FSDP.
        optimizer: Holds the model's trainable parameters.
        objective: Computes the loss of a micro-batch.
        datasets: What is read.
        weights_checksum: Checksum of the initial weights under FSDP, which does not broadcast them; else None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    datasets: Datasets
    weights_checksum: int | None = None


MAX_TEMPORARY_FOLDER_LENGTH = 75
"""Of the 107 characters of a socket's address, the rest are the names that multiprocessing adds."""


def build(job: Config, settings: ExecutionSettings, *, device: torch.device, errors: list[str]) -> Components | None:
    """Instantiate every component under the common seed.

    Args:
        job: Describes the components.
        settings: Whether the model is sharded, which precedes its optimizer.
        device: Where the model goes.
        errors: Receives one message per error.

    Returns:
        The components; None after an error.
    """
    num_errors_before = len(errors)
    errors += _temporary_folder_errors(job, tempfile.gettempdir())
    seed_rngs(job.sweep.seed)
    model = instantiate("model", job.model, errors)
    train = instantiate("data.train", job.data.train, errors)
    collate_fn = instantiate("data.collate_fn", job.data.collate_fn, errors)
    objective = _objective(job, errors)
    validation = _validation(job, errors) if job.data.val is not None else None
    optimizer = checksum = None
    if model is not None and _is_trainable_module(model, errors):
        checksum = weights_checksum(model) if settings.fsdp else None
        model = _placed(model, job, settings, device, errors)
        optimizer = _optimizer(job, model, errors)
    else:
        _check_optimizer_target(job, errors)
    num_samples = _num_train_samples(train, job, errors) if train is not None else 0
    order = _order(job, train, errors) if num_samples != 0 else epoch_order
    if len(errors) > num_errors_before or model is None or optimizer is None or objective is None or train is None:
        return None
    return Components(
        model=model,
        optimizer=optimizer,
        objective=objective,
        datasets=Datasets(
            train=train, num_samples=num_samples, order=order, validation=validation, collate_fn=collate_fn
        ),
        weights_checksum=checksum,
    )


def weights_checksum(model: nn.Module) -> int:
    """A checksum of all parameters and buffers, in order."""
    checksum = 0
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, checksum)
    return checksum


def weight_errors(collective: Collective, checksum: int | None) -> list[str]:
    """A message if ranks would shard different models, which nothing later would show. Every rank must call this.

    Args:
        collective: The world this rank belongs to.
        checksum: Checksum of this rank's weights; None after an error.
    """
    checksums = collective.gather(checksum)
    differing = [str(rank) for rank, other in enumerate(checksums) if other != checksums[0]]
    if not differing or None in checksums:
        return []
    return [
        "model must begin with the same weights on every rank under train.fsdp, got others on rank "
        f"{', '.join(differing)}; draw them from torch's, numpy's or Python's generator, which are seeded"
    ]


def _objective(job: Config, errors: list[str]) -> Objective | None:
    if job.loss is not None and instantiate("loss", job.loss, errors) is None:
        return None  # the objective refers to the loss; one message is enough
    objective: Objective | None = instantiate("objective", job.objective, errors)
    return objective


def _validation(job: Config, errors: list[str]) -> Dataset[Any] | None:
    """The validation set where it is read; elsewhere only its target is checked."""
    if not job.confirm.enabled and job.sweep.monitor == Monitor.train:
        check_target("data.val", job.data.val, errors)
        return None
    dataset: Dataset[Any] | None = instantiate("data.val", job.data.val, errors)
    if dataset is not None and is_stream(dataset):
        least = job.data.global_batch_size if job.sweep.monitor == Monitor.val else 1
        errors += stream_errors("data.val", dataset, num_samples=least, seed=job.sweep.seed)
        return dataset
    num_samples = 0 if dataset is None else _length("data.val", dataset, errors)
    if job.sweep.monitor == Monitor.val and 0 < num_samples < job.data.global_batch_size:
        errors.append(
            f"data.val must hold at least one global batch of {job.data.global_batch_size} samples for "
            f"sweep.monitor=val, got {num_samples}; hold out more, or lower data.global_batch_size"
        )
    return dataset


def _num_train_samples(dataset: Any, job: Config, errors: list[str]) -> int | None:
    """Number of samples, 0 after an error; None for an iterable data set."""
    if is_stream(dataset):
        found = stream_errors("data.train", dataset, num_samples=job.data.global_batch_size, seed=job.sweep.seed)
        errors += found
        logger.info(
            "data.train is iterable: every rank reads all of it and keeps its share, and a resumed run reads it again "
            "up to its position; both are exact only if it gives the same samples each time"
        )
        return 0 if found else None
    num_samples = _length("data.train", dataset, errors)
    if job.data.sampler is None and 0 < num_samples < job.data.global_batch_size:
        errors.append(
            f"data.train must hold at least one global batch of {job.data.global_batch_size} samples, "
            f"got {num_samples}; lower data.global_batch_size"
        )
    return num_samples


def _order(job: Config, train: Any, errors: list[str]) -> EpochOrder:
    """The order of each epoch: a shuffle, or that of ``data.sampler``."""
    if job.data.sampler is not None and is_stream(train):
        errors.append(
            f"data.sampler must be null for an iterable data.train, whose samples have no indices, got "
            f"{job.data.sampler['_target_']}; weight the samples in the data set itself"
        )
        return epoch_order
    num_errors_before = len(errors)
    made = instantiate("data.sampler", job.data.sampler, errors, train)
    if job.data.sampler is None or len(errors) > num_errors_before:
        return epoch_order
    try:
        return sample_order(made, train, global_batch_size=job.data.global_batch_size, seed=job.sweep.seed)
    except Exception as error:
        logger.info("data.sampler cannot be used", exc_info=error)
        own = isinstance(error, ValueError) and str(error).startswith("data.sampler")
        errors.append(str(error) if own else f"data.sampler must give indices, got {type(error).__name__}: {error}")
        return epoch_order


def _length(name: str, dataset: Any, errors: list[str]) -> int:
    """Number of samples; 0 and a message for an empty dataset or one without a length."""
    if not hasattr(dataset, "__len__"):
        errors.append(
            f"{name} must have a length and an index, got {type(dataset).__name__}; give it a __len__, or make it a "
            "torch.utils.data.IterableDataset"
        )
        return 0
    if len(dataset) == 0:
        errors.append(f"{name} must hold samples, got none; check its folder and arguments")
    return len(dataset)


def _is_trainable_module(model: Any, errors: list[str]) -> bool:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        errors.append(f"model must be a torch.nn.Module, got {name}; correct model._target_")
        return False
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        errors.append(f"model must have its parameters, got lazy ones in {name}; give their sizes")
        return False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        errors.append(f"model must have trainable parameters, got none in {name}; unfreeze some")
        return False
    return True


def _temporary_folder_errors(job: Config, folder: str) -> list[str]:
    """Why workers of the data loader could not send their batches: without an address they stand still for ever."""
    if job.data.dataloader.num_workers == 0 or len(folder) <= MAX_TEMPORARY_FOLDER_LENGTH:
        return []
    return [
        f"TMPDIR must have at most {MAX_TEMPORARY_FOLDER_LENGTH} characters where data.dataloader.num_workers is "
        f"above 0, got {folder}; set TMPDIR=/tmp"
    ]


def _placed(
    model: nn.Module, job: Config, settings: ExecutionSettings, device: torch.device, errors: list[str]
) -> nn.Module:
    """The model on its device, with synchronised batch norms and sharded where the job asks for it."""
    if job.train.sync_batchnorm and device.type != "cpu":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if not settings.fsdp:
        return model.to(device)
    _shard(model, device, settings.block_classes, errors)
    return model


def _shard(model: nn.Module, device: torch.device, block_classes: Sequence[str], errors: list[str]) -> None:
    try:
        fsdp.shard(model, device=device, block_classes=block_classes)
    except Exception as error:
        logger.info("the model could not be sharded", exc_info=error)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        errors.append(f"train.fsdp must be able to shard {type(model).__name__}, got: {reason}; use train.fsdp=false")


def _optimizer(job: Config, model: nn.Module, errors: list[str]) -> torch.optim.Optimizer | None:
    parameters: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if job.optimizer_groups is not None:
        parameters = instantiate("optimizer_groups", job.optimizer_groups, errors, model)
        if parameters is None:
            return None
    optimizer = instantiate("optimizer", {**job.optimizer, "_partial_": False, "_args_": [parameters]}, errors)
    if optimizer is None:
        return None
    if not isinstance(optimizer, torch.optim.Optimizer):
        errors.append(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; correct optimizer._target_"
        )
        return None
    unusable = optimizer_errors(optimizer)
    errors += unusable
    return None if unusable else optimizer


def _check_optimizer_target(job: Config, errors: list[str]) -> None:
    """Without a model, find what errors there are in the optimizer's section."""
    for name, component in (("optimizer", job.optimizer), ("optimizer_groups", job.optimizer_groups)):
        if component is not None:
            check_target(name, {**component, "_partial_": True}, errors)
