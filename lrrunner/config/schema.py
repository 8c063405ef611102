"""The configuration: its schema, and stage A of validation. No torch.

The dataclasses below are Hydra's schema and, once resolved, the job that the ranks work on. They hold what the README
documents; parts that users name themselves (model, datasets, loss, objective, optimizer) stay plain dictionaries with a
``_target_``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrrunner.config.command_line import launch_command
from lrrunner.core.batch_plan import nearest_global_batch_sizes
from lrrunner.core.suggestion_rules import RULES
from lrrunner.errors import ConfigError

MAX_TIMEOUT_S = 1e6
"""Eleven days: what torch and MLflow still take as a number of seconds."""

BUDGET_SWEEPS = 5
"""What confirmation runs may cost unless told otherwise, in sweeps."""

MIN_BUDGET_STEPS = 10
"""Less buys no training that says anything."""

MIN_EVALUATIONS = 20
"""The range rule fixes its reference on ten points: so many evaluations leave as many more for it to stop at."""

FSDP_NEEDS_RANKS = "train.fsdp must be false on 1 rank, got true; start several ranks with launch.num_processes=2, say"

FSDP_HIDES_NOISE = (
    "sweep.noise_scale must be false under train.fsdp, where no rank sees its own gradient, got true; use DDP"
)

TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


class Precision(Enum):
    """Arithmetic of forward and backward."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SweepMode(Enum):
    """Spacing of the learning rates."""

    exponential = "exponential"
    linear = "linear"


class ScheduleName(Enum):
    """What a training does with its learning rate."""

    constant = "constant"
    cosine = "cosine"


class Monitor(Enum):
    """Which loss a sweep watches: smooths, stops on and reads its suggestion from."""

    train = "train"
    val = "val"


class StopRuleName(Enum):
    """Which divergence rule watches the smoothed loss."""

    range = "range"
    ratio = "ratio"


@dataclass(kw_only=True)
class DataLoaderConfig:
    """Arguments of ``torch.utils.data.DataLoader``; null pins memory where there is a GPU to copy it to."""

    num_workers: int = 0
    pin_memory: bool | None = None
    persistent_workers: bool = False
    prefetch_factor: int | None = None


@dataclass(kw_only=True)
class DataConfig:
    """What is trained on. ``root`` is a folder for datasets that live in files."""

    train: Any = MISSING
    val: Any = None
    collate_fn: Any = None
    root: str | None = None
    global_batch_size: int = MISSING
    dataloader: DataLoaderConfig = field(default_factory=DataLoaderConfig)


@dataclass(kw_only=True)
class SweepConfig:
    """The ladder, the loss that it is read from, the causal smoothing and the stop rule.

    With ``monitor`` val, every ``val_every``-th step from the first on is followed by an evaluation on always the same
    ``val_batches`` global batches of ``data.val``, or all there are. ``noise_scale`` measures the noise in the gradient
    beside.
    """

    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_steps: int = 100
    mode: SweepMode = SweepMode.exponential
    smoothing: float = 0.9
    stop_rule: StopRuleName = StopRuleName.range
    diverge_factor: float = 2.0
    repeats: int = 1
    seed: int = 0
    auto_range: bool = True
    monitor: Monitor = Monitor.train
    val_every: int = 1
    val_batches: int = 2
    sync_every_step: bool = False
    noise_scale: bool = False


@dataclass(kw_only=True)
class ConfirmConfig:
    """Short trainings around the sweep's suggestion. A null budget is five times the sweep's steps."""

    enabled: bool = False
    schedule: ScheduleName = ScheduleName.constant
    horizon: int | None = None
    budget_steps: int | None = None


@dataclass(kw_only=True)
class SuggestionConfig:
    """Which rule gives the suggested LR."""

    method: str = "auto"


@dataclass(kw_only=True)
class DdpConfig:
    """Arguments of ``torch.nn.parallel.DistributedDataParallel``."""

    find_unused_parameters: bool = False
    static_graph: bool = False


@dataclass(kw_only=True)
class TrainConfig:
    """How a step is trained. Null inherits what the launcher was told.

    ``fsdp`` shards parameters, gradients and optimizer state over the ranks (FSDP2) instead of copying them (DDP).
    """

    mixed_precision: Precision | None = None
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    compile: bool | None = None
    sync_batchnorm: bool = False
    fsdp: bool | None = None
    ddp: DdpConfig = field(default_factory=DdpConfig)


@dataclass(kw_only=True)
class LaunchConfig:
    """How many ranks to start or, in ranks, the number claimed; null starts and claims nothing.

    ``concurrent`` sets of ranks work side by side in a batch. A set without a sign of life for ``timeout_s`` seconds is
    ended. ``config_file`` is the user's own file of ``accelerate launch``.
    """

    num_processes: int | None = None
    concurrent: int = 1
    timeout_s: float = 1800.0
    config_file: str | None = None


@dataclass(kw_only=True)
class TrackingConfig:
    """Where people review the sweep."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "lrrunner"
    run_name: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0


@dataclass(kw_only=True)
class RunConfig:
    """Where the run or batch directory goes (null: runs/<time>-<short id>), and how long a collective may take.

    ``resume`` names the directory of a run or batch to go on with. The state of a sweep is saved every
    ``checkpoint_every_s`` seconds (0: behind every step).
    """

    dir: str | None = None
    resume: str | None = None
    checkpoint_every_s: float = 60.0
    timeout_s: float = 300.0


@dataclass(kw_only=True)
class Config:
    """A whole job."""

    model: Any = MISSING
    data: DataConfig = MISSING
    loss: Any = None
    objective: Any = MISSING
    optimizer: Any = MISSING
    optimizer_groups: Any = None
    sweep: SweepConfig = field(default_factory=SweepConfig)
    suggestion: SuggestionConfig = field(default_factory=SuggestionConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)


def register_schema() -> None:
    """Tell Hydra the schema: ``base_config`` for the root, ``base_data`` for the data group."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    store.store(group="data", name="base_data", node=DataConfig)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values.

    Raises:
        ConfigError: an interpolation fails, or a mandatory value is missing.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        message = str(error).splitlines()[0]
        raise ConfigError([f"{key} cannot be resolved: {message}; set the variable or give a value"]) from None
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{key} is missing; give it as {key}=..." for key in missing)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def config_from(container: Mapping[str, Any]) -> Config:
    """The typed job of a resolved configuration that has passed :func:`check`."""
    job = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), _as_literals(dict(container))))
    assert isinstance(job, Config)
    return job


def _as_literals(node: Any) -> Any:
    """The same values for a second resolution: what looks like an interpolation by now is text (a directory's name)."""
    if isinstance(node, dict):
        return {key: _as_literals(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_literals(value) for value in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", node)
    return node


def flattened(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as dotted keys.

    >>> flattened({"sweep": {"num_steps": 100}, "tags": []})
    {'sweep.num_steps': '100', 'tags': '[]'}
    """
    flat: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def check(container: Mapping[str, Any], *, world_size: int | None) -> None:
    """Stage A: schema, ranges, names, divisibility.

    Args:
        container: Resolved configuration.
        world_size: Number of ranks that will share a global batch; None: ``launch.num_processes`` are to be started.

    Raises:
        ConfigError: all errors at once.
    """
    errors: list[str] = []
    job = config_from(_known_part(container, Config, prefix="", errors=errors))
    errors += [
        *_part_errors(job),
        *sweep_errors(job.sweep),
        *_launch_errors(job.launch),
        *_confirm_errors(job.confirm),
        *suggestion_errors(job.suggestion),
        *step_errors(job.train),
        *_batch_errors(job, world_size or max(1, job.launch.num_processes or 1)),
        *_tracking_errors(job.tracking),
    ]
    if not 0 < job.run.timeout_s < MAX_TIMEOUT_S:
        errors.append(f"run.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {job.run.timeout_s:g}; try 300")
    every_s = job.run.checkpoint_every_s
    if not 0 <= every_s < MAX_TIMEOUT_S:
        errors.append(f"run.checkpoint_every_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {every_s:g}; try 60")
    if errors:
        raise ConfigError(errors)


def budget_steps(job: Config) -> int:
    """Optimizer steps that all confirmation runs together may take."""
    given = job.confirm.budget_steps
    return BUDGET_SWEEPS * job.sweep.num_steps if given is None else given


def batch_summary(job: Config, *, world_size: int) -> str:
    """How the global batch is shared out, as the first and the last lines of a run say it.

    For example ``2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step``.
    """
    steps = job.train.accumulation_steps
    micro = job.data.global_batch_size // (world_size * steps)
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    accumulation = "1 accumulation step" if steps == 1 else f"{steps} accumulation steps"
    return f"{ranks}, global batch {job.data.global_batch_size} = {ranks} x {micro} x {accumulation}"


FREE_SECTIONS = (
    "model",
    "loss",
    "objective",
    "optimizer",
    "optimizer_groups",
    "data.train",
    "data.val",
    "data.collate_fn",
    "tracking.tags",
)
"""Mappings whose keys are the user's."""


def unknown_key_message(key: str, known: list[str]) -> str:
    """Says that a key does not exist, and which one may have been meant or how to add one."""
    close = difflib.get_close_matches(key, [name for name in known if name != key.rpartition(".")[0]], n=1, cutoff=0.75)
    if close:
        hint = f"did you mean {close[0]}?"
    elif key.startswith(tuple(f"{name}." for name in FREE_SECTIONS)):
        hint = f"add it as +{key}=..."
    else:
        hint = "see lrrunner --cfg job for all keys"
    return f"{key} is not a configuration key; {hint}"


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys = []
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        keys.append(name)
        section = _section(item)
        if section:
            keys += known_keys(section, f"{name}.")
    return keys


def _section(item: dataclasses.Field[Any]) -> type | None:
    """The dataclass behind a field, if it is a section of the schema."""
    annotation = item.type if isinstance(item.type, type) else globals().get(str(item.type))
    return annotation if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else None


def _known_part(node: Mapping[str, Any], schema: type, *, prefix: str, errors: list[str]) -> dict[str, Any]:
    """The part of ``node`` that the schema knows; Hydra lets `+key=value` past a structured config, this does not."""
    fields = {item.name: item for item in dataclasses.fields(schema)}
    known: dict[str, Any] = {}
    for key, value in node.items():
        section = _section(fields[key]) if key in fields else None
        if key not in fields:
            errors.append(unknown_key_message(f"{prefix}{key}", known_keys()))
        elif section and isinstance(value, Mapping):
            known[key] = _known_part(value, section, prefix=f"{prefix}{key}.", errors=errors)
        else:
            known[key] = value
    return known


def _part_errors(job: Config) -> Iterator[str]:
    parts = {
        "model": job.model,
        "objective": job.objective,
        "optimizer": job.optimizer,
        "data.train": job.data.train,
    }
    optional = {
        "data.val": job.data.val,
        "data.collate_fn": job.data.collate_fn,
        "loss": job.loss,
        "optimizer_groups": job.optimizer_groups,
    }
    for name, part in (parts | {key: part for key, part in optional.items() if part is not None}).items():
        if not isinstance(part, Mapping) or not isinstance(part.get("_target_"), str):
            yield f"{name} must be a mapping with a _target_, got {part!r}; give {name}._target_=package.module.Name"
    if job.sweep.monitor == Monitor.val and job.data.val is None:
        yield "sweep.monitor must be train without data.val, got val; give data.val._target_=..., or leave it at train"
    if isinstance(job.optimizer, Mapping) and "lr" in job.optimizer:
        lr = job.optimizer["lr"]
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not (math.isfinite(lr) and lr > 0):
            yield f"optimizer.lr must be a number above 0, got {lr!r}; the sweep keeps group ratios to it"


def sweep_errors(sweep: SweepConfig) -> Iterator[str]:
    """What is wrong with a ladder."""
    for name, value in (("start_lr", sweep.start_lr), ("end_lr", sweep.end_lr)):
        if not math.isfinite(value):
            yield f"sweep.{name} must be finite, got {value}; the defaults are 1e-7 and 10"
    if sweep.start_lr <= 0:
        yield f"sweep.start_lr must be above 0, got {sweep.start_lr:g}; try 1e-7"
    if math.isfinite(sweep.end_lr) and sweep.end_lr <= sweep.start_lr:
        yield f"sweep.end_lr must exceed sweep.start_lr={sweep.start_lr:g}, got {sweep.end_lr:g}; raise sweep.end_lr"
    if sweep.end_lr > sweep.start_lr > 0 and math.isinf(sweep.end_lr / sweep.start_lr) and math.isfinite(sweep.end_lr):
        yield f"sweep.end_lr / sweep.start_lr must be finite, got {sweep.end_lr:g} / {sweep.start_lr:g}; narrow it"
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
    largest = max(1, sweep.num_steps // MIN_EVALUATIONS)
    if not 1 <= sweep.val_every <= largest:
        yield (
            f"sweep.val_every must lie between 1 and {largest}, so that sweep.num_steps={sweep.num_steps} gives "
            f"{MIN_EVALUATIONS} evaluations to stop by, got {sweep.val_every}; try 1"
        )
    if sweep.val_batches < 1:
        yield f"sweep.val_batches must be at least 1, got {sweep.val_batches}; try 2"


def suggestion_errors(suggestion: SuggestionConfig) -> Iterator[str]:
    """What is wrong with the choice of a rule."""
    if suggestion.method not in RULES:
        yield f"suggestion.method must be one of {', '.join(RULES)}; got {suggestion.method}"


def step_errors(train: TrainConfig) -> Iterator[str]:
    """What is wrong with how a step is trained."""
    if train.max_grad_norm is not None and not train.max_grad_norm > 0:
        yield f"train.max_grad_norm must be above 0, got {train.max_grad_norm:g}; null turns clipping off"
    if train.accumulation_steps < 1:
        yield f"train.accumulation_steps must be at least 1, got {train.accumulation_steps}; try 1"


def _launch_errors(launch: LaunchConfig) -> Iterator[str]:
    if launch.num_processes is not None and launch.num_processes < 1:
        yield f"launch.num_processes must be at least 1, got {launch.num_processes}; give the number of ranks"
    if launch.concurrent < 1:
        yield f"launch.concurrent must be at least 1, got {launch.concurrent}; try 1"
    if not 0 < launch.timeout_s < MAX_TIMEOUT_S:
        yield f"launch.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {launch.timeout_s:g}; try 1800"


def _confirm_errors(confirm: ConfirmConfig) -> Iterator[str]:
    if confirm.horizon is not None and confirm.horizon < 1:
        yield f"confirm.horizon must be at least 1, got {confirm.horizon}; null is a training of unknown length"
    if confirm.budget_steps is not None and confirm.budget_steps < MIN_BUDGET_STEPS:
        yield (
            f"confirm.budget_steps must be at least {MIN_BUDGET_STEPS}, got {confirm.budget_steps}; "
            f"null takes {BUDGET_SWEEPS} x sweep.num_steps"
        )


def _batch_errors(job: Config, world_size: int) -> Iterator[str]:
    train, batch, claimed = job.train, job.data.global_batch_size, job.launch.num_processes
    if claimed is not None and claimed >= 1 and claimed != world_size:
        command = launch_command([], num_processes=max(2, claimed), on_cpu=True)
        yield (
            f"launch.num_processes must equal the {world_size} rank(s) that were started, got {claimed}; "
            f"start them with accelerate, on a CPU so: {command}"
        )
    if train.fsdp and world_size == 1:
        yield FSDP_NEEDS_RANKS
    elif train.fsdp and job.sweep.noise_scale:
        yield FSDP_HIDES_NOISE
    if batch < 1:
        yield f"data.global_batch_size must be at least 1, got {batch}; try 64"
    elif train.accumulation_steps >= 1 and batch % (parts := world_size * train.accumulation_steps):
        nearest = " or ".join(map(str, nearest_global_batch_sizes(batch, parts=parts)))
        yield (
            f"data.global_batch_size must be divisible by {world_size} ranks x {train.accumulation_steps} "
            f"accumulation steps = {parts}, got {batch}; use {nearest}"
        )
    if train.ddp.static_graph and world_size > 1 and train.accumulation_steps > 1:
        yield (
            "train.ddp.static_graph must be false with several accumulation steps (DDP fails on both), got true; "
            "leave it out"
        )
    if job.sweep.noise_scale and world_size * train.accumulation_steps == 1:
        yield (
            "sweep.noise_scale compares gradients of several ranks or accumulation steps, got 1 rank x 1 accumulation "
            "step; set train.accumulation_steps=2 or start more ranks"
        )
    loader = job.data.dataloader
    if loader.prefetch_factor is not None and loader.prefetch_factor < 1:
        yield f"data.dataloader.prefetch_factor must be at least 1, got {loader.prefetch_factor}; null is torch's own"
    if loader.num_workers < 0:
        yield f"data.dataloader.num_workers must be 0 or above, got {loader.num_workers}; try 0"
    if loader.num_workers == 0 and (loader.persistent_workers or loader.prefetch_factor is not None):
        yield (
            "data.dataloader.persistent_workers and prefetch_factor need data.dataloader.num_workers above 0, got 0; "
            "raise num_workers"
        )


def _tracking_errors(tracking: TrackingConfig) -> Iterator[str]:
    scheme, _, rest = tracking.uri.partition(":")
    start = "///" if scheme == "sqlite" else "//"
    complete = rest.startswith(start) and len(rest) > len(start)
    if (
        tracking.enabled
        and scheme.partition("+")[0] in TRACKING_SCHEMES
        and not complete
        and tracking.uri != "databricks"
    ):
        yield f"tracking.uri must have the form {scheme}:{start}..., got {tracking.uri}; the default is sqlite:///mlflow.db"
    if tracking.enabled and scheme.partition("+")[0] not in TRACKING_SCHEMES:
        yield (
            f"tracking.uri must start with one of {', '.join(TRACKING_SCHEMES)}; got {tracking.uri}; "
            "the default is sqlite:///mlflow.db"
        )
    if not 0 < tracking.timeout_s < MAX_TIMEOUT_S:
        yield f"tracking.timeout_s must lie between 0 and {MAX_TIMEOUT_S:g}, got {tracking.timeout_s:g}; try 10"
    if tracking.enabled and not tracking.experiment.strip():
        yield "tracking.experiment must have a name, got nothing; the default is lrrunner"
