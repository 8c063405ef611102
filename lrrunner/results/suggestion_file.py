"""suggestion.json of a run directory: what a range test supports, and the range test it gives back. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrrunner.records import NoiseScale, RangeTestResult, Step, Stop, StopReason, Suggestion, Training
from lrrunner.system.plain_values import from_plain, to_plain


def suggestion_content(test: RangeTestResult) -> dict[str, Any]:
    """The content of suggestion.json."""
    suggestion, stop = test.suggestion, test.stop
    content = {
        "lr": suggestion.lr,
        "method": suggestion.method,
        "verdict": suggestion.verdict,
        "reason": suggestion.reason,
        "interval": suggestion.interval,
        "candidates": suggestion.candidates,
        "group_lrs": test.group_lrs,
        "stop_reason": stop.reason,
        "stop_step": stop.step,
        "stop_ranks": stop.ranks,
        "world_size": test.world_size,
        "global_batch_size": test.global_batch_size,
        "training": to_plain(test.training),
        "passes": [_pass_content(test, number) for number in range(len(test.passes))],
        "confirmation": _confirmation_content(test),
    }
    if test.noise_scale is not None:
        content["noise_scale"] = to_plain(test.noise_scale)
    return content


def range_test_from(content: Mapping[str, Any], steps: tuple[Step, ...]) -> RangeTestResult:
    """The range test of a run directory, without its passes and confirmation runs.

    Args:
        content: Content of suggestion.json.
        steps: Records of the run.
    """
    curve_pass = next((number for number, item in enumerate(content.get("passes", ())) if item["is_curve"]), None)
    stop = Stop(
        reason=StopReason(content["stop_reason"]),
        step=content["stop_step"],
        ranks=tuple(content.get("stop_ranks", ())),
        sweep_pass=curve_pass or 0,
    )
    return RangeTestResult(
        steps=steps,
        stops=(stop,),
        suggestion=from_plain(Suggestion, content),
        world_size=content["world_size"],
        global_batch_size=content["global_batch_size"],
        curve_pass=curve_pass,
        noise_scale=from_plain(NoiseScale, content["noise_scale"]) if "noise_scale" in content else None,
        training=from_plain(Training, content.get("training", {})),
    )


def _pass_content(test: RangeTestResult, number: int) -> dict[str, Any]:
    sweep_pass = test.passes[number]
    return {
        "start_lr": sweep_pass.start_lr,
        "end_lr": sweep_pass.end_lr,
        "verdict": sweep_pass.suggestion.verdict,
        "lr": sweep_pass.suggestion.lr,
        "extension": sweep_pass.extension or None,
        "is_curve": number == test.curve_pass,
    }


def _confirmation_content(test: RangeTestResult) -> dict[str, Any] | None:
    """What was measured, beside what the sweep alone suggests; None where nothing was to be confirmed."""
    confirmation = test.confirmation
    if confirmation is None:
        return None
    return {
        "schedule": confirmation.schedule,
        "monitored": confirmation.monitored,
        "budget_steps": confirmation.budget_steps,
        "horizon": confirmation.horizon,
        "num_trials": len(test.trials),
        "measured_steps": confirmation.measured_steps,
        "extrapolated_to_steps": confirmation.horizon if confirmation.is_extrapolated else None,
        "trouble": confirmation.failure_reason or None,  # the name that readers of the file know
        "sweep_lr": confirmation.sweep.lr,
        "sweep_interval": confirmation.sweep.interval,
    }
