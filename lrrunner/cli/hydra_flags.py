"""Flags that Hydra answers (``--cfg``, ``--info``, completion), and ``--help`` and ``--version``. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from lrrunner.cli.help import print_help
from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import check_overrides
from lrrunner.config.hydra_errors import hydra_errors_raised
from lrrunner.config.schema import register_schema
from lrrunner.errors import ConfigError
from lrrunner.version import __version__

COMPLETION = ("--shell-completion", "-sc")


def answer(arguments: Sequence[str], command_line: CommandLine) -> None:
    """Print what the flags ask for.

    Args:
        arguments: Of this process.
        command_line: The same, parsed.

    Raises:
        ConfigError: an override cannot be applied, or the flags do not go together.
        SystemExit: a flag does not exist, or lacks its value.
    """
    if "--version" in command_line.hydra_flags:
        print(f"lrrunner {__version__}")
        return
    if command_line.hydra_flags[0].startswith(COMPLETION):  # of a line that is not complete
        _run_hydra(arguments)
        return
    overrides = get_args_parser().parse_intermixed_args(list(arguments)).overrides
    check_overrides(command_line.with_overrides(overrides))
    in_order = [*(argument for argument in arguments if argument not in overrides), *overrides]
    with hydra_errors_raised():
        try:
            if {"--help", "-h"}.isdisjoint(command_line.hydra_flags):
                _run_hydra(in_order)
            else:
                print_help(in_order, command_line)
        except Exception as error:  # noqa: BLE001 - Hydra raises what it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            given = " ".join(command_line.hydra_flags)
            raise ConfigError([f"{given} cannot be answered: {reason}; see lrrunner --help"]) from None


def _run_hydra(arguments: Sequence[str]) -> None:
    """Leave the flags to Hydra, which reads ``sys.argv``."""
    register_schema()
    own, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        hydra.main(config_path="pkg://lrrunner.conf", config_name="config", version_base="1.3")(_nothing)()
    finally:
        sys.argv = own


def _nothing(cfg: DictConfig) -> None:
    """Do nothing: Hydra answers its flags itself."""
