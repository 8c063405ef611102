"""Command line -> one typed configuration, with every error reported at once. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrrunner.config.command_line import CommandLine
from lrrunner.config.schema import Config, register_schema
from lrrunner.config.validation import unknown_key_message, validated
from lrrunner.errors import ConfigError

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def compose_job(command_line: CommandLine, *, world_size: int | None = 1) -> Config:
    """Stage A: compose, resolve and check the configuration of one job.

    Args:
        command_line: Overrides without sweeps in them, configuration directory and name.
        world_size: Number of ranks that share a global batch; None: as many as ``launch.num_processes`` says.

    Raises:
        ConfigError: every override that cannot be applied, and every value that the rest leaves wrong.
    """
    config_dir, config_name, overrides = command_line.config_dir, command_line.config_name, command_line.overrides
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError([f"--config-dir must be a directory, got {config_dir}; create it or correct the path"])
    register_schema()
    with _hydra(config_dir) as search_path:

        def attempt(overrides: Sequence[str]) -> DictConfig | Exception:
            try:
                return compose(config_name, overrides=[*search_path, *overrides])
            except COMPOSE_ERRORS as failure:
                return failure

        errors: list[str] = []
        composed = attempt(overrides)
        if isinstance(composed, Exception):
            good, errors = _applicable(attempt, overrides)
            errors = errors or [_explained(composed, "", [])]
            composed = attempt(good)
        config: Config | None = None
        if not isinstance(composed, Exception):
            try:
                config = validated(_resolved(composed), world_size=world_size)
            except ConfigError as error:
                errors += error.errors
        if errors:
            raise ConfigError(errors)
        assert config is not None
        return config


def _resolved(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values.

    Raises:
        ConfigError: an interpolation fails, or a mandatory value is missing.
    """
    try:
        values = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        message = str(error).splitlines()[0]
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
    register_schema()
    search_path = create_config_search_path("pkg://lrrunner.conf")
    if command_line.config_dir is not None:
        search_path.append("lrrunner", f"file://{Path(command_line.config_dir).resolve()}")
    parser = OverridesParser.create(config_loader=ConfigLoaderImpl(config_search_path=search_path))
    errors, parsed = [], []
    for override in command_line.overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException:
            errors.append(f"{override!r} is not an override; write key=value, and quote values with special characters")
    if errors:
        raise ConfigError(errors)
    try:
        points = [tuple(point) for point in BasicSweeper.split_arguments(parsed, None)[0]]
    except HydraException as error:
        raise ConfigError([f"the grid cannot be expanded: {error}; use lists, ranges or globs"]) from None
    if not points:
        raise ConfigError(
            [f"the grid must have a point, got none from {' '.join(command_line.overrides)}; check its globs"]
        )
    return points


def override_key(word: str) -> str:
    """The key, or group, of an override, dotted; empty where there is none.

    >>> override_key("+hydra/sweeper@hydra.sweeper=basic"), override_key("~hydra.sweep.dir"), override_key("=")
    ('hydra.sweeper', 'hydra.sweep.dir', '')
    """
    try:
        return str(OverridesParser.create().parse_override(word).key_or_group).replace("/", ".")
    except HydraException:
        return ""


def unescaped_override(word: str) -> str:
    """An override of a grid's point without the sweeper's backslashes, quoted where it must be; the value is the same.

    >>> unescaped_override("tracking.uri=http\\\\://host\\\\:5000/a")
    'tracking.uri=http://host:5000/a'
    """
    parser = OverridesParser.create()
    value = parser.parse_override(word).value()
    key = word.partition("=")[0]
    if "\\" not in word or not isinstance(value, str):
        return word
    for written in (value, f"'{value}'", f'"{value}"'):
        with suppress(HydraException):
            found = parser.parse_override(f"{key}={written}")
            if not found.is_sweep_override() and found.value() == value and isinstance(found.value(), str):
                return f"{key}={written}"
    return word


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[list[str]]:
    """Hydra's global state for the duration of one composition; yields the override that adds ``config_dir``."""
    GlobalHydra.instance().clear()
    with initialize_config_module("lrrunner.conf", version_base="1.3"):
        yield [] if config_dir is None else [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]


def _applicable(
    attempt: Callable[[Sequence[str]], DictConfig | Exception], overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Hydra stops at the first bad override; try each on its own, group choices first.

    Returns:
        The overrides that can be applied, and one message for each that cannot.
    """
    groups = [word for word in overrides if _is_group(word)]
    failures = {word: outcome for word in groups if isinstance(outcome := attempt([word]), Exception)}
    good_groups = [word for word in groups if word not in failures]
    base = attempt(good_groups)
    if isinstance(base, Exception):
        return [], [_explained(base, "", [])]
    for word in overrides:
        if word not in groups and isinstance(outcome := attempt([*good_groups, word]), Exception):
            failures[word] = outcome
    known = list(_dotted(OmegaConf.to_container(base)))
    return (
        [word for word in overrides if word not in failures],
        [_explained(failure, word, known) for word, failure in failures.items()],
    )


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _is_group(word: str) -> bool:
    loader = GlobalHydra.instance().config_loader()
    return word.partition("=")[0].lstrip("+~").partition("@")[0] in loader.list_groups("") or word.startswith("hydra/")


def _explained(error: Exception, word: str, known: list[str]) -> str:
    """One sentence for what Hydra says in several lines."""
    text = f"{error}\n{error.__cause__ or ''}"
    key, _, value = word.partition("=")
    key = key.lstrip("+~")
    if not _parses(word):
        return f"{word!r} is not an override; write key=value, and quote values with special characters"
    if options := re.search(r"Could not find '.*Available options in '[^']*':\n((?:\t[^\n]*\n?)+)", text, re.DOTALL):
        names = ", ".join(name for name in options[1].split() if not name.startswith("base_"))
        return f"{key} must be one of {names}; got {value or 'nothing'}"
    if isinstance(error, yaml.YAMLError):
        return (
            f"{word or 'the configuration'} reads a file that is not valid YAML: {' '.join(text.split())}; correct it"
        )
    if missing := re.search(r"Could not (?:find|load) '([^']*)'", text):
        return f"{word or missing[1]} names a configuration that does not exist: {missing[1]}; see lrrunner --help"
    inside = re.search(r"full_key: (\S+)", text)
    if inside and _is_group(word):
        if inside[1].partition(".")[0] == key:
            return f"{word} names a file without a package; begin it with: # @package _global_"
        return f"{unknown_key_message(inside[1], known)} (in {key}/{value})"
    if "Multiple values for" in text and word.startswith("+"):
        return f"{key} has a value already, got {word}; write it without +"
    if "is not in struct" in text or re.search(r"Key '.*' not in", text):
        return unknown_key_message(key, known)
    if not value or value == "null":
        return f"{key} must have a value, got {value or 'nothing'}; leave it out to keep the default"
    if conversion := re.search(r"could not be converted to (\w+)|is not a valid (bool)", text):
        kind = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
        name = conversion[1] or conversion[2]
        return f"{key} must be {kind.get(name, name)}, got {value}; correct the value"
    if choice := re.search(r"expected one of \[(.*)\]", text):
        return f"{key} must be one of {choice[1]}; got {value}"
    cause = (str(error.__cause__) if error.__cause__ else str(error)).splitlines()[0]
    return f"{word or 'the configuration'} cannot be applied: {cause}; see lrrunner --cfg job"


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return not word
    return True
