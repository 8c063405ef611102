"""Errors that a user can act on; each message names field, rule, value and next move."""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """The configuration is wrong. Holds all errors of a validation stage, so that they are shown at once."""

    subject = "the configuration is"

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        super().__init__("; ".join(self.errors))

    def __str__(self) -> str:
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        lines = "\n".join(f"  - {error}" for error in self.errors)
        return f"lrrunner: {self.subject} wrong ({count})\n{lines}"


class ArgumentError(ConfigError):
    """The arguments of a call are wrong."""

    subject = "the arguments are"


class UnreducedGradientError(RuntimeError):
    """Ranks hold different gradients after a backward pass that should have reduced them: they train apart.

    Args:
        norms: Each rank's gradient norm, as text.
        step: Step at which it was noticed.
    """

    def __init__(self, norms: str, *, step: int) -> None:
        super().__init__(
            f"the gradient must be the same on every rank after the backward pass, got norms {norms} at step {step}: "
            "the loss bypasses DistributedDataParallel, so that ranks train apart; compute it by calling the model "
            "that the objective or loss_fn is given, not model.module, a closure over the module inside of it, or a "
            "criterion with parameters of its own; where the loss leaves parameters out, set "
            "find_unused_parameters=True (train.ddp.find_unused_parameters)"
        )
