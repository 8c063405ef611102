"""The command line as data: overrides, Hydra's flags, and command lines as text. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

OPTIONS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn")
MULTIRUN = ("--multirun", "-m")
PLAIN_RUN = ("--run", "-r")
UNSUPPORTED = ("--config-path", "-cp", "--package", "-p", "--experimental-rerun")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """Arguments sorted into Hydra's flags and overrides.

    Attributes:
        overrides: Everything that is no flag.
        config_dir: Value of ``--config-dir``.
        config_name: Value of ``--config-name``.
        multirun: Whether a grid was asked for.
        hydra_flags: Flags that Hydra answers itself (help, info, the configuration, completion).
        unsupported: Flags of Hydra that have no meaning here.
    """

    overrides: tuple[str, ...]
    config_dir: str | None
    config_name: str
    multirun: bool
    hydra_flags: tuple[str, ...]
    unsupported: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """The flags that a repeated run needs."""
        directory = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        return directory + ([] if self.config_name == "config" else ["--config-name", self.config_name])


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Sort arguments.

    >>> parse_command_line(["-cd", "my_conf", "model=cnn"]).overrides
    ('model=cnn',)
    """
    overrides: list[str] = []
    values: dict[str, str] = {}
    multirun, flags, unsupported = False, [], []
    words = iter(arguments)
    for word in words:
        name, sign, value = word.partition("=")
        if word in PLAIN_RUN:
            continue
        if name in OPTIONS_WITH_VALUE:
            values[name] = value if sign else next(words, "")
        elif word in MULTIRUN:
            multirun = True
        elif name in UNSUPPORTED:
            unsupported.append(name)
        elif word.startswith("-"):
            flags.append(word)
        else:
            overrides.append(word)
    return CommandLine(
        overrides=tuple(overrides),
        config_dir=values.get("--config-dir", values.get("-cd")),
        config_name=values.get("--config-name", values.get("-cn", "config")),
        multirun=multirun,
        hydra_flags=tuple(flags),
        unsupported=tuple(unsupported),
    )


def launch_command(words: Sequence[str], *, num_processes: int, on_cpu: bool) -> str:
    """The command line that runs a sweep on ``num_processes`` ranks.

    On a CPU, ``accelerate launch`` starts several ranks only with ``--multi_gpu`` and ACCELERATE_USE_CPU together.

    >>> launch_command(["model=cnn"], num_processes=2, on_cpu=True)
    'ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m lrrunner model=cnn'
    >>> launch_command(["model=cnn"], num_processes=1, on_cpu=True)
    'lrrunner model=cnn'
    """
    command = shlex.join(["lrrunner", *words])
    if num_processes == 1:
        return command
    switch = "ACCELERATE_USE_CPU=1 " if on_cpu else ""
    return f"{switch}accelerate launch --multi_gpu --num_processes {num_processes} -m {command}"
