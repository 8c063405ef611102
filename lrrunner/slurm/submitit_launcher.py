"""``lrrunner -m hydra/launcher=submitit_slurm``: a batch whose jobs Slurm runs, through submitit. No torch.

hydra-submitit-launcher is a plug-in of Hydra's multirun, so here, and only here, Hydra runs the grid: its launcher
queues a job for each point and waits for them. A job starts one ``lrrunner`` in a run directory of its own. MLflow and
the summary are left to the waiting process, as in an array.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig

from lrrunner.batch.directory import batch_directory, exclusive_batch
from lrrunner.batch.points import checked_points, job_overrides
from lrrunner.batch.state import begin
from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import expand_grid, override_key
from lrrunner.config.hydra_errors import hydra_errors_raised
from lrrunner.config.schema import register_schema
from lrrunner.errors import ConfigError
from lrrunner.results.run_state import RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.slurm import array
from lrrunner.system import exit_codes
from lrrunner.system.atomic_files import write_text
from lrrunner.system.output.error_message import error_message
from lrrunner.system.output.job_log import wake_loggers
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import counted, write_error, write_line
from lrrunner.system.plain_values import to_plain

LAUNCHERS = ("submitit_slurm", "submitit_local")
PLUGIN = "hydra_plugins.hydra_submitit_launcher"
HYDRA_RECORD = "multirun.yaml"
PICKLES = ".submitit"
"""Folder in which submitit keeps what its jobs call, with all overrides."""

logger = logging.getLogger(__name__)


def uses_submitit(overrides: Sequence[str]) -> bool:
    """Whether the overrides choose one of submitit's launchers."""
    return any(
        override_key(override) == "hydra.launcher" and override.partition("=")[2] in LAUNCHERS for override in overrides
    )


def run_with_submitit(command_line: CommandLine) -> int:
    """Queue every point of a grid, wait for the jobs, and sum them up.

    Args:
        command_line: Its overrides hold Hydra's sweeps and the launcher's own keys.

    Returns:
        Exit code: 0 all jobs ran to their end, 1 some failed.

    Raises:
        ConfigError: the grid, or a point of it, is wrong, or the launcher is not installed; nothing has been queued.
    """
    overrides = command_line.overrides
    launcher = [override for override in overrides if override_key(override).partition(".")[0] == "hydra"]
    grid = command_line.with_overrides(override for override in overrides if override not in launcher)
    _check_launcher(command_line.with_overrides(launcher))
    points = expand_grid(grid)
    configs = checked_points(points, grid, gpus=())
    directory = batch_directory(configs[0].run)
    redactor = Redactor.for_run(list(map(to_plain, configs)), os.environ, overrides)
    jobs = grid.with_overrides(job_overrides(grid.overrides))
    with exclusive_batch(directory, configs[0].run):
        begin(directory, num_jobs=len(points))
        write_line(f"{counted(len(points), 'job')} in {directory}")
        commands = [
            [*grid.with_overrides(job_overrides(point)).arguments, "tracking.enabled=false"] for point in points
        ]
        failure = _queue_and_wait(commands, [*grid.arguments, *launcher], directory, redactor)
        if failure is not None:
            command = shlex.join(["python", "-m", "lrrunner.slurm.array", "summary", str(directory), *jobs.arguments])
            write_error(
                redactor.text(
                    f"lrrunner: not all jobs could be queued, or have ended ({failure}); once they have, sum them up "
                    f"with: {command}"
                )
            )
            return exit_codes.FAILED
        return array.summarize(directory, jobs)


def run_point(commands: Sequence[Sequence[str]], directory: Path, cfg: DictConfig) -> int:
    """One job of the batch, on the node that Slurm chose: its run begins, or resumes where the queue interrupted it.

    Args:
        commands: Arguments of every job.
        directory: The batch directory.
        cfg: Hydra's configuration; unused, the number of the job is in :class:`HydraConfig`.

    Returns:
        Exit code of its ``lrrunner``; the summary reports a failure.
    """
    number = HydraConfig.get().job.num
    override = run_override(directory / f"{number:03d}")
    if override is None:
        return exit_codes.OK
    return subprocess.run([sys.executable, "-m", "lrrunner", *commands[number], override], check=False).returncode


def run_override(run: Path) -> str | None:
    """``run.dir=...`` for a run that has not begun, ``run.resume=...`` for one that has, None for a finished one."""
    state = state_in(read_status(run))
    if state == RunState.FINISHED:
        return None
    return f"run.dir={_quoted(run)}" if state is None else f"run.resume={_quoted(run)}"


def _queue_and_wait(
    commands: Sequence[Sequence[str]], arguments: Sequence[str], directory: Path, redactor: Redactor
) -> str | None:
    """Let Hydra's launcher run the jobs.

    Args:
        commands: Arguments of every job.
        arguments: Hydra's flags and overrides, those of the launcher among them.
        directory: The batch directory.
        redactor: Masks secrets in the files of Hydra and submitit.

    Returns:
        The error of Hydra or submitit, in one line; None if all jobs ended without one.
    """
    job = functools.update_wrapper(functools.partial(run_point, commands, directory), run_point)
    sweep = [f"hydra.sweep.dir={_quoted(directory)}", "hydra.sweep.subdir=.", "hydra.job.name=lrrunner"]
    _make_private(directory)
    try:
        with hydra_errors_raised():
            _hydra_multirun([*arguments, *sweep], job)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        logger.info("a job failed", exc_info=error)
        return f"{type(error).__name__}: {' '.join(error_message(error).split())}"
    finally:
        _mask(directory / HYDRA_RECORD, redactor)
    for path in directory.glob(f"{PICKLES}/**/*.pkl"):  # they hold the overrides, secrets among them
        path.unlink()
    return None


def _hydra_multirun(arguments: Sequence[str], job: TaskFunction) -> None:
    """Hydra's own multirun.

    Args:
        arguments: Its flags and overrides.
        job: What the launcher calls with the configuration of each point.

    Raises:
        SystemExit: a job failed; Hydra has reported how.
    """
    register_schema()
    old_argv, sys.argv = sys.argv, ["lrrunner", "--multirun", *arguments]
    try:
        hydra.main(config_path="pkg://lrrunner.conf", config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = old_argv
        wake_loggers()


def _make_private(directory: Path) -> None:
    """Make what holds secrets for as long as the jobs run readable by its owner alone: Hydra's record, the pickles."""
    (directory / PICKLES).mkdir(mode=0o700, exist_ok=True)
    write_text(directory / HYDRA_RECORD, "", private=True)  # Hydra writes over it, which keeps its mode


def _mask(path: Path, redactor: Redactor) -> None:
    """Hydra writes its own record of the batch; secrets must not stay in it.

    It is masked as values, not as text: YAML breaks long lines, and a secret with them.
    """
    with suppress(OSError):
        text = path.read_text(encoding="utf-8")
        try:
            masked = yaml.safe_dump(redactor.tree(yaml.safe_load(text)), sort_keys=False, width=math.inf)
        except yaml.YAMLError:
            masked = redactor.text(text)
        write_text(path, masked, private=True)


def _check_launcher(launcher: CommandLine) -> None:
    """Refuse keys of Hydra that are not the launcher's, and a launcher that is not installed."""
    text = " ".join(launcher.overrides)
    errors = [
        f"{override_key(override)} must be left to lrrunner in a batch, got {override}; leave it out"
        for override in launcher.overrides
        if override_key(override).split(".")[:2] != ["hydra", "launcher"]
    ]
    if not errors and len(expand_grid(launcher)) > 1:
        errors.append(f"hydra.launcher must have one value for the whole batch, got {text}; give one")
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(PLUGIN) is None:
        errors.append(
            f"hydra.launcher needs hydra-submitit-launcher, which is not installed, got {text}; "
            "pip install hydra-submitit-launcher, or use scripts/submit slurm/array.sbatch"
        )
    if errors:
        raise ConfigError(errors)


def _quoted(path: Path) -> str:
    """A path as a value that Hydra reads as plain text."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"
