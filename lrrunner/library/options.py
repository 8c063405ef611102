"""The options of a call: converted, checked like the configuration keys of the same names, and written down."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any

from lrrunner.config.schema import (
    Config,
    DataConfig,
    SuggestionConfig,
    SweepConfig,
    TrainConfig,
)
from lrrunner.config.validation import step_errors, suggestion_errors, sweep_errors


def config_from_options(options: Mapping[str, Any], errors: list[str]) -> Config:
    """The options as a configuration.

    Args:
        options: Argument name -> value, of any type.
        errors: Receives one message per error; the configuration then holds the default instead.
    """
    sweep = SweepConfig()
    for item in fields(SweepConfig):
        if item.name in options:
            setattr(sweep, item.name, _converted(item.name, options[item.name], item.default, errors))
    max_grad_norm = options["max_grad_norm"]
    train = TrainConfig(
        accumulation_steps=_converted("accumulation_steps", options["accumulation_steps"], 1, errors),
        max_grad_norm=None if max_grad_norm is None else _converted("max_grad_norm", max_grad_norm, 1.0, errors),
    )
    suggestion = SuggestionConfig(method=options["method"])
    errors += [*sweep_errors(sweep), *suggestion_errors(suggestion), *step_errors(train)]
    return Config(
        model={}, objective={}, optimizer={}, data=DataConfig(), sweep=sweep, suggestion=suggestion, train=train
    )


def disagreements(options_by_rank: Sequence[Mapping[str, Any]]) -> list[str]:
    """One message for each option that differs between ranks, which would then wait for each other for ever."""
    first = options_by_rank[0]
    errors = []
    for name, value in first.items():
        rank = next((rank for rank, own in enumerate(options_by_rank) if own[name] != value), None)
        if rank is not None:
            errors.append(
                f"{name} must be the same on every rank, got {value!r} on rank 0, {options_by_rank[rank][name]!r} "
                f"on rank {rank}; compute it on rank 0 and broadcast it"
            )
    return errors


def call_text(options: Mapping[str, Any]) -> str:
    """The call as Python source, with the options that differ from their defaults."""
    defaults = {item.name: item.default for item in fields(SweepConfig)} | {"method": SuggestionConfig().method}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in defaults.items()}
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value != plain.get(name))
    return f"lrrunner.range_test(accelerator, model, optimizer, train_loader, loss_fn{given})"


def _converted(name: str, value: Any, default: Any, errors: list[str]) -> Any:
    """The value as the type of ``default``; the default, and a message, where it is of another type."""
    kind, converted = _as_type_of(default, value)
    if converted is not None:
        return converted
    example = default.value if isinstance(default, Enum) else default
    errors.append(f"{name} must be {kind}, got {value!r}; try {example}")
    return default


def _as_type_of(default: Any, value: Any) -> tuple[str, Any]:
    """The name of the default's type, and the value as that type or None."""
    is_bool = isinstance(value, bool)
    if isinstance(default, Enum):
        choices = [item.value for item in type(default)]
        return f"one of {', '.join(choices)}", type(default)(value) if value in choices else None
    if isinstance(default, bool):
        return "true or false", value if is_bool else None
    if isinstance(default, int):
        return "a whole number", int(value) if isinstance(value, numbers.Integral) and not is_bool else None
    return "a number", float(value) if isinstance(value, numbers.Real) and not is_bool else None
