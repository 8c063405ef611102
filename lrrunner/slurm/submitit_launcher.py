"""``lrrunner -m hydra/launcher=submitit_slurm``: a batch whose jobs are Slurm's, through submitit. No torch.

Hydra's submitit launcher queues a job for each point of the grid and waits for them. Such a job starts one ``lrrunner``
in a run directory of its own, and leaves MLflow and the summary to the process that waits, as the tasks of an array do.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lrrunner.batch import run_batch
from lrrunner.batch.state import update_state
from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import expand_grid, override_key
from lrrunner.config.serialization import to_plain
from lrrunner.errors import ConfigError
from lrrunner.results.run_state import RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.slurm import array
from lrrunner.system import exit_codes
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import write_line
from lrrunner.version import __version__

LAUNCHERS = ("submitit_slurm", "submitit_local")
PLUGIN = "hydra_plugins.hydra_submitit_launcher"

logger = logging.getLogger(__name__)


def uses_submitit(overrides: Sequence[str]) -> bool:
    """Whether one of submitit's launchers is chosen."""
    return any(override_key(word) == "hydra.launcher" and word.partition("=")[2] in LAUNCHERS for word in overrides)


def run_with_submitit(command_line: CommandLine) -> int:
    """Queue every point of a grid, wait for them, and sum them up.

    Args:
        command_line: Its overrides hold Hydra's sweeps and the launcher's own keys.

    Returns:
        Exit code: 0 all jobs ran to their end, 1 some failed.

    Raises:
        ConfigError: the grid, or a point of it, is wrong, or the launcher is not installed; nothing has been queued.
    """
    overrides, options = command_line.overrides, command_line.options
    of_launcher = [word for word in overrides if override_key(word).partition(".")[0] == "hydra"]
    of_jobs = [word for word in overrides if word not in of_launcher]
    _check_launcher(command_line.with_overrides(of_launcher))
    points = expand_grid(command_line.with_overrides(of_jobs))
    configs = run_batch.checked_points(points, command_line, gpus=())
    directory = run_batch.batch_directory(configs[0].run)
    commands = [[*options, *_of_a_job(point), "tracking.enabled=false"] for point in points]
    job = functools.update_wrapper(functools.partial(run_point, commands, directory), run_point)
    sweep = [f"hydra.sweep.dir={_quoted(directory)}", "hydra.sweep.subdir=.", "hydra.job.name=lrrunner"]
    summary = [*options, *_of_a_job(of_jobs)]
    redactor = Redactor.for_run(list(map(to_plain, configs)), os.environ, overrides)
    with run_batch.exclusive_batch(directory, "run.dir"):
        update_state(directory, lrrunner=__version__, num_jobs=len(points), state=RunState.RUNNING)
        write_line(f"{len(points)} jobs in {directory}")
        try:
            run_batch.let_hydra_run([*options, *of_jobs, *sweep, *of_launcher], job)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            logger.info("a job came to nothing", exc_info=error)
            command = redactor.text(
                shlex.join(["python", "-m", "lrrunner.slurm.array", "summary", str(directory), *summary])
            )
            write_line(
                f"lrrunner: not all jobs came to an end; once they have, sum them up with: {command}", sys.stderr
            )
            return exit_codes.FAILED
        finally:
            run_batch.mask(directory / "multirun.yaml", redactor)
        for path in directory.glob(".submitit/**/*.pkl"):  # they hold the overrides, secrets among them
            path.unlink()
        return array.summary(directory, summary)


def run_point(commands: Sequence[Sequence[str]], directory: Path, cfg: DictConfig) -> int:
    """One job of the batch, where Slurm has put it: its run begins, or goes on where the queue cut it off.

    Args:
        commands: Words of every job.
        directory: The batch's.
        cfg: Hydra's configuration, of which the job's number is read.

    Returns:
        Exit code of its ``lrrunner``; a failure is the summary's to tell.
    """
    number = HydraConfig.get().job.num
    word = run_override(directory / f"{number:03d}")
    if word is None:
        return exit_codes.OK
    return subprocess.run([sys.executable, "-m", "lrrunner", *commands[number], word], check=False).returncode


def run_override(run: Path) -> str | None:
    """``run.dir=...`` for a run that has not begun, ``run.resume=...`` for one that has, None for a finished one."""
    state = state_in(read_status(run))
    if state == RunState.FINISHED:
        return None
    return f"run.dir={_quoted(run)}" if state is None else f"run.resume={_quoted(run)}"


def _check_launcher(of_launcher: CommandLine) -> None:
    words = of_launcher.overrides
    errors = [
        f"{override_key(word)} must be left to lrrunner in a batch, got {word}; leave it out"
        for word in words
        if override_key(word).split(".")[:2] != ["hydra", "launcher"]
    ]
    if not errors and len(expand_grid(of_launcher)) > 1:
        errors.append(f"hydra.launcher must have one value for the whole batch, got {' '.join(words)}; give one")
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(PLUGIN) is None:
        errors.append(
            f"hydra.launcher needs hydra-submitit-launcher, which is not installed, got {' '.join(words)}; "
            "pip install hydra-submitit-launcher, or use scripts/submit slurm/array.sbatch"
        )
    if errors:
        raise ConfigError(errors)


def _of_a_job(words: Sequence[str]) -> list[str]:
    return [word for word in words if not run_batch.is_for_the_batch(word)]


def _quoted(path: Path) -> str:
    """A path as a value that Hydra takes for nothing but text."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"
