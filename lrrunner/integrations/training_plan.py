"""The training that a trainer of another library has been set up for, as options of a range test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lrrunner.library.result import RangeTest

TRAINING_OPTIONS = ("training_steps", "schedule", "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Length and LR schedule of a training.

    Attributes:
        training_steps: Optimizer steps; None if not known.
        schedule: The nearest of a range test's schedules.
        warmup_steps: Steps of a linear warm-up.
        remark: What the schedule really is, where that is another one; else empty.
    """

    training_steps: int | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    remark: str = ""

    def options(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Options for those that the caller has not given, and the remark if the schedule is among them."""
        if self.training_steps is None:
            return {}, self.remark if "schedule" not in given else ""
        length = given.get("training_steps") or self.training_steps
        values = {
            "training_steps": self.training_steps,
            "schedule": self.schedule,
            "warmup_steps": max(0, min(self.warmup_steps, length - 1)),
        }
        own = {name: value for name, value in values.items() if name not in given}
        return own, self.remark if "schedule" in own else ""


def wants_validation(options: Mapping[str, Any]) -> bool:
    """Whether a call evaluates, and has not been given what to evaluate on."""
    evaluates = bool(options.get("confirm")) or options.get("monitor") == "val"
    return evaluates and options.get("val_loader") is None


def with_remarks(result: RangeTest, remarks: Iterable[str]) -> RangeTest:
    """The result, with sentences added to the reason of its suggestion."""
    suggestion = result.suggestion
    reason = "; ".join(filter(None, (suggestion.reason, *remarks)))
    return dataclasses.replace(result, suggestion=dataclasses.replace(suggestion, reason=reason))
