"""From ``_target_``s to objects; errors are collected, so that all of them are reported at once."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from lrrunner.system.output.error_message import error_message, user_position

EXTRAS = {"transformers": "hf", "lightning": "lightning"}
"""Package -> the extra of lrrunner that installs it."""

logger = logging.getLogger(__name__)


def instantiate(name: str, component: Mapping[str, Any] | None, errors: list[str], *arguments: Any) -> Any:
    """The object that a component of the configuration describes; None where there is none, or after an error.

    Args:
        name: Key of the component, for messages.
        component: ``_target_`` and keyword arguments.
        errors: Receives a message instead of an exception.
        arguments: Positional arguments.
    """
    if component is None or not check_target(name, component, errors, *arguments):
        return None
    try:
        return hydra.utils.instantiate(dict(component), *arguments, _convert_="all")
    except (Exception, SystemExit) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        logger.info("%s could not be built", name, exc_info=cause)
        reason = _first_line(cause, default="no message")
        position = user_position(cause)
        raised = f"{type(cause).__name__}: {reason}" + (f",{position}" if position else f"; correct the keys of {name}")
        errors.append(f"{name} could not be built: {component['_target_']} raised {raised}")
        return None


def check_target(name: str, component: Mapping[str, Any], errors: list[str], *arguments: Any) -> bool:
    """Whether the ``_target_`` can be imported and takes its arguments; adds a message if not."""
    path = component["_target_"]
    try:
        target = hydra.utils.get_object(path)
    except (Exception, SystemExit) as error:
        cause = error.__cause__ or error
        logger.info("%s could not be imported", path, exc_info=cause)
        reason = _first_line(cause, default=type(cause).__name__)
        errors.append(f"{name}._target_ must be importable, got {path} ({reason}); {_what_helps(path, cause)}")
        return False
    if not callable(target):
        errors.append(f"{name}._target_ must be a class or a function, got {path}; name something to call")
        return False
    refusal = _refusal(target, component, *arguments)
    if refusal:
        hint = f"correct the keys of {name}"
        if name in ("objective", "data.collate_fn") and "missing a required" in refusal:
            hint += f", or add {name}._partial_=true to name the function itself"
        if name == "data.sampler":
            hint += ", or name a function that is called with data.train, and returns a sampler, weights or indices"
        errors.append(f"{name} must take the arguments it is given: {path} {refusal}; {hint}")
    return not refusal


def _what_helps(path: str, error: BaseException) -> str:
    """A similar name in the same module, the extra that has the package that is missing, or the file to correct."""
    if isinstance(error, SyntaxError):
        return f"correct {error.filename}, line {error.lineno}"
    if "." not in path:
        return f"name its module too, mine.{path} for mine.py, say"
    package, _, _ = path.partition(".")
    if package in EXTRAS and importlib.util.find_spec(package) is None:
        return f"install it with: pip install 'lrrunner[{EXTRAS[package]}]'"
    if isinstance(error, ModuleNotFoundError) and error.name is not None and not path.startswith(error.name):
        return f"install {error.name}, or correct the import in {user_position(error).removeprefix(' at ') or path}"
    module_name, _, name = path.rpartition(".")
    with contextlib.suppress(Exception):  # a module of the user's
        module = importlib.import_module(module_name)
        if close := difflib.get_close_matches(name, dir(module), n=1):
            return f"did you mean {module_name}.{close[0]}?"
    return "correct the name, or run where it is"


def _refusal(target: Callable[..., Any], component: Mapping[str, Any], *arguments: Any) -> str | None:
    """The message of the TypeError that the call would raise; None without one, or where the signature is unknown."""
    keywords = {key: value for key, value in component.items() if not (key.startswith("_") and key.endswith("_"))}
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    bind = signature.bind_partial if component.get("_partial_") else signature.bind
    try:
        bind(*arguments, *component.get("_args_", ()), **keywords)
    except TypeError as error:
        return str(error)
    return None


def _first_line(error: BaseException, *, default: str) -> str:
    return next(iter(error_message(error).strip().splitlines()), default)
