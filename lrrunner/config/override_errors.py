"""Which overrides cannot be applied, each with one message. No torch."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lrrunner.config.command_line import DEFAULT_CONFIG_NAME, CommandLine
from lrrunner.config.composer import parsed_override
from lrrunner.config.key_names import known_keys, unknown_key_message

Attempt = Callable[[Sequence[str]], DictConfig | Exception]
"""Composes with some overrides; returns Hydra's exception if it fails."""

LAUNCH_FILES = "accelerate"
"""Folder of conf/ whose files are for ``accelerate launch --config_file``: no group."""

TYPE_NAMES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def compose_without_bad_overrides(attempt: Attempt, command_line: CommandLine) -> tuple[DictConfig | None, list[str]]:
    """Try each override on its own, group choices first: Hydra stops at the first bad one.

    Returns:
        The configuration with the overrides that can be applied, None where there is none, and a message for each
        other override.
    """
    overrides = command_line.overrides
    groups = [override for override in overrides if _is_group(override)]
    failures = {group: outcome for group in groups if isinstance(outcome := attempt([group]), Exception)}
    good_groups = [group for group in groups if group not in failures]
    base = attempt(good_groups)
    if isinstance(base, Exception):
        primary = attempt([])
        if isinstance(primary, Exception):
            return None, [_file_error(primary, command_line)]
        return primary, [_together_error(base, good_groups)]
    for override in overrides:
        if override not in groups and isinstance(outcome := attempt([*good_groups, override]), Exception):
            failures[override] = outcome
    known = list(_dotted(OmegaConf.to_container(base)))
    errors = [_override_error(failure, override, known) for override, failure in failures.items()]
    composed = attempt([override for override in overrides if override not in failures])
    if isinstance(composed, Exception):
        return None, errors or [_together_error(composed, overrides)]
    return composed, errors


def not_an_override(override: str) -> str:
    """The message for an argument that Hydra's grammar does not have."""
    if override.endswith(".py"):
        return (
            f"{override} is a script, which lrrunner does not run; name its parts with _target_ keys, or call "
            "lrrunner.range_test in it (README.md: Your own model, In a script)"
        )
    return f"{override!r} is not an override; write key=value, and quote values with special characters"


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _is_group(override: str) -> bool:
    name = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return name in GlobalHydra.instance().config_loader().list_groups("") or override.startswith("hydra/")


def _file_error(error: Exception, command_line: CommandLine) -> str:
    """The message for a primary configuration that cannot be composed without any override."""
    text, name = _text(error), command_line.config_name
    if f"Cannot find primary config '{name}'" in text:
        create = f"create {command_line.config_dir}/{name}.yaml or correct the name"
        hint = "name its directory with --config-dir" if command_line.config_dir is None else create
        return f"--config-name must name a configuration, got {name}; {hint}"
    if isinstance(error, yaml.YAMLError):
        return f"a configuration file is not valid YAML: {' '.join(text.split())}; correct it"
    key = re.search(r"full_key: (\S+)", text)
    value = re.search(r"[Vv]alue '([^']*)'", text)
    shown = "null" if value is None or value[1] == "None" else value[1]
    message = _value_error(text, key[1], shown, known_keys()) if key else None
    file = "local/default" if name == DEFAULT_CONFIG_NAME else f"{name}, or in a file that it includes"
    return f"{message or f'the configuration cannot be composed: {_cause(error)}'} (in {file})"


def _together_error(error: Exception, overrides: Sequence[str]) -> str:
    """The message for overrides of which each can be applied, but not all."""
    return f"{' '.join(overrides)} cannot be applied together: {_cause(error)}; see lrrunner --cfg job"


def _override_error(error: Exception, override: str, known: list[str]) -> str:
    """The message for an override that cannot be applied."""
    text = _text(error)
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    if not _parses(override):
        return not_an_override(override)
    if isinstance(error, yaml.YAMLError):
        return f"{override} reads a file that is not valid YAML: {' '.join(text.split())}; correct it"
    if override.startswith("+") and ("Multiple values for" in text or "An item is already at" in text):
        return f"{key} has a value already, got {override}; write it without +"
    return (
        _choice_error(text, override)
        or (_group_file_error(text, override, known) if _is_group(override) else None)
        or _value_error(text, key, value, known)
        or f"{override} cannot be applied: {_cause(error)}; see lrrunner --cfg job"
    )


def _choice_error(text: str, override: str) -> str | None:
    """An option that its group does not have."""
    key, _, value = override.lstrip("+~").partition("=")
    if key == LAUNCH_FILES:
        return (
            f"{override} is no configuration group: conf/{LAUNCH_FILES} has files for accelerate launch; give "
            f"launch.config_file=<path of the file>, or accelerate launch --config_file <path> -m lrrunner"
        )
    if "Ambiguous value" in text:
        return f"{override} gives several values to one run; for a batch of runs, write lrrunner -m {override}"
    if options := re.search(r"Could not find '.*Available options in '[^']*':\n((?:\t[^\n]*\n?)+)", text, re.DOTALL):
        names = ", ".join(name for name in options[1].split() if not name.startswith("base_"))
        group, _, option = (re.search(r"Could not find '([^']*)'", text) or [""])[1].rpartition("/")
        if group and group != key:
            return f"{group} must be one of {names}; got {option} (in {key}/{value})"
        known = names.split(", ")
        if key == "experiment" and value:
            close = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "give the folder of your own with --config-dir"
            return f"{key} must be one of {names}; got {value}; {hint}"
        return f"{key} must be one of {names}; got {value or 'nothing'}"
    if missing := re.search(r"Could not (?:find|load) '([^']*)'", text):
        return f"{override} names a configuration that does not exist: {missing[1]}; see lrrunner --help"
    return None


def _group_file_error(text: str, override: str, known: list[str]) -> str | None:
    """A wrong key in the file that a group's override names."""
    key, _, value = override.lstrip("+~").partition("=")
    inside = re.search(r"full_key: (\S+)", text)
    if inside is None:
        return None
    if value.startswith("{"):
        return (
            f"{override} has keys that the chosen {key} does not have, {inside[1]} for example; choose {key}=custom, "
            f"and give {key}._target_=... and +{key}.<key>=..."
        )
    if inside[1].partition(".")[0] == key:
        return f"{override} names a file without a package; begin it with: # @package _global_"
    return f"{unknown_key_message(inside[1], known)} (in {key}/{value})"


def _value_error(text: str, key: str, value: str, known: list[str]) -> str | None:
    """A key that does not exist, or a value of the wrong type."""
    if "is not in struct" in text or re.search(r"Key '.*' not in", text):
        if key in known and value.startswith("{"):
            return f"{key}={value} has keys that {key} does not have yet; write +{key}={value}"
        return unknown_key_message(key, known)
    if not value or value == "null":
        return f"{key} must have a value, got {value or 'nothing'}; leave it out to keep the default"
    if conversion := re.search(r"could not be converted to (\w+)|is not a valid (bool)", text):
        name = conversion[1] or conversion[2]
        return f"{key} must be {TYPE_NAMES.get(name, name)}, got {value}; {_as_whole_number(name, value)}"
    if "is not a subclass of" in text:
        names = [name for name in known if name.rpartition(".")[0] == key]
        return f"{key} is a section, got {value}; set one of its keys: {', '.join(names)}"
    if choice := re.search(r"expected one of \[(.*)\]", text):
        return f"{key} must be one of {choice[1]}; got {value}"
    return None


def _as_whole_number(type_name: str, value: str) -> str:
    """What to write in place of a whole number in another notation, such as 1e3."""
    if type_name == "Integer":
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
            if number.is_integer() and abs(number) < 1e15:
                return f"write {int(number)}"
    return "correct the value"


def _text(error: Exception) -> str:
    return f"{error}\n{error.__cause__ or ''}"


def _cause(error: Exception) -> str:
    """The first line with a reason: Hydra puts a heading above it."""
    lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
    return next((line for line in lines if not line.endswith(":")), lines[0])


def _parses(override: str) -> bool:
    return not isinstance(parsed_override(override), Exception)
