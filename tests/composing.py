"""Configurations for tests, as a command line gives them."""

from __future__ import annotations

import pytest

from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import compose_job
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError


def composed(*arguments: str, world_size: int | None = 1) -> Config:
    """The configuration of ``lrrunner <arguments>``."""
    return compose_job(parse_command_line(arguments), world_size=world_size)


def errors_of(*arguments: str, world_size: int = 2) -> tuple[str, ...]:
    """The configuration errors of ``lrrunner <arguments>``."""
    with pytest.raises(ConfigError) as caught:
        composed(*arguments, world_size=world_size)
    return caught.value.errors
