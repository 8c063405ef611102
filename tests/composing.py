"""Configurations for tests, as a command line gives them."""

from __future__ import annotations

from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import compose_job
from lrrunner.config.schema import Config


def composed(*arguments: str, world_size: int | None = 1) -> Config:
    """The configuration of ``lrrunner <arguments>``."""
    return compose_job(parse_command_line(arguments), world_size=world_size)
