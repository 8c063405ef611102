"""The records of a range test: steps, stops, trials, suggestions. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from lrrunner.record_display import Record, html_table


class StopReason(StrEnum):
    """Why a sweep ended."""

    END_OF_SCHEDULE = "end_of_ladder"
    """Every step of the LR schedule was applied."""
    DIVERGED = "diverged"
    """The stop rule fired on the smoothed loss."""
    NON_FINITE = "non_finite"
    """A rank saw NaN or infinity, or mixed precision overflowed ten times in a row."""
    NO_ITEMS = "no_items"
    """No rank had any items to learn from, ten steps in a row."""
    INTERRUPTED = "interrupted"
    """A rank was asked to stop (a signal)."""


class Verdict(StrEnum):
    """How far a curve supports a suggestion."""

    OK = "ok"
    FLAT = "flat"
    NO_DESCENT = "no_descent"
    NO_DIVERGENCE = "no_divergence"
    TOO_FEW_POINTS = "too_few_points"
    NON_FINITE_AT_START = "non_finite_at_start"
    TOO_NOISY = "too_noisy"


class TrialOutcome(StrEnum):
    """How a confirmation run ended."""

    FINISHED = "finished"
    """Its schedule ran to the end."""
    DIVERGED = "diverged"
    """The loss went non-finite or the stop rule fired: its loss counts as infinite."""
    INTERRUPTED = "interrupted"
    """A rank was asked to stop (a signal): it has no loss."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Step(Record):
    """One optimizer step of a sweep, as every rank agreed on it.

    Attributes:
        sweep_pass: 0 for the first pass; auto-range adds passes over an extended range.
        repeat: Repeat of the pass, from 0.
        step: Step of the LR schedule, from 0. A skipped step and its retry share it.
        lr: The optimizer's base learning rate used by this step.
        loss: Raw training loss, the mean over micro-batches and ranks weighted by items.
        smoothed_loss: Causal bias-corrected EMA of the monitored loss so far.
        grad_norm: L2 norm of the averaged gradient before clipping.
        num_items: Items (samples or tokens) that ``loss`` is the mean of, over all ranks.
        skipped: The gradient scaler skipped the update (fp16 overflow): no point of the curve.
        elapsed_s: Seconds since the sweep began.
        timestamp_ms: Unix time in milliseconds at which the step's loss was read.
        val_loss: Raw validation loss after the step, if the sweep monitors it and the step was evaluated.
        val_items: Items that ``val_loss`` is the mean of, over all ranks.
        is_monitored: False for a step that was not evaluated where the sweep monitors the validation loss.
        gradient_variance: Unbiased estimate of the trace of the covariance of one item's gradient; NaN where the step
            gave none, None if the sweep does not measure it.
    """

    sweep_pass: int = 0
    repeat: int = 0
    step: int
    lr: float
    loss: float
    smoothed_loss: float = math.nan
    grad_norm: float = math.nan
    num_items: float = math.nan
    skipped: bool = False
    elapsed_s: float = 0.0
    timestamp_ms: int = 0
    val_loss: float | None = None
    val_items: float | None = None
    is_monitored: bool = True
    gradient_variance: float | None = None

    @property
    def monitored_loss(self) -> float | None:
        """Raw loss of the curve; None if the step is no point of it."""
        if self.skipped or not self.is_monitored:
            return None
        return self.loss if self.val_loss is None else self.val_loss

    @property
    def is_finite(self) -> bool:
        """Whether every measured loss is finite."""
        return math.isfinite(self.loss) and (self.val_loss is None or math.isfinite(self.val_loss))


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Stop(Record):
    """Why and where one repeat of a pass ended.

    Attributes:
        reason: One of the enumerated reasons.
        step: Step at which it was decided (the last recorded one).
        ranks: The ranks that caused it, where ranks differ (non-finite loss, signal).
        repeat: The repeat that ended.
        sweep_pass: Its pass.
        in_gradient: Whether the gradient was not finite, and the loss was.
        in_buffer: Whether a buffer of the model was not finite, and the loss was.
        in_evaluation: Whether the validation loss was not finite, and the training loss was.
        is_partial: Whether some ranks caused it and others did not.
    """

    reason: StopReason
    step: int
    ranks: tuple[int, ...] = ()
    repeat: int = 0
    sweep_pass: int = 0
    in_gradient: bool = False
    in_buffer: bool = False
    in_evaluation: bool = False
    is_partial: bool = False

    def __str__(self) -> str:
        where = f" on rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return f"{self.reason} at step {self.step}{where}"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Trial(Record):
    """One confirmation run: a short training under a complete schedule, from the state the sweep started from.

    Attributes:
        trial: Number, from 0.
        lr: Peak base learning rate of its schedule.
        num_steps: Optimizer steps of its complete schedule.
        num_steps_run: Steps that were run; fewer if it diverged.
        loss: Loss on the validation set at the end (on a part of the training set where there is none); infinite when
            it diverged.
        outcome: How it ended.
        elapsed_s: Seconds it took.
        batch_losses: Losses of the batches that it was evaluated on, the same ones in every trial of a job.
    """

    trial: int
    lr: float
    num_steps: int
    num_steps_run: int
    loss: float
    outcome: TrialOutcome = TrialOutcome.FINISHED
    elapsed_s: float = 0.0
    batch_losses: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Suggestion(Record):
    """What a curve supports.

    Attributes:
        lr: Suggested base learning rate, or None when the curve supports none.
        method: Name of the rule that gave it.
        verdict: How far the curve supports it; None where a signal ended the sweep, so that there is no whole curve.
        reason: Why this verdict, and what to change if ``lr`` is None.
        interval: (low, high) in LR units around ``lr``; None without a suggestion.
        expected_regret: Share of the fall that the best LR achieves in the training, and this one is expected to lose;
            None without a suggestion.
        candidates: Every rule's LR on the same curve; None where a rule found nothing.
        evidence: What `auto` is the mean of: name of each observation -> ``lr``, the best LR according to it alone, and
            ``weight``, its share.
    """

    lr: float | None
    method: str
    verdict: Verdict | None
    reason: str
    interval: tuple[float, float] | None = None
    expected_regret: float | None = None
    candidates: dict[str, float | None] = field(default_factory=dict, repr=False)
    evidence: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        if self.verdict is None:
            return f"suggested lr: none   ({self.reason})"
        if self.lr is None or self.interval is None:
            return f"suggested lr: none   verdict: {self.verdict}   ({self.reason})"
        low, high = self.interval
        return f"suggested lr: {self.lr:.1e}   [{low:.1e}, {high:.1e}]   verdict: {self.verdict}"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        interval = "none" if self.interval is None else f"{self.interval[0]:.1e} to {self.interval[1]:.1e}"
        rows = {
            "suggested LR": "none" if self.lr is None else f"{self.lr:.3g}",
            "interval": interval,
            "verdict": "none" if self.verdict is None else str(self.verdict),
            "reason": self.reason,
        }
        if self.expected_regret is not None:
            rows["may lose"] = f"{self.expected_regret:.0%} of the possible gain"
        rules = {f"rule {name}": "none" if lr is None else f"{lr:.1e}" for name, lr in self.candidates.items()}
        return html_table(rows | rules)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SweepPass(Record):
    """One pass of a range test: a sweep over one range of LRs.

    Attributes:
        start_lr: Its first LR.
        end_lr: Its last LR.
        suggestion: What its curve supports.
        extension: Why the next pass has another range; empty for the last one.
    """

    start_lr: float
    end_lr: float
    suggestion: Suggestion
    extension: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Training(Record):
    """The training that a suggestion is for.

    Attributes:
        num_steps: Its optimizer steps; None if not known.
        schedule: Name of its LR schedule after the warm-up.
        warmup_steps: Steps of its linear warm-up.
        is_assumed: Whether ``num_steps`` was not told, and a default was taken.
    """

    num_steps: int | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    is_assumed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Confirmation(Record):
    """How confirmation runs were compared.

    Attributes:
        schedule: Name of the schedule each of them completed.
        monitored: Name of the loss, "validation loss" for example.
        horizon: Steps of the real training; None if not known.
        budget_steps: Optimizer steps that all of them together could plan.
        sweep: The sweep's own suggestion.
        measured_steps: Length of the runs that the suggestion was read from; None if it is the sweep's own.
        failure_reason: Why they confirmed nothing; empty if they did.
    """

    schedule: str
    monitored: str
    horizon: int | None
    budget_steps: int
    sweep: Suggestion
    measured_steps: int | None = None
    failure_reason: str = ""

    @property
    def is_extrapolated(self) -> bool:
        """Whether the runs were shorter than the training that the suggestion is for."""
        return self.measured_steps is not None and self.horizon is not None and self.horizon > self.measured_steps


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Progress(Record):
    """How far a part of a job is.

    Attributes:
        label: The part, a pass of the sweep for example.
        step: Steps of it that are done.
        num_steps: Steps it has.
        detail: The newest values, as text.
    """

    label: str
    step: int
    num_steps: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class NoiseScale(Record):
    """Critical batch size, above which a larger batch stops paying, from the noise in the gradient.

    Attributes:
        critical_batch_size: Samples a step at which the noise of the mean gradient is as large as the gradient itself;
            None where it was not measured, or no gradient stands out from its noise.
        low: Lower end of a 90 % interval in samples; None where nothing was measured.
        high: Upper end; None where the steps set no limit.
        num_steps: Steps it was measured in.
        last_lr: Highest LR of these.
        reason: Why there is no number, and what to change; empty where there is one.
    """

    critical_batch_size: float | None = None
    low: float | None = None
    high: float | None = None
    num_steps: int = 0
    last_lr: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.low is None:
            return f"critical batch size: none   ({self.reason})"
        if self.critical_batch_size is None:
            return f"critical batch size: above {self.low:.3g}   ({self.reason})"
        high = "no limit" if self.high is None else f"{self.high:.3g}"
        return f"critical batch size: {self.critical_batch_size:.3g}   [{self.low:.3g}, {high}]"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class RangeTestResult(Record):
    """A whole range test: records of all passes and repeats, where each of them ended, and the suggestion.

    Attributes:
        steps: Records of all passes, in order.
        stops: Where each repeat of each pass ended.
        suggestion: The learning rate to train with.
        world_size: Number of ranks.
        global_batch_size: Samples per optimizer step.
        passes: The passes; empty for a range test read back from files.
        curve_pass: The pass whose curve the suggestion was read from; None: the last one.
        trials: Confirmation runs, in order.
        confirmation: How they were compared; None without confirmation.
        noise_scale: Critical batch size; None if it was not measured.
        group_ratios: Each parameter group's LR over the recorded one, in the optimizer's order.
        training: The training that the suggestion is for.
    """

    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]
    suggestion: Suggestion
    world_size: int
    global_batch_size: int
    passes: tuple[SweepPass, ...] = ()
    curve_pass: int | None = None
    trials: tuple[Trial, ...] = ()
    confirmation: Confirmation | None = None
    noise_scale: NoiseScale | None = None
    group_ratios: tuple[float, ...] = (1.0,)
    training: Training = Training()

    def __repr__(self) -> str:
        counts = {"step": len(self.steps), "confirmation run": len(self.trials), "rank": self.world_size}
        text = ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in counts.items())
        return f"{type(self).__name__}({self.suggestion}   ({text}, global batch {self.global_batch_size}))"

    @property
    def group_lrs(self) -> tuple[float, ...] | None:
        """The suggested LR of each parameter group; None without a suggestion."""
        lr = self.suggestion.lr
        return None if lr is None else tuple(lr * ratio for ratio in self.group_ratios)

    @property
    def curve_number(self) -> int:
        """Number of the pass that the suggestion was read from."""
        if self.curve_pass is not None:
            return self.curve_pass
        return max((step.sweep_pass for step in self.steps if not step.skipped), default=0)

    @property
    def curve_steps(self) -> tuple[Step, ...]:
        """Records of the pass that the suggestion was read from."""
        number = self.curve_number
        return tuple(step for step in self.steps if step.sweep_pass == number)

    @property
    def best_loss(self) -> float | None:
        """Lowest smoothed loss."""
        return lowest_smoothed_loss(self.steps)

    @property
    def monitored(self) -> str:
        """Name of the loss of the curve."""
        return "loss" if all(step.val_loss is None for step in self.steps) else "validation loss"

    @property
    def curve_stop(self) -> Stop:
        """The earliest stop of that pass, which is where its curve ends; an interruption goes before."""
        number = max(stop.sweep_pass for stop in self.stops) if self.curve_pass is None else self.curve_pass
        stops = [stop for stop in self.stops if stop.sweep_pass == number]
        return min(stops, key=lambda stop: (stop.reason != StopReason.INTERRUPTED, stop.step))

    @property
    def stop(self) -> Stop:
        """The stop of the whole sweep: an interruption if there was one, else the stop of the curve."""
        interruptions = [stop for stop in self.stops if stop.reason == StopReason.INTERRUPTED]
        return min(interruptions, key=lambda stop: stop.step) if interruptions else self.curve_stop


def lowest_smoothed_loss(steps: Iterable[Step]) -> float | None:
    """The lowest one that is finite; None if none is."""
    return min(filter(math.isfinite, (step.smoothed_loss for step in steps)), default=None)
