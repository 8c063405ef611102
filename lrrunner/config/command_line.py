"""The parsed command line, and commands as text. Standard library only."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lrrunner.system.output.terminal import labelled_line

DEFAULT_CONFIG_NAME = "config"
OPTIONS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn")
MULTIRUN = ("--multirun", "-m")
QUIET = ("--quiet", "-q")
PLAIN_RUN = ("--run", "-r")
HYDRA_FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--info", "-i"),
    *("--shell-completion", "-sc"),
)
"""Flags that Hydra, or our help, answers."""
UNSUPPORTED = ("--config-path", "-cp", "--package", "-p", "--experimental-rerun")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """Arguments of one ``lrrunner`` command.

    Attributes:
        overrides: Every argument that is no flag.
        config_dir: Value of ``--config-dir``.
        config_name: Value of ``--config-name``.
        multirun: Whether ``-m`` asks for a grid.
        quiet: Whether ``-q`` asks for no progress.
        hydra_flags: Flags that Hydra answers itself (help, info, the configuration, completion).
        unsupported: Hydra's flags that lrrunner refuses.
        unknown: Flags that nobody knows.
    """

    overrides: tuple[str, ...] = ()
    config_dir: str | None = None
    config_name: str = DEFAULT_CONFIG_NAME
    multirun: bool = False
    quiet: bool = False
    hydra_flags: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """The flags that a repeated run needs."""
        directory = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        return directory + ([] if self.config_name == DEFAULT_CONFIG_NAME else ["--config-name", self.config_name])

    @property
    def arguments(self) -> list[str]:
        """The arguments that repeat one job."""
        return [*self.options, *self.overrides]

    def with_overrides(self, overrides: Iterable[str]) -> CommandLine:
        """The same command with other overrides."""
        return replace(self, overrides=tuple(overrides))


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Sort arguments into flags and overrides.

    >>> parse_command_line(["-cd", "my_conf", "model=cnn"]).overrides
    ('model=cnn',)
    """
    overrides: list[str] = []
    values: dict[str, str] = {}
    multirun, quiet, flags, unsupported, unknown = False, False, [], [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, sign, value = argument.partition("=")
        if argument in PLAIN_RUN:
            continue
        if name in OPTIONS_WITH_VALUE:
            values[name] = value if sign else next(remaining, "")
        elif argument in MULTIRUN:
            multirun = True
        elif argument in QUIET:
            quiet = True
        elif name in UNSUPPORTED:
            unsupported.append(name)
        elif name in HYDRA_FLAGS:
            flags.append(argument)
        elif argument.startswith("-"):
            unknown.append(name)
        else:
            overrides.append(argument)
    return CommandLine(
        overrides=tuple(overrides),
        config_dir=values.get("--config-dir", values.get("-cd")),
        config_name=values.get("--config-name", values.get("-cn", DEFAULT_CONFIG_NAME)),
        multirun=multirun,
        quiet=quiet,
        hydra_flags=tuple(flags),
        unsupported=tuple(unsupported),
        unknown=tuple(unknown),
    )


def resume_command(command: str, directory: str) -> str:
    """The command that goes on with an interrupted run.

    Args:
        command: As :func:`launch_command` has made it.
        directory: The run directory.

    >>> resume_command("lrrunner model=cnn run.dir=a", "a")
    'lrrunner model=cnn run.resume=a'
    """
    resume = f"run.resume={directory}"
    try:
        words = shlex.split(command)
    except ValueError:  # a masked secret has taken a quote with it
        return f"{command} {shlex.quote(resume)}"
    return shlex.join([*(word for word in words if not word.startswith(("run.dir=", "run.resume="))), resume])


def repeat_command(command: str) -> str:
    """The command that repeats a run from its beginning, whether or not this process has resumed it.

    Args:
        command: As :func:`launch_command` has made it.

    >>> repeat_command("lrrunner model=cnn run.resume=runs/a")
    'lrrunner model=cnn'
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a masked secret has taken a quote with it
        return command
    kept = [word for word in words if not word.startswith("run.resume=")]
    return command if kept == words else shlex.join(kept)


def sync_command(directory: str) -> str:
    """The command that uploads to MLflow what a store that did not answer has missed.

    >>> sync_command("runs/a b")
    "lrrunner-sync 'runs/a b'"
    """
    return shlex.join(["lrrunner-sync", directory])


def interrupted_start_lines(command: str) -> list[str]:
    """The last lines on standard output of a command that a signal has ended before its first step.

    Args:
        command: As :func:`launch_command` has made it.

    >>> interrupted_start_lines("lrrunner model=cnn")[1]
    'start again:  lrrunner model=cnn'
    >>> interrupted_start_lines("lrrunner model=cnn run.resume=runs/a")[1]
    'go on with:   lrrunner model=cnn run.resume=runs/a'
    """
    is_resumed = any(word.strip("'\"").startswith("run.resume=") for word in command.split())
    nothing = "nothing new is recorded" if is_resumed else "nothing is recorded"
    return [
        labelled_line("interrupted", f"before the first step; {nothing}"),
        labelled_line("go on with" if is_resumed else "start again", command),
    ]


def unknown_flag_message(flag: str) -> str:
    """The error for a flag that nobody knows.

    >>> unknown_flag_message("--confg-dir")
    '--confg-dir is not an option; did you mean --config-dir?'
    """
    known = (*OPTIONS_WITH_VALUE, *MULTIRUN, *QUIET, *HYDRA_FLAGS)
    close = difflib.get_close_matches(flag, [name for name in known if name.startswith("--")], n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else "keys are written without dashes; see lrrunner --help"
    return f"{flag} is not an option; {hint}"


def launch_command(arguments: Sequence[str], *, num_processes: int, on_cpu: bool) -> str:
    """The command that runs a sweep on ``num_processes`` ranks, as text.

    On a CPU, ``accelerate launch`` starts several ranks only with ``--multi_gpu`` and ACCELERATE_USE_CPU together.

    >>> launch_command(["model=cnn"], num_processes=2, on_cpu=True)
    'ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m lrrunner model=cnn'
    >>> launch_command(["model=cnn"], num_processes=1, on_cpu=True)
    'lrrunner model=cnn'
    """
    command = shlex.join(["lrrunner", *arguments])
    if num_processes == 1:
        return command
    switch = "ACCELERATE_USE_CPU=1 " if on_cpu else ""
    return f"{switch}accelerate launch --multi_gpu --num_processes {num_processes} -m {command}"
