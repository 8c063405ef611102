"""Stage A of validation: names, ranges and divisibility of a composed configuration. No torch.

A message names field, rule, value and next move; all errors are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lrrunner.config.command_line import launch_command
from lrrunner.config.key_names import known_part
from lrrunner.config.limits import count_errors, lr_errors, path_errors
from lrrunner.config.schema import (
    BUDGET_SWEEPS,
    LEAST_BUDGET_STEPS,
    Config,
    ConfirmConfig,
    DataLoaderConfig,
    LaunchConfig,
    Monitor,
    RunConfig,
    SuggestionConfig,
    SweepConfig,
    TrackingConfig,
    TrainConfig,
)
from lrrunner.core.batch_plan import nearest_global_batch_sizes
from lrrunner.core.suggestion_rules import RULES
from lrrunner.errors import ConfigError
from lrrunner.system.plain_values import from_plain

MAX_TIMEOUT_S = 1e6
"""Eleven days; torch and MLflow accept no much larger number of seconds."""

MIN_BUDGET_STEPS = 10
"""Fewer steps allow no confirmation run that could be compared."""

MAX_TRAINING_STEPS = 10**9
"""Longer than any training, and within the integers of every store."""

MIN_EVALUATIONS = 20
"""The range rule takes its reference from the first ten points; as many more remain to stop on."""

FSDP_NEEDS_RANKS = "train.fsdp must be false on 1 rank, got true; start several ranks with launch.num_processes=2, say"

FSDP_HIDES_NOISE = (
    "sweep.noise_scale must be false under train.fsdp, where no rank sees its own gradient, got true; use DDP"
)

TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

OTHER_TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "tensorboard", "trackio", "wandb")
"""Trackers that Accelerate wraps, but MLflow."""


def validated(values: Mapping[str, Any], *, world_size: int | None) -> Config:
    """The typed configuration, once its names, ranges and divisibility are right.

    Args:
        values: Composed and resolved configuration.
        world_size: Number of ranks that share a global batch; None: ``launch.num_processes`` are to be started.

    Raises:
        ConfigError: all errors at once.
    """
    errors: list[str] = []
    config = from_plain(Config, known_part(values, Config, prefix="", errors=errors))
    errors += [
        *_component_errors(config),
        *sweep_errors(config.sweep),
        *_launch_errors(config.launch),
        *confirm_errors(config.confirm),
        *suggestion_errors(config.suggestion),
        *step_errors(config.train),
        *training_errors(config.train),
        *_world_errors(config, world_size or max(1, config.launch.num_processes or 1)),
        *count_errors("data.", config.data),
        *path_errors("data.root", config.data.root),
        *_dataloader_errors(config.data.dataloader),
        *_tracking_errors(config.tracking),
        *_run_errors(config.run),
    ]
    if errors:
        raise ConfigError(errors)
    return config


def _component_errors(config: Config) -> Iterator[str]:
    required = {
        "model": config.model,
        "objective": config.objective,
        "optimizer": config.optimizer,
        "data.train": config.data.train,
    }
    optional = {
        "data.val": config.data.val,
        "data.sampler": config.data.sampler,
        "data.collate_fn": config.data.collate_fn,
        "loss": config.loss,
        "optimizer_groups": config.optimizer_groups,
    }
    given = {name: component for name, component in optional.items() if component is not None}
    for name, component in (required | given).items():
        if not isinstance(component, Mapping) or not isinstance(component.get("_target_"), str):
            example = f"{name}._target_=package.module.Name"
            yield f"{name} must be a mapping with a _target_, got {component!r}; give {example}"
    if isinstance(config.objective, Mapping) and config.objective.get("criterion", "") is None:
        yield "loss must be given for an objective with a criterion, got null; leave it out, or use another objective"
    if config.sweep.monitor == Monitor.val and config.data.val is None:
        yield "sweep.monitor must be train without data.val, got val; give data.val._target_=..., or leave it at train"
    if isinstance(config.optimizer, Mapping) and "lr" in config.optimizer:
        yield from _base_lr_errors(config.optimizer["lr"])


def _base_lr_errors(lr: Any) -> Iterator[str]:
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        yield f"optimizer.lr must be a number above 0, got {lr!r}; try 1e-3"
    else:
        yield from lr_errors("optimizer.lr", lr)


def sweep_errors(sweep: SweepConfig) -> Iterator[str]:
    """Errors of the section ``sweep``."""
    yield from _lr_range_errors(sweep)
    if sweep.num_steps < 2:
        yield f"sweep.num_steps must be at least 2, got {sweep.num_steps}; try 100"
    if not 0 <= sweep.smoothing < 1:
        yield f"sweep.smoothing must lie in [0, 1), got {sweep.smoothing:g}; try 0.9"
    lowest = 1 if sweep.stop_rule.value == "ratio" else 0
    if not sweep.diverge_factor > lowest:
        yield (
            f"sweep.diverge_factor must be above {lowest} for stop_rule={sweep.stop_rule.value}, "
            f"got {sweep.diverge_factor:g}; try {4 if lowest else 2}"
        )
    if sweep.repeats < 1:
        yield f"sweep.repeats must be at least 1, got {sweep.repeats}; try 1"
    if sweep.seed < 0:
        yield f"sweep.seed must be 0 or above, got {sweep.seed}; try 0"
    yield from _val_monitor_errors(sweep)
    yield from count_errors("sweep.", sweep)


def _lr_range_errors(sweep: SweepConfig) -> Iterator[str]:
    for name, value in (("start_lr", sweep.start_lr), ("end_lr", sweep.end_lr)):
        if not math.isfinite(value):
            yield f"sweep.{name} must be finite, got {value}; the defaults are 1e-7 and 10"
    if sweep.start_lr <= 0:
        yield f"sweep.start_lr must be above 0, got {sweep.start_lr:g}; try 1e-7"
    if math.isfinite(sweep.end_lr) and sweep.end_lr <= sweep.start_lr:
        yield f"sweep.end_lr must exceed sweep.start_lr={sweep.start_lr:g}, got {sweep.end_lr:g}; raise sweep.end_lr"
    if sweep.end_lr > sweep.start_lr > 0 and math.isinf(sweep.end_lr / sweep.start_lr) and math.isfinite(sweep.end_lr):
        yield f"sweep.end_lr / sweep.start_lr must be finite, got {sweep.end_lr:g} / {sweep.start_lr:g}; narrow it"
    elif math.isfinite(sweep.start_lr) and math.isfinite(sweep.end_lr):
        yield from lr_errors("sweep.start_lr", sweep.start_lr)
        yield from lr_errors("sweep.end_lr", sweep.end_lr)


def _val_monitor_errors(sweep: SweepConfig) -> Iterator[str]:
    largest = max(1, sweep.num_steps // MIN_EVALUATIONS)
    if not 1 <= sweep.val_every <= largest:
        yield (
            f"sweep.val_every must lie between 1 and {largest}, so that sweep.num_steps={sweep.num_steps} gives "
            f"{MIN_EVALUATIONS} evaluations to stop by, got {sweep.val_every}; try 1"
        )
    if sweep.val_batches < 1:
        yield f"sweep.val_batches must be at least 1, got {sweep.val_batches}; try 2"


def suggestion_errors(suggestion: SuggestionConfig) -> Iterator[str]:
    """Errors of the section ``suggestion``."""
    if suggestion.method not in RULES:
        yield f"suggestion.method must be one of {', '.join(RULES)}; got {suggestion.method}"


def step_errors(train: TrainConfig) -> Iterator[str]:
    """Errors of the section ``train`` that do not depend on the number of ranks."""
    if train.max_grad_norm is not None and not train.max_grad_norm > 0:
        yield f"train.max_grad_norm must be above 0, got {train.max_grad_norm:g}; null turns clipping off"
    if train.accumulation_steps < 1:
        yield f"train.accumulation_steps must be at least 1, got {train.accumulation_steps}; try 1"
    yield from count_errors("train.", train)


def training_errors(train: TrainConfig) -> Iterator[str]:
    """Errors of the training's length and schedule."""
    length, warmup = train.num_steps, train.warmup_steps
    if length is not None and not 1 <= length <= MAX_TRAINING_STEPS:
        yield (
            f"train.num_steps must lie between 1 and {MAX_TRAINING_STEPS}, got {length}; null is a training of unknown "
            "length"
        )
    elif length is not None and warmup >= length:
        yield f"train.warmup_steps must be below train.num_steps={length}, got {warmup}; warm up for fewer steps"
    if not 0 <= warmup <= MAX_TRAINING_STEPS:
        yield f"train.warmup_steps must lie between 0 and {MAX_TRAINING_STEPS}, got {warmup}; 0 is no warm-up"


def _launch_errors(launch: LaunchConfig) -> Iterator[str]:
    if launch.num_processes is not None and launch.num_processes < 1:
        yield f"launch.num_processes must be at least 1, got {launch.num_processes}; give the number of ranks"
    if launch.concurrent < 1:
        yield f"launch.concurrent must be at least 1, got {launch.concurrent}; try 1"
    if not 0 < launch.timeout_s < MAX_TIMEOUT_S:
        yield f"launch.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {launch.timeout_s:g}; try 1800"
    yield from count_errors("launch.", launch)
    yield from path_errors("launch.config_file", launch.config_file)


def confirm_errors(confirm: ConfirmConfig) -> Iterator[str]:
    """Errors of the section ``confirm``."""
    if confirm.budget_steps is not None and confirm.budget_steps < MIN_BUDGET_STEPS:
        yield (
            f"confirm.budget_steps must be at least {MIN_BUDGET_STEPS}, got {confirm.budget_steps}; "
            f"null takes {BUDGET_SWEEPS} x sweep.num_steps x sweep.repeats, at least {LEAST_BUDGET_STEPS}"
        )
    yield from count_errors("confirm.", confirm)


def _world_errors(config: Config, world_size: int) -> Iterator[str]:
    """Values that the number of ranks leaves wrong."""
    train, claimed = config.train, config.launch.num_processes
    if claimed is not None and claimed >= 1 and claimed != world_size:
        command = launch_command([], num_processes=max(2, claimed), on_cpu=True)
        yield (
            f"launch.num_processes must equal the {world_size} rank(s) that were started, got {claimed}; "
            f"start them with accelerate, on a CPU so: {command}"
        )
    if train.fsdp and world_size == 1:
        yield FSDP_NEEDS_RANKS
    elif train.fsdp and config.sweep.noise_scale:
        yield FSDP_HIDES_NOISE
    yield from _global_batch_errors(config.data.global_batch_size, train.accumulation_steps, world_size)
    if train.ddp.static_graph and world_size > 1 and train.accumulation_steps > 1:
        yield (
            "train.ddp.static_graph must be false with several accumulation steps (DDP fails on both), got true; "
            "leave it out"
        )
    if config.sweep.noise_scale and (error := noise_scale_error(train, world_size=world_size)):
        yield error


def noise_scale_error(train: TrainConfig, *, world_size: int) -> str:
    """Why a noise scale cannot be measured; empty where it can."""
    if world_size * train.accumulation_steps > 1:
        return ""
    return (
        "sweep.noise_scale compares gradients of several ranks or accumulation steps, got 1 rank x 1 accumulation "
        "step; set train.accumulation_steps=2 or start more ranks"
    )


def _global_batch_errors(batch: int, accumulation_steps: int, world_size: int) -> Iterator[str]:
    if batch < 1:
        yield f"data.global_batch_size must be at least 1, got {batch}; try 64"
    elif accumulation_steps >= 1 and batch % (parts := world_size * accumulation_steps):
        nearest = " or ".join(map(str, nearest_global_batch_sizes(batch, parts=parts)))
        yield (
            f"data.global_batch_size must be divisible by {world_size} ranks x {accumulation_steps} "
            f"accumulation steps = {parts}, got {batch}; use {nearest}"
        )


def _dataloader_errors(loader: DataLoaderConfig) -> Iterator[str]:
    if loader.prefetch_factor is not None and loader.prefetch_factor < 1:
        yield f"data.dataloader.prefetch_factor must be at least 1, got {loader.prefetch_factor}; null is torch's own"
    if loader.num_workers < 0:
        yield f"data.dataloader.num_workers must be 0 or above, got {loader.num_workers}; try 0"
    if loader.num_workers == 0 and (loader.persistent_workers or loader.prefetch_factor is not None):
        yield (
            "data.dataloader.persistent_workers and prefetch_factor need data.dataloader.num_workers above 0, got 0; "
            "raise num_workers"
        )
    yield from count_errors("data.dataloader.", loader)


def _tracking_errors(tracking: TrackingConfig) -> Iterator[str]:
    if tracking.enabled:
        yield from _uri_errors(tracking.uri)
    if not 0 < tracking.timeout_s < MAX_TIMEOUT_S:
        yield f"tracking.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {tracking.timeout_s:g}; try 10"
    for name in tracking.also:
        if name not in OTHER_TRACKERS:
            yield f"tracking.also must name trackers of {', '.join(OTHER_TRACKERS)}; got {name}"
    if tracking.enabled and not tracking.experiment.strip():
        yield "tracking.experiment must have a name, got nothing; the default is lrrunner"


def _uri_errors(uri: str) -> Iterator[str]:
    scheme, _, rest = uri.partition(":")
    if scheme.partition("+")[0] not in TRACKING_SCHEMES:
        yield (
            f"tracking.uri must start with one of {', '.join(TRACKING_SCHEMES)}; got {uri}; "
            "the default is sqlite:///mlflow.db"
        )
        return
    start = "///" if scheme == "sqlite" else "//"
    is_complete = rest.startswith(start) and len(rest) > len(start)
    if not is_complete and uri != "databricks":
        yield f"tracking.uri must have the form {scheme}:{start}..., got {uri}; the default is sqlite:///mlflow.db"
    elif scheme == "sqlite":
        yield from path_errors("tracking.uri", rest.removeprefix(start))


def _run_errors(run: RunConfig) -> Iterator[str]:
    yield from path_errors("run.dir", run.dir)
    yield from path_errors("run.resume", run.resume)
    if not 0 < run.timeout_s < MAX_TIMEOUT_S:
        yield f"run.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {run.timeout_s:g}; try 300"
    every_s = run.checkpoint_every_s
    if not 0 <= every_s < MAX_TIMEOUT_S:
        yield f"run.checkpoint_every_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {every_s:g}; try 60"
