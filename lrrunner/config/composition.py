"""Command line -> one typed configuration, with every error reported at once. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lrrunner.config.command_line import CommandLine
from lrrunner.config.composer import Composer, parsed_override
from lrrunner.config.limits import check_grid_size, check_lengths, path_errors
from lrrunner.config.override_errors import compose_without_bad_overrides, not_an_override
from lrrunner.config.schema import Config, register_schema
from lrrunner.config.validation import validated
from lrrunner.errors import ConfigError

TARGET_KEYS = {
    "model": "model._target_",
    "data": "data.train._target_",
    "loss": "loss._target_",
    "optimizer": "optimizer._target_",
    "objective": "objective._target_",
}
"""Group -> the key that its options differ in."""


def compose_job(command_line: CommandLine, *, world_size: int | None = 1) -> Config:
    """Stage A: compose, resolve and check the configuration of one job.

    Args:
        command_line: Overrides without sweeps in them, configuration directory and name.
        world_size: Number of ranks that share a global batch; None: ``launch.num_processes`` are to be started.

    Raises:
        ConfigError: every override that cannot be applied, and every value that the rest leaves wrong.
    """
    (outcome,) = compose_points(command_line, [command_line.overrides], world_size=world_size)
    if isinstance(outcome, ConfigError):
        raise outcome
    return outcome


def compose_points(
    command_line: CommandLine, points: Iterable[Sequence[str]], *, world_size: int | None
) -> list[Config | ConfigError]:
    """Stage A for each point of a grid.

    Args:
        command_line: Configuration directory and name.
        points: Overrides of each point, without sweeps in them.
        world_size: As in :func:`compose_job`.

    Returns:
        For each point its configuration, or all of its errors.

    Raises:
        ConfigError: there is no such configuration directory, or an override is too long.
    """
    with _composer(command_line) as composer:
        return [_checked(composer, command_line.with_overrides(point), world_size) for point in points]


def check_overrides(command_line: CommandLine) -> None:
    """Check that a configuration can be composed and shown, whatever its values are.

    Raises:
        ConfigError: every override that cannot be applied.
    """
    with _composer(command_line) as composer:
        if isinstance(composer(command_line.overrides), Exception):
            raise ConfigError(compose_without_bad_overrides(composer, command_line)[1])


def _checked(composer: Composer, command_line: CommandLine, world_size: int | None) -> Config | ConfigError:
    """The configuration of one command line, or all of its errors."""
    errors: list[str] = []
    outcome = composer(command_line.overrides)
    composed = None if isinstance(outcome, Exception) else outcome
    if composed is None:
        composed, errors = compose_without_bad_overrides(composer, command_line)
    config: Config | None = None
    if composed is not None:
        try:
            config = validated(_resolved(composed, command_line.config_name), world_size=world_size)
            errors += _undone_choices(composer, command_line.overrides, composed)
        except ConfigError as error:
            errors += error.errors
    if errors:
        return ConfigError(errors)
    assert config is not None
    return config


def _undone_choices(composer: Composer, overrides: Sequence[str], composed: DictConfig) -> Iterator[str]:
    """Options of groups that a file undoes, an experiment's for example: the run would not be what it is called."""
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    for override in overrides:
        group = override.partition("=")[0]
        target_key = TARGET_KEYS.get(group)
        if target_key is None or target_key in given:
            continue
        alone = composer([override])
        chosen = None if isinstance(alone, Exception) else OmegaConf.select(alone, target_key)
        found = OmegaConf.select(composed, target_key)
        if chosen is not None and found is not None and chosen != found:
            yield (
                f"{override} has no effect, since a configuration file sets {target_key}={found} itself; leave {group} "
                f"out of that file, or give {target_key}=..."
            )


@contextmanager
def _composer(command_line: CommandLine) -> Iterator[Composer]:
    """Yields what composes the primary configuration. Hydra's own state is global; it is there within the context.

    Raises:
        ConfigError: there is no such configuration directory, or an override is too long.
    """
    check_lengths(command_line.overrides)
    config_dir = command_line.config_dir
    errors = list(path_errors("--config-dir", config_dir))
    if config_dir == "":
        errors.append("--config-dir must be followed by a directory, got nothing; name it, or leave the option out")
    if config_dir is not None and not errors and not Path(config_dir).is_dir():
        errors.append(f"--config-dir must be a directory, got {config_dir}; create it or correct the path")
    if errors:
        raise ConfigError(errors)
    register_schema()
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("lrrunner", search_path(command_line))
    try:
        yield Composer(command_line.config_name)
    finally:
        GlobalHydra.instance().clear()


def search_path(command_line: CommandLine) -> ConfigSearchPath:
    """Where Hydra looks for configurations: in ours, then in the user's own directory."""
    found = create_config_search_path("pkg://lrrunner.conf")
    if command_line.config_dir is not None:
        directory = f"file://{Path(command_line.config_dir).resolve()}"
        found.prepend("command-line", directory, SearchPathQuery(provider="schema"))
    return found


def _resolved(composed: DictConfig, config_name: str) -> dict[str, Any]:
    """The composed configuration as plain values.

    Raises:
        ConfigError: it has no schema, an interpolation fails, or a mandatory value is missing.
    """
    if OmegaConf.get_type(composed) is not Config:
        raise ConfigError(
            [
                f"--config-name must name a configuration that includes lrrunner's own, got {config_name}; "
                "begin it with: defaults: [config, _self_]"
            ]
        )
    try:
        values = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    except Exception as error:  # noqa: BLE001 - a resolver raises what it likes
        key = getattr(error, "full_key", None) or "the configuration"
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([f"{key} cannot be resolved: {message}; set the variable or give a value"]) from None
    missing = sorted(str(key) for key in OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{key} is missing; give it as {key}=..." for key in missing)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def expand_grid(command_line: CommandLine) -> list[tuple[str, ...]]:
    """The points of a grid as Hydra's basic sweeper expands it: the overrides of each job.

    Args:
        command_line: Overrides with lists, ranges and globs, and the configuration directory.

    Raises:
        ConfigError: every override that is none, or sweeps in a way that needs another sweeper.
    """
    check_lengths(command_line.overrides)
    register_schema()
    loader = ConfigLoaderImpl(config_search_path=search_path(command_line))
    parser = OverridesParser.create(config_loader=loader)
    errors, parsed = [], []
    for override in command_line.overrides:
        outcome = parsed_override(override, parser)
        if isinstance(outcome, Exception):
            errors.append(not_an_override(override))
        else:
            parsed.append(outcome)
    if errors:
        raise ConfigError(errors)
    check_grid_size(parsed)
    try:
        points = [tuple(point) for point in BasicSweeper.split_arguments(parsed, None)[0]]
    except Exception as error:  # noqa: BLE001 - Hydra's sweeper asserts, and computes with what was typed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([f"the grid cannot be expanded: {reason}; use lists, ranges or globs"]) from None
    if not points:
        raise ConfigError(
            [f"the grid must have a point, got none from {' '.join(command_line.overrides)}; check its globs"]
        )
    return points


def override_key(override: str) -> str:
    """The key, or group, of an override, dotted; empty where there is none.

    >>> override_key("+hydra/sweeper@hydra.sweeper=basic"), override_key("~hydra.sweep.dir"), override_key("=")
    ('hydra.sweeper', 'hydra.sweep.dir', '')
    """
    outcome = parsed_override(override)
    return "" if isinstance(outcome, Exception) else str(outcome.key_or_group).replace("/", ".")


def unescaped_override(override: str) -> str:
    """An override of a grid's point without the sweeper's backslashes, quoted where it must be; the value is the same.

    >>> unescaped_override("tracking.uri=http\\\\://host\\\\:5000/a")
    'tracking.uri=http://host:5000/a'
    """
    parser = OverridesParser.create()
    value = parser.parse_override(override).value()
    key = override.partition("=")[0]
    if "\\" not in override or not isinstance(value, str):
        return override
    for written in (value, f"'{value}'", f'"{value}"'):
        with suppress(HydraException):
            found = parser.parse_override(f"{key}={written}")
            if not found.is_sweep_override() and found.value() == value and isinstance(found.value(), str):
                return f"{key}={written}"
    return override
