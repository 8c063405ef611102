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
