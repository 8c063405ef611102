"""suggestion.json of a run directory: what a range test supports, and the range test it gives back. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lrrunner.core.confirmation import Difference, differences
from lrrunner.core.measured_trials import best_measured_trial, is_outside_trials
from lrrunner.records import (
    Confirmation,
    NoiseScale,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    SweepPass,
    Training,
    Trial,
    Verdict,
)
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
        "expected_regret": suggestion.expected_regret,
        "candidates": suggestion.candidates,
        "evidence": suggestion.evidence,
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


def range_test_from(
    content: Mapping[str, Any], steps: tuple[Step, ...], trials: tuple[Trial, ...] = ()
) -> RangeTestResult:
    """The range test of a run directory; of its stops, only the one that counts.

    Args:
        content: Content of suggestion.json.
        steps: Records of the run.
        trials: Its confirmation runs.
    """
    curve_pass = next((number for number, item in enumerate(content.get("passes", ())) if item["is_curve"]), None)
    lr, group_lrs = content["lr"], content.get("group_lrs")
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
        passes=tuple(_pass_from(item, content) for item in content.get("passes", ())),
        curve_pass=curve_pass,
        trials=trials,
        confirmation=_confirmation_from(content, curve_pass),
        group_ratios=(1.0,) if not lr or not group_lrs else tuple(each / lr for each in group_lrs),
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


def _pass_from(item: Mapping[str, Any], content: Mapping[str, Any]) -> SweepPass:
    return SweepPass(
        start_lr=item["start_lr"],
        end_lr=item["end_lr"],
        suggestion=_suggestion_from(item["lr"], item["verdict"], content),
        extension=item["extension"] or "",
    )


def _suggestion_from(lr: float | None, verdict: str | None, content: Mapping[str, Any]) -> Suggestion:
    """What the file keeps of a suggestion that is not the final one."""
    known = None if verdict is None else Verdict(verdict)
    return Suggestion(lr=lr, method=content["method"], verdict=known, reason="")


def _confirmation_from(content: Mapping[str, Any], curve_pass: int | None) -> Confirmation | None:
    found = content.get("confirmation")
    if found is None:
        return None
    verdict = content["verdict"] if curve_pass is None else content["passes"][curve_pass]["verdict"]
    interval = found["sweep_interval"]
    sweep = _suggestion_from(found["sweep_lr"], verdict, content)
    return Confirmation(
        schedule=found["schedule"],
        monitored=found["monitored"],
        horizon=found["horizon"],
        budget_steps=found["budget_steps"],
        sweep=dataclasses.replace(sweep, interval=None if interval is None else (interval[0], interval[1])),
        measured_steps=found["measured_steps"],
        failure_reason=found["trouble"] or "",
    )


def _trial_content(trial: Trial, difference: Difference | None) -> dict[str, Any]:
    """A confirmation run, and how far it ended above the best one."""
    return {
        "lr": trial.lr,
        "num_steps": trial.num_steps,
        "outcome": trial.outcome,
        "loss": trial.loss if math.isfinite(trial.loss) else None,
        "above_best": None if difference is None else difference.value,
        "above_best_error": None if difference is None or math.isnan(difference.error) else difference.error,
    }


def _confirmation_content(test: RangeTestResult) -> dict[str, Any] | None:
    """What was measured, beside what the sweep alone suggests; None where nothing was to be confirmed."""
    confirmation, best = test.confirmation, best_measured_trial(test)
    if confirmation is None:
        return None
    return {
        "schedule": confirmation.schedule,
        "monitored": confirmation.monitored,
        "budget_steps": confirmation.budget_steps,
        "horizon": confirmation.horizon,
        "num_trials": len(test.trials),
        "trials": [
            _trial_content(trial, difference)
            for trial, difference in zip(test.trials, differences(test.trials), strict=True)
        ],
        "measured_steps": confirmation.measured_steps,
        "extrapolated_to_steps": confirmation.horizon if confirmation.is_extrapolated else None,
        "best_trial_lr": None if best is None else best.lr,
        "best_trial_loss": None if best is None else best.loss,
        "is_outside_trials": is_outside_trials(test),
        "trouble": confirmation.failure_reason or None,  # the name that readers of the file know
        "sweep_lr": confirmation.sweep.lr,
        "sweep_interval": confirmation.sweep.interval,
    }
