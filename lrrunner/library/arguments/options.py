"""The options of a call: converted, checked like the configuration keys of the same names, and written down."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from lrrunner.config.schema import (
    Config,
    ConfirmConfig,
    DataConfig,
    ScheduleName,
    SuggestionConfig,
    SweepConfig,
    TrainConfig,
)
from lrrunner.config.validation import (
    MIN_BUDGET_STEPS,
    confirm_errors,
    step_errors,
    suggestion_errors,
    sweep_errors,
    training_errors,
)

OBJECT_NAMES = ("val_loader", "modules", "scaler")
"""Arguments that are objects; a call's text names them."""

OTHER_DEFAULTS = {
    "method": SuggestionConfig().method,
    "training_steps": None,
    "schedule": TrainConfig().schedule,
    "warmup_steps": 0,
    "confirm": False,
    "eval_mode": True,
    "accumulation_steps": None,
    "max_grad_norm": None,
}
"""Options that are no keys of ``sweep``, and their defaults."""


def config_from_options(options: Mapping[str, Any], errors: list[str]) -> Config:
    """The options as a configuration.

    Args:
        options: Argument name -> value, of any type.
        errors: Receives one message per error; the configuration then holds the default instead.
    """
    convert = _Converter(options, errors)
    sweep = SweepConfig()
    for item in fields(SweepConfig):
        if item.name in options:
            setattr(sweep, item.name, convert(item.name, item.default))
    train = TrainConfig(
        accumulation_steps=convert("accumulation_steps", 1),
        max_grad_norm=convert.optional("max_grad_norm", 1.0),
        eval_mode=convert("eval_mode", True),
        num_steps=convert.optional("training_steps", 1000),
        schedule=convert("schedule", ScheduleName.constant),
        warmup_steps=convert("warmup_steps", 0),
    )
    suggestion = SuggestionConfig(method=options["method"])
    confirm = _confirm(options["confirm"], errors)
    errors += [
        *sweep_errors(sweep),
        *suggestion_errors(suggestion),
        *step_errors(train),
        *training_errors(train),
    ]
    return Config(
        model={},
        objective={},
        optimizer={},
        data=DataConfig(),
        sweep=sweep,
        suggestion=suggestion,
        confirm=confirm,
        train=train,
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


def call_text(options: Mapping[str, Any], *, given_objects: Sequence[str] = ()) -> str:
    """The call as Python source, with the options that differ from their defaults."""
    defaults = {item.name: item.default for item in fields(SweepConfig)} | OTHER_DEFAULTS
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in defaults.items()}
    given = "".join(f", {name}={name}" for name in given_objects)
    given += "".join(f", {name}={value!r}" for name, value in options.items() if value != plain[name])
    return f"lrrunner.range_test(accelerator, model, optimizer, train_loader, loss_fn{given})"


def _confirm(value: Any, errors: list[str]) -> ConfirmConfig:
    """Whether to confirm, and the budget: true, false, or a number of steps."""
    if isinstance(value, bool):
        return ConfirmConfig(enabled=value)
    if not isinstance(value, numbers.Integral):
        errors.append(f"confirm must be true, false or a number of steps, got {value!r}; try True")
        return ConfirmConfig()
    confirm = ConfirmConfig(enabled=True, budget_steps=int(value))
    if any(confirm_errors(confirm)):
        errors.append(f"confirm must be at least {MIN_BUDGET_STEPS} steps, got {value}; True takes 5 x num_steps")
    return confirm


@dataclass(frozen=True)
class _Converter:
    """Converts options to the types of configuration keys; a wrong one gives a message and the default."""

    options: Mapping[str, Any]
    errors: list[str]

    def __call__(self, name: str, default: Any) -> Any:
        """The option as the type of ``default``."""
        kind, converted = _as_type_of(default, self.options[name])
        if converted is not None:
            return converted
        example = default.value if isinstance(default, Enum) else default
        self.errors.append(f"{name} must be {kind}, got {self.options[name]!r}; try {example}")
        return default

    def optional(self, name: str, example: Any) -> Any:
        """The option as the type of ``example``, or None."""
        return None if self.options[name] is None else self(name, example)


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
