"""The points of a grid as checked jobs. No torch."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import compose_points, override_key, unescaped_override
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.launch.machine_checks import machine_errors
from lrrunner.system.plain_values import to_plain

BATCH_KEYS = ("run.dir", "run.resume", "launch.concurrent")
"""Keys that concern the whole batch; a job's own overrides leave them out."""

UNKEYED_SECTIONS = ("tracking", "run")
UNKEYED_LAUNCH_KEYS = ("concurrent", "timeout_s")

MAX_SHOWN_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One point of the grid.

    Attributes:
        number: Its place in the grid, from 0.
        label: The overrides that tell it from the other jobs.
        short_label: The same with short keys, for narrow places.
        job: What is run.
        key: Its name in the ledger, see :func:`job_key`.
    """

    number: int
    label: str
    short_label: str
    job: Job
    key: str

    @property
    def values(self) -> str:
        """The short label without keys, for a bar."""
        return " ".join(part.partition("=")[2] or part for part in self.short_label.split(" "))

    @property
    def overrides(self) -> tuple[str, ...]:
        """As typed, secrets masked."""
        return tuple(map(self.job.redactor.text, self.job.command_line.overrides))


def checked_points(
    points: Sequence[Sequence[str]], command_line: CommandLine, *, gpus: tuple[str, ...]
) -> list[Config]:
    """The configuration of every point, after stage A.

    Args:
        points: Overrides of each point.
        command_line: Names the configuration directory and the primary configuration.
        gpus: GPUs of the machine that runs the jobs; empty where it has none, or is another machine.

    Raises:
        ConfigError: all errors of all points, each with the points that it concerns unless that is all of them.
    """
    configs: list[Config] = []
    concerned: dict[str, list[str]] = {}
    point_labels = labels(_unescaped(points))
    outcomes = compose_points(command_line, points, world_size=None)
    for label, outcome in zip(point_labels, outcomes, strict=True):
        if isinstance(outcome, ConfigError):
            messages = list(outcome.errors)
        else:
            configs.append(outcome)
            messages = machine_errors(outcome.launch, gpus)
        for message in messages:
            concerned.setdefault(message, []).append(label)
    concerned |= dict.fromkeys(_batch_key_errors(configs), point_labels)
    if concerned:
        raise ConfigError(
            message if len(where) == len(points) else f"{message} (in {_listed(where)})"
            for message, where in concerned.items()
        )
    return configs


def batch_jobs(
    points: Sequence[Sequence[str]],
    configs: Sequence[Config],
    command_line: CommandLine,
    *,
    directory: Path,
    salt: str,
) -> list[BatchJob]:
    """The jobs of a batch, each with its run directory, its label and its key.

    Args:
        points: Overrides of each point.
        configs: Their configurations.
        command_line: The command of the batch.
        directory: The batch directory.
        salt: The batch's own, see :func:`job_key`.
    """
    overrides = [job_overrides(point) for point in _unescaped(points)]
    keys = unique_keys([job_key(config, salt=salt) for config in configs])
    return [
        BatchJob(
            number=number,
            label=label,
            short_label=short_label,
            job=Job(config=_job_config(config, directory, number), command_line=command_line.with_overrides(own)),
            key=key,
        )
        for number, (config, own, label, short_label, key) in enumerate(
            zip(configs, overrides, labels(overrides), short_labels(overrides), keys, strict=True)
        )
    ]


def labels(points: Sequence[Sequence[str]]) -> list[str]:
    """For each point the overrides that not all points have; all of its overrides where that leaves none.

    >>> labels([("model=mlp", "sweep.seed=1"), ("model=cnn", "sweep.seed=1")])
    ['model=mlp', 'model=cnn']
    >>> labels([("model=mlp", "sweep.seed=1")])
    ['model=mlp sweep.seed=1']
    """
    return [" ".join(overrides) for overrides in _distinguishing(points)]


def _distinguishing(points: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    common = set(points[0]).intersection(*points) if points else set()
    return [[override for override in point if override not in common] or point for point in points]


def short_labels(points: Sequence[Sequence[str]]) -> list[str]:
    """Labels for narrow places: a key by its last part, as far as no other key of the batch ends alike.

    >>> short_labels([("optimizer=sgd", "model.width=64"), ("optimizer=sgd", "model.width=96")])
    ['width=64', 'width=96']
    >>> short_labels([("model.width=64", "head.width=8"), ("model.width=96", "head.width=9")])
    ['model.width=64 head.width=8', 'model.width=96 head.width=9']
    """
    keys = {override_key(override) for point in points for override in point}
    endings = Counter(key.rpartition(".")[2] for key in keys)

    def shortened(override: str) -> str:
        key, sign, value = override.partition("=")
        ending = key.rpartition(".")[2]
        return f"{ending}{sign}{value}" if endings[ending] == 1 else f"{key.lstrip('+')}{sign}{value}"

    return [" ".join(map(shortened, label)) for label in _distinguishing(points)]


def job_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of a job, without those of the whole batch and of Hydra itself.

    >>> job_overrides(["model=cnn", "run.dir=x", "hydra/launcher=submitit_slurm"])
    ['model=cnn']
    """
    return [override for override in overrides if not _is_for_the_batch(override)]


def job_key(config: Config, *, salt: str) -> str:
    """What a job computes, as a name that is the same in a later process.

    Sections that do not change the result do not count: where the job runs, for how long, and where it is recorded.
    Nor does the spelling of its overrides. Secrets count, but cannot be read from the key.

    Args:
        config: Configuration, secrets unmasked.
        salt: The batch's own, so that short secrets cannot be found by trying.
    """
    counted = {key: value for key, value in to_plain(config).items() if key not in UNKEYED_SECTIONS}
    counted["launch"] = {key: value for key, value in counted["launch"].items() if key not in UNKEYED_LAUNCH_KEYS}
    text = json.dumps(counted, sort_keys=True, default=str)
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()[:32]


def unique_keys(keys: Sequence[str]) -> list[str]:
    """The keys, repeated ones with a number after them: a grid may ask for one job twice.

    >>> unique_keys(["a", "b", "a"])
    ['a', 'b', 'a-2']
    """
    counts: Counter[str] = Counter()
    unique = []
    for key in keys:
        counts[key] += 1
        unique.append(key if counts[key] == 1 else f"{key}-{counts[key]}")
    return unique


def _job_config(config: Config, directory: Path, number: int) -> Config:
    """The configuration of one job, in a run directory of its own."""
    run = replace(config.run, dir=str(directory / f"{number:03d}"), resume=None)
    return replace(config, run=run, launch=replace(config.launch, concurrent=1))


def _unescaped(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """The points without the backslashes of Hydra's sweeper; points share most overrides, so each is parsed once."""
    known = {override: unescaped_override(override) for point in points for override in point}
    return [[known[override] for override in point] for point in points]


def _is_for_the_batch(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return key in BATCH_KEYS or key.partition("/")[0].partition(".")[0] == "hydra"


def _batch_key_errors(configs: Sequence[Config]) -> Iterator[str]:
    for key in BATCH_KEYS:
        if len({attrgetter(key)(config) for config in configs}) > 1:
            yield f"{key} must be one value for the whole batch, got several; give one"


def _listed(point_labels: Sequence[str]) -> str:
    more = len(point_labels) - MAX_SHOWN_POINTS
    shown = ", and in ".join(f"job {label!r}" for label in point_labels[:MAX_SHOWN_POINTS])
    return f"{shown}, and {more} more" if more > 0 else shown
