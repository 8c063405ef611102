"""The configuration as dataclasses. No torch.

They are Hydra's schema and, once composed, the configuration that parent and ranks work with. Components that users
name themselves (model, datasets, loss, objective, optimizer) stay mappings with a ``_target_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from lrrunner.records import Training
from lrrunner.system.output.terminal import counted

BUDGET_SWEEPS = 5
"""Default budget of the confirmation runs, in steps of the sweep and its repeats."""

LEAST_BUDGET_STEPS = 300
"""Smallest default budget: three runs of a hundred steps. Shorter ones are too unlike a training."""


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
    """LR schedule of a training, after its warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Monitor(Enum):
    """Which loss a sweep smooths, stops on and reads its suggestion from."""

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
    """Data sets and the global batch size. ``root`` is the folder of data sets that are read from files."""

    train: Any = MISSING
    val: Any = None
    sampler: Any = None
    collate_fn: Any = None
    root: str | None = None
    global_batch_size: int = MISSING
    dataloader: DataLoaderConfig = field(default_factory=DataLoaderConfig)


@dataclass(kw_only=True)
class SweepConfig:
    """LR schedule of the sweep, the loss that it monitors, the causal smoothing and the stop rule.

    With ``monitor`` val, every ``val_every``-th step, beginning with the first, is followed by an evaluation on the
    same ``val_batches`` global batches of ``data.val``, or on all of it where it has fewer. ``noise_scale`` also
    measures the gradient noise.
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
    """The training that the LR is for: how a step is computed, how many steps it takes, and its LR schedule.

    Null inherits what ``accelerate launch`` was given; for ``num_steps``, it is a length that is not known. ``fsdp``
    shards parameters, gradients and optimizer state over the ranks (FSDP2) instead of copying them (DDP).
    """

    mixed_precision: Precision | None = None
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    compile: bool | None = None
    sync_batchnorm: bool = False
    eval_mode: bool = True
    fsdp: bool | None = None
    ddp: DdpConfig = field(default_factory=DdpConfig)
    num_steps: int | None = None
    schedule: ScheduleName = ScheduleName.constant
    warmup_steps: int = 0


@dataclass(kw_only=True)
class LaunchConfig:
    """Number of ranks to start or, in ranks, the number that there must be; null starts one and checks nothing.

    ``concurrent`` worker groups run side by side in a batch. A group without a heartbeat for ``timeout_s`` seconds is
    ended. ``config_file`` is the user's own configuration file of ``accelerate launch``.
    """

    num_processes: int | None = None
    concurrent: int = 1
    timeout_s: float = 1800.0
    config_file: str | None = None


DEFAULT_EXPERIMENT = "lrrunner"
"""MLflow experiment of those who name none."""


@dataclass(kw_only=True)
class TrackingConfig:
    """The MLflow run. Store and experiment are those of MLflow's own environment variables, if these are set."""

    enabled: bool = True
    uri: str = "${oc.env:MLFLOW_TRACKING_URI,'sqlite:///mlflow.db'}"
    experiment: str = f"${{oc.env:MLFLOW_EXPERIMENT_NAME,{DEFAULT_EXPERIMENT}}}"
    run_name: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)
    timeout_s: float = 10.0


@dataclass(kw_only=True)
class RunConfig:
    """Run or batch directory (null: runs/<time>-<short id>), and the time limit of a collective.

    ``resume`` names the directory of a run or batch to resume. The state of a sweep is saved every
    ``checkpoint_every_s`` seconds (0: after every step).
    """

    dir: str | None = None
    resume: str | None = None
    checkpoint_every_s: float = 60.0
    timeout_s: float = 300.0


@dataclass(kw_only=True)
class Config:
    """Configuration of one job."""

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
    """Register the schema with Hydra: ``base_config`` for the root, ``base_data`` for the data group."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    store.store(group="data", name="base_data", node=DataConfig)


def training(config: Config) -> Training:
    """The training that the LR is for."""
    train = config.train
    return Training(num_steps=train.num_steps, schedule=train.schedule.value, warmup_steps=train.warmup_steps)


def budget_steps(config: Config) -> int:
    """Optimizer steps that all confirmation runs together may take."""
    given, sweep = config.confirm.budget_steps, config.sweep
    return max(LEAST_BUDGET_STEPS, BUDGET_SWEEPS * sweep.num_steps * sweep.repeats) if given is None else given


def batch_summary(config: Config, *, world_size: int) -> str:
    """How the global batch is split, as the first and the last lines of a run show it.

    For example ``2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step``.
    """
    steps, global_batch_size = config.train.accumulation_steps, config.data.global_batch_size
    micro_batch_size = global_batch_size // (world_size * steps)
    ranks, accumulation = counted(world_size, "rank"), counted(steps, "accumulation step")
    return f"{ranks}, global batch {global_batch_size} = {ranks} x {micro_batch_size} x {accumulation}"


def target_name(section: Mapping[str, Any]) -> str:
    """The last part of a section's ``_target_``.

    >>> target_name({"_target_": "torch.optim.AdamW"})
    'AdamW'
    """
    return str(section.get("_target_", "custom")).rpartition(".")[2]
