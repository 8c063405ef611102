"""``lrrunner -m``: Hydra's sweepers expand the grid, and a launcher of ours runs it as a batch. No torch.

Hydra takes a launcher only from below ``hydra_plugins``. :func:`register_launcher` puts ours there when it is needed,
so that the package needs no second top-level folder.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lrrunner.batch import ledger
from lrrunner.batch.scheduler import Batch, BatchJob, Slot, new_slots
from lrrunner.batch.state import (
    LOCK_FILE,
    SALT_BYTES,
    STATE_FILE,
    batch_lock,
    job_key,
    read_state,
    unique_keys,
    update_state,
)
from lrrunner.batch.summary_run import batch_state, connected, finish_summary_run, start_summary_run, write_summary
from lrrunner.batch.summary_table import terminal_table
from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import compose_job, expand_grid, override_key, unescaped_override
from lrrunner.config.schema import Config, LaunchConfig, RunConfig, TrackingConfig, register_schema
from lrrunner.config.serialization import to_plain
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.launch.machine_checks import machine_errors
from lrrunner.results.run_state import RunState
from lrrunner.system import exit_codes
from lrrunner.system.atomic_files import write_text
from lrrunner.system.devices import usable_cores, visible_gpus
from lrrunner.system.interrupt_counter import InterruptCounter
from lrrunner.system.job_log import JobLog, wake_loggers
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import shown_path, write_line
from lrrunner.version import __version__

PLUGIN_MODULE = "hydra_plugins.lrrunner_launcher"
WHOLE_BATCH = ("run.dir", "run.resume", "launch.concurrent")
"""Overrides that concern the batch, not a job of it."""

OURS = {
    "hydra.sweep.dir": "give run.dir=...",
    "hydra.sweep.subdir": "leave it out",
    "hydra.launcher": "leave it out, or choose submitit_slurm",
    "hydra.sweeper": "leave it out",
}

DIRECTORY_RESOLVER = "lrrunner_batch"
"""Gives Hydra the batch directory: written as an override, a path with quotes or ${} in it would need two escapes."""

MAX_SHOWN_POINTS = 3

logger = logging.getLogger(__name__)

RunJobs = Callable[[Sequence[Sequence[str]], int], None]


def run_grid(command_line: CommandLine) -> int:
    """Run every point of a grid.

    Args:
        command_line: Its overrides hold Hydra's sweeps.

    Returns:
        Exit code: 0 all jobs ran to their end, 1 some failed, 128 + signal.

    Raises:
        ConfigError: the grid, or a point of it, is wrong; nothing has been started.
    """
    from lrrunner.slurm import submitit_launcher

    overrides, options = command_line.overrides, command_line.options
    if submitit_launcher.uses_submitit(overrides):
        return submitit_launcher.run_with_submitit(command_line)
    _refuse_ours(overrides)
    points = expand_grid(command_line)
    configs = checked_points(points, command_line, gpus=visible_gpus(os.environ))
    directory = batch_directory(configs[0].run)
    redactor = Redactor.for_run(list(map(to_plain, configs)), os.environ, overrides)
    tracking = configs[0].tracking
    known = {tuple(point): config for point, config in zip(points, configs, strict=True)}

    def jobs_of(job_overrides: Sequence[Sequence[str]], first_number: int) -> list[BatchJob]:
        found = [
            known.get(tuple(point)) or compose_job(command_line.with_overrides(point), world_size=None)
            for point in job_overrides
        ]
        bare = _batch_jobs(job_overrides, found, directory, command_line, first_number=first_number)
        return _with_keys(bare, salt=state["salt"], earlier=jobs)

    jobs: list[BatchJob] = []
    failures: list[Exception] = []
    slots = _slots([config.launch for config in configs])
    key = "run.dir" if configs[0].run.resume is None else "run.resume"
    with (
        exclusive_batch(directory, key),
        JobLog(redactor),
        InterruptCounter() as interrupts,
        Batch(directory, slots) as batch,
    ):
        write_line(f"{len(points)} jobs in {directory}")
        state = update_state(
            directory,
            lrrunner=__version__,
            salt=read_state(directory).get("salt") or secrets.token_hex(SALT_BYTES),
            num_jobs=len(points),
            state=RunState.RUNNING,
        )
        batch.warm_up(jobs_of(points, 0))
        command = redactor.text(shlex.join(["lrrunner", "-m", *options, *overrides]))
        earlier = state.get("mlflow_run_id")
        page = start_summary_run(directory, tracking, command=command, redactor=redactor, run_id=earlier)
        if page is not None:
            batch.tags = {"mlflow.parentRunId": page}

        def run_jobs(job_overrides: Sequence[Sequence[str]], first_number: int) -> None:
            wake_loggers()
            mask(directory / "multirun.yaml", redactor)
            new = jobs_of(job_overrides, first_number)
            jobs.extend(new)
            try:
                batch.run(new, interrupts)
            except Exception as error:  # noqa: BLE001 - Hydra would show its own traceback, with secrets in it
                failures.append(error)

        try:
            _run_with_our_launcher(overrides, options, directory, run_jobs)
        except SystemExit as error:  # how Hydra ends after a failure, of which it has told
            failures.append(RuntimeError(f"Hydra ended with exit code {error.code}"))
        finally:
            batch.dismiss()
            mask(directory / "multirun.yaml", redactor)
            entries = _entries(directory, jobs)
            ended = batch_state(entries, num_jobs=len(points), interrupted=bool(interrupts.count))
            update_state(directory, state=ended)
            where = _report(directory, entries, tracking, redactor, ended)
        write_line(f"batch: {shown_path(directory)}{where}")
        for failure in failures:
            logger.info("the batch failed", exc_info=failure)
            words = " ".join(str(failure).split())
            write_line(redactor.text(f"lrrunner: the batch failed: {type(failure).__name__}: {words}"), sys.stderr)
    if interrupts.count:
        return interrupts.exit_code
    return exit_codes.OK if not failures and ended == RunState.FINISHED else exit_codes.FAILED


def _refuse_ours(overrides: Sequence[str]) -> None:
    errors = [
        f"{found} must be left to lrrunner in a batch, got {word}; {hint}"
        for word in overrides
        for key, hint in OURS.items()
        if (found := override_key(word)) == key or found.startswith(f"{key}.")
    ]
    if errors:
        raise ConfigError(errors)


def _slots(launches: Sequence[LaunchConfig]) -> list[Slot]:
    """Places for sets, each large enough for the largest job."""
    return new_slots(
        launches[0].concurrent,
        num_processes=max(launch.num_processes or 1 for launch in launches),
        gpus=visible_gpus(os.environ),
        cores=usable_cores(),
    )


def _report(
    directory: Path, entries: Sequence[ledger.Entry], tracking: TrackingConfig, redactor: Redactor, ended: RunState
) -> str:
    """CsvTable, pictures and page.

    Returns:
        Where the page is, in words.
    """
    pictures: list[Path] = []
    try:
        pictures = write_summary(directory, entries) if entries else []
    except Exception as error:  # noqa: BLE001 - a picture that cannot be drawn must not cost the table and the page
        logger.warning("the summary failed (%s: %s)", type(error).__name__, redactor.text(str(error)))
    if entries:
        write_line(f"\n{terminal_table(entries)}")
    state = read_state(directory)
    run_id = state.get("mlflow_run_id")
    run = connected(tracking, redactor) if run_id is not None else None
    if run is None or run_id is None:
        return ""
    run.run_id = run_id
    try:
        finish_summary_run(directory, entries, pictures, run=run, run_id=run_id, state=ended, command=state["command"])
    except Exception as error:  # noqa: BLE001 - as above
        logger.warning("the batch's page failed (%s: %s)", type(error).__name__, redactor.text(str(error)))
        run.set_status(ended.mlflow_status)
    return f"   mlflow: {run.location()}"


class BatchLauncher(Launcher):
    """Hands the jobs of Hydra's sweeper to the batch that runs in this process."""

    run_jobs: RunJobs | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing of Hydra's is needed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; failures are the batch's to tell, so none is one for Hydra."""
        run_jobs = type(self).run_jobs
        assert run_jobs is not None
        run_jobs(job_overrides, initial_job_idx)
        return [JobReturn(overrides=list(words), status=JobStatus.COMPLETED) for words in job_overrides]


def register_launcher() -> None:
    """Make ``hydra/launcher=lrrunner`` known."""
    try:
        package = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        package = ModuleType("hydra_plugins")
        package.__path__ = []
        sys.modules["hydra_plugins"] = package
    module = ModuleType(PLUGIN_MODULE)
    name = PLUGIN_MODULE.rpartition(".")[2]
    plugin = type(BatchLauncher.__name__, (BatchLauncher,), {"__module__": PLUGIN_MODULE})
    setattr(module, plugin.__name__, plugin)
    setattr(package, name, module)
    sys.modules[PLUGIN_MODULE] = module
    Plugins.instance().register(plugin)
    target = {"_target_": f"{PLUGIN_MODULE}.{plugin.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name="lrrunner", node=target, provider="lrrunner")


def _run_with_our_launcher(
    overrides: Sequence[str], options: Sequence[str], directory: Path, run_jobs: RunJobs
) -> None:
    register_launcher()
    BatchLauncher.run_jobs = run_jobs
    OmegaConf.register_new_resolver(DIRECTORY_RESOLVER, lambda: str(directory), replace=True)
    sweep = [f"hydra.sweep.dir=${{{DIRECTORY_RESOLVER}:}}", "hydra.sweep.subdir=${hydra.job.num}"]
    where = ["hydra/launcher=lrrunner", *sweep]
    try:
        let_hydra_run([*options, *overrides, *where], _nothing)
    finally:
        BatchLauncher.run_jobs = None


def let_hydra_run(words: Sequence[str], job: TaskFunction) -> None:
    """Hydra's own multirun.

    Args:
        words: Its flags and overrides.
        job: What a launcher of Hydra's calls with the configuration of each point.

    Raises:
        SystemExit: a job failed; Hydra has said how.
    """
    register_schema()
    old_argv, sys.argv = sys.argv, ["lrrunner", "--multirun", *words]
    try:
        hydra.main(config_path="pkg://lrrunner.conf", config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = old_argv


def _nothing(cfg: DictConfig) -> None:
    """Jobs are run by the launcher."""


def checked_points(
    points: Sequence[Sequence[str]], command_line: CommandLine, *, gpus: tuple[str, ...]
) -> list[Config]:
    """Stage A of every point; what is wrong with one is told with its overrides, what is wrong with all only once.

    Args:
        points: Overrides of each.
        command_line: Names the configuration directory and the primary configuration.
        gpus: Those of the machine that runs the jobs; empty where it has none, or is another one.

    Raises:
        ConfigError: all errors of all points.
    """
    configs: list[Config] = []
    errors: dict[str, list[str]] = {}
    labels = _labels(points)
    for label, point in zip(labels, points, strict=True):
        try:
            config = compose_job(command_line.with_overrides(point), world_size=None)
        except ConfigError as error:
            for message in error.errors:
                errors.setdefault(message, []).append(label)
            continue
        configs.append(config)
        for message in machine_errors(config.launch, gpus):
            errors.setdefault(message, []).append(label)
    for key in WHOLE_BATCH:
        if len({attrgetter(key)(config) for config in configs}) > 1:
            errors[f"{key} must be one value for the whole batch, got several; give one"] = labels
    if errors:
        raise ConfigError(
            message if len(where) == len(points) else f"{message} (in {_listed(where)})"
            for message, where in errors.items()
        )
    return configs


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - MAX_SHOWN_POINTS
    shown = ", and in ".join(f"job {label!r}" if label else "the job" for label in labels[:MAX_SHOWN_POINTS])
    return f"{shown}, and {more} more" if more > 0 else shown


def _labels(points: Sequence[Sequence[str]]) -> list[str]:
    """For each point, the overrides that not all points have."""
    common = set(points[0]).intersection(*points) if points else set()
    return [" ".join(unescaped_override(word) for word in point if word not in common) for point in points]


def batch_directory(run: RunConfig) -> Path:
    """Where the batch lives: a new directory, or the one to go on in."""
    resume = run.resume
    if resume is not None:
        if not any((Path(resume) / name).exists() for name in (STATE_FILE, ledger.FILE_NAME)):
            raise ConfigError(
                [f"run.resume must name a batch directory, got {resume}; leave it out to begin a new one"]
            )
        return Path(resume).resolve()
    name = f"batch-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    directory = Path(run.dir or Path("runs") / name).resolve()
    if (directory / STATE_FILE).exists() or (directory / ledger.FILE_NAME).exists():
        raise ConfigError([f"run.dir must not hold a batch yet, got {directory}; go on with run.resume={directory}"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in directory.iterdir() if path.name != LOCK_FILE)
    except OSError as error:
        raise ConfigError(
            [f"run.dir must be a writable directory, got {directory} ({error.strerror}); choose another directory"]
        ) from None
    if others:
        raise ConfigError(
            [
                f"run.dir must be new or empty for a batch, got {directory} with {others[0]} in it; "
                "choose another directory"
            ]
        )
    return directory


@contextmanager
def exclusive_batch(directory: Path, key: str) -> Iterator[None]:
    """Two batches in one directory would run everything twice."""
    with ExitStack() as stack:
        try:
            stack.enter_context(batch_lock(directory))
        except BlockingIOError:
            raise ConfigError(
                [
                    f"{key} must name a directory where no batch is running, got {directory}; wait for its end, "
                    f"then go on with run.resume={directory}"
                ]
            ) from None
        yield


def _batch_jobs(
    points: Sequence[Sequence[str]],
    configs: Sequence[Config],
    directory: Path,
    command_line: CommandLine,
    *,
    first_number: int,
) -> list[BatchJob]:
    jobs = []
    for number, (label, point, config) in enumerate(
        zip(_labels(points), points, configs, strict=True), start=first_number
    ):
        own = [unescaped_override(word) for word in point if not is_for_the_batch(word)]
        run = replace(config.run, dir=str(directory / f"{number:03d}"), resume=None)
        own_config = replace(config, run=run, launch=replace(config.launch, concurrent=1))
        job = Job(config=own_config, command_line=command_line.with_overrides(own))
        jobs.append(BatchJob(number=number, label=label or " ".join(own), job=job, key=""))
    return jobs


def _with_keys(jobs: Sequence[BatchJob], *, salt: str, earlier: Sequence[BatchJob]) -> list[BatchJob]:
    """The jobs with their names in the ledger."""
    keys = unique_keys([job_key(job.job.config, salt=salt) for job in jobs], earlier=[job.key for job in earlier])
    return [replace(job, key=key) for job, key in zip(jobs, keys, strict=True)]


def is_for_the_batch(word: str) -> bool:
    """Whether an override concerns the batch, not a job of it."""
    key = word.partition("=")[0].lstrip("+~")
    return key in WHOLE_BATCH or key.partition("/")[0].partition(".")[0] == "hydra"


def _entries(directory: Path, jobs: Sequence[BatchJob]) -> list[ledger.Entry]:
    known = ledger.latest(ledger.read(directory))
    found = [(job, known[job.key]) for job in jobs if job.key in known]
    return [replace(entry, job=job.number, overrides=job.overrides) for job, entry in found]


def mask(path: Path, redactor: Redactor) -> None:
    """Hydra writes its own record of the batch; secrets must not stay in it."""
    with suppress(OSError):
        text = path.read_text(encoding="utf-8")
        write_text(path, redactor.text(text))
