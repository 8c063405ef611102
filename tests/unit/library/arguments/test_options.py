"""Options of the call are the keys of the command line, and are checked alike."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import lrrunner
from lrrunner.config.schema import SuggestionConfig, SweepConfig
from lrrunner.library.arguments.options import disagreements
from tests.unit.library.script import swept


def test_options_have_the_names_and_defaults_of_the_command_line() -> None:
    """A user of one interface knows the other."""
    parameters = inspect.signature(lrrunner.range_test).parameters
    defaults = {item.name: item.default for item in dataclasses.fields(SweepConfig)}
    defaults |= {"method": SuggestionConfig().method}
    for name in ("start_lr", "end_lr", "num_steps", "mode", "smoothing", "stop_rule", "diverge_factor", "repeats"):
        expected = getattr(defaults[name], "value", defaults[name])
        assert parameters[name].default == expected
    for name in ("seed", "auto_range", "sync_every_step", "method"):
        assert parameters[name].default == defaults[name]


def test_all_errors_are_raised_at_once_under_argument_names() -> None:
    """Field, rule, value, next move; the user does not read our traceback, nor keys of the configuration."""
    with pytest.raises(ValueError, match="the arguments are wrong") as caught:
        swept(
            train_loader=iter([1]),
            loss_fn=3,
            start_lr=-1.0,
            num_steps=2.5,
            mode="cubic",
            auto_range=1,
            smoothing="x",
            max_grad_norm=-1.0,
            accumulation_steps=0,
            method="magic",
        )
    text = str(caught.value)
    for message in (
        "(10 errors)",
        "start_lr must be above 0, got -1; try 1e-7",
        "num_steps must be a whole number, got 2.5; try 100",
        "mode must be one of exponential, linear, got 'cubic'; try exponential",
        "auto_range must be true or false, got 1; try True",
        "smoothing must be a number, got 'x'; try 0.9",
        "max_grad_norm must be above 0, got -1; None turns clipping off",
        "accumulation_steps must be at least 1, got 0; try 1",
        "method must be one of auto, steepest, minimum, valley, slide, largest_drop; got magic",
        "train_loader must start again when it is iterated again, got list_iterator",
        "loss_fn must be callable as loss_fn(model, batch), got int",
    ):
        assert message in text
    assert "sweep." not in text


def test_options_that_differ_by_rank_are_named() -> None:
    """Ranks with different LRs would train apart, with different lengths wait for ever; 1 and 1.0 are the same."""
    base = {"num_steps": 20, "start_lr": 1, "method": "auto"}
    assert disagreements([base, base | {"start_lr": 1.0}]) == []
    (error,) = disagreements([base, base, base | {"num_steps": 30}])
    assert error.startswith("num_steps must be the same on every rank, got 20 on rank 0, 30 on rank 2; ")
