"""Sweeps the objects of a script, confirms the suggestion where that is asked for, and restores the objects."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lrrunner.config.schema import Config, Precision
from lrrunner.library.arguments.argument_names import argument_errors, in_argument_names
from lrrunner.library.arguments.failure_hints import failures_explained
from lrrunner.library.arguments.loss_function import ObservedLoss
from lrrunner.library.arguments.model_wrappers import innermost, no_sync
from lrrunner.library.arguments.options import OBJECT_NAMES, call_text, config_from_options, disagreements
from lrrunner.library.arguments.script_objects import ScriptObjects, object_errors, option_errors
from lrrunner.library.caller_state import (
    dataset_epoch_restored,
    gradient_sync_enabled,
    rng_restored,
    scaler_between_steps,
)
from lrrunner.library.interrupt_request import InterruptRequest
from lrrunner.library.loaders.loader_agreement import agreement_errors
from lrrunner.library.loaders.script_batches import ScriptBatches
from lrrunner.library.progress import ScriptProgress
from lrrunner.library.result import RangeTest
from lrrunner.library.unfinished_confirmation import ConfirmationError, ConfirmationInterrupted
from lrrunner.records import RangeTestResult, Step, Stop, StopReason
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials
from lrrunner.sweep.measure import Comparison, Measurement
from lrrunner.sweep.range_test_result import range_test_result
from lrrunner.training import collectives
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import RankContext
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.optimizer.optimizers import lr_remark, set_optimizer_mode, unwrapped
from lrrunner.training.state.loss_modules import loss_modules
from lrrunner.training.step.item_counts import num_samples
from lrrunner.training.trainable import Trainable, to_device

UNEQUAL_SIZES = (
    "the batch size is taken from the first tensor, but the tensors of a batch differ in their first dimension (%s); "
    "if that is not the number of samples, losses are weighted wrongly: let loss_fn return (loss, num_items)"
)

logger = logging.getLogger(__name__)


def measured(objects: ScriptObjects, options: Mapping[str, Any]) -> RangeTest:
    """The result of a range test on a script's objects. Every rank must call this.

    Args:
        objects: The objects, not checked yet.
        options: Argument name -> value, not checked yet.

    Raises:
        ArgumentError: Some rank cannot sweep its arguments, or ranks have different options.
        ConfirmationInterrupted: Ctrl-C ended the confirmation runs; it holds the result.
        ConfirmationError: A confirmation run failed on one of several ranks; it holds the result.
    """
    collective = collectives.collective_for_world()
    job = _checked_job(objects, options, collective)
    given = [name for name in OBJECT_NAMES if getattr(objects, name) is not None and getattr(objects, name) != ()]
    script = _ScriptSweep(objects, job, call_text(options, given_objects=given), collective)
    with failures_explained(), script.objects_restored():
        return script.run()


class ScriptTrainable(Trainable):
    """A model whose owner may keep some submodules, such as frozen batch norms, in evaluation mode while it trains."""

    def train(self) -> None:
        """Training mode for a model that is not in it; otherwise every submodule keeps its own mode."""
        if not innermost(self.model).training:
            self.model.train()
        set_optimizer_mode(self.optimizer, training=True)


@dataclass(frozen=True)
class _ScriptSweep:
    """One call on this rank.

    Attributes:
        objects: The objects.
        job: The options as a configuration; its global batch size is filled in after the first step.
        call: The call as Python source.
        collective: The world this rank belongs to.
    """

    objects: ScriptObjects
    job: Config
    call: str
    collective: Collective

    @contextmanager
    def objects_restored(self) -> Iterator[None]:
        """Restore what the sweep changes on the caller's objects, apart from what each pass restores by itself."""
        objects = self.objects
        with ExitStack() as stack:
            stack.enter_context(rng_restored(next(objects.model.parameters()).device))
            for loader in (objects.train_loader, objects.val_loader):
                stack.enter_context(dataset_epoch_restored(loader))
            stack.enter_context(gradient_sync_enabled(objects.model))
            stack.enter_context(scaler_between_steps(objects.active_scaler))
            yield

    def run(self) -> RangeTest:
        """Sweep and confirm. Every rank must call this."""
        objects, collective = self.objects, self.collective
        loss = ObservedLoss(objects.loss_fn, num_micro_batches=self.job.train.accumulation_steps)
        progress = ScriptProgress(self.job, is_shown=collective.rank == 0)
        interrupt = InterruptRequest()
        measurement = Measurement(
            self.job,
            ScriptBatches(objects.train_loader, objects.val_loader, self.job, collective=collective),
            self._trainable(loss),
            RankContext(collective=collective, stop_requested=lambda: interrupt.requested),
            progress,
        )
        try:
            comparison = measurement.comparison()
            passes = measurement.sweep()
            if loss.unequal_sizes and collective.rank == 0:
                logger.warning(UNEQUAL_SIZES, loss.unequal_sizes)
            self._describe_objects(sum(collective.gather(loss.num_samples)) or round(passes.steps[0].num_items))
            with interrupt:
                return self._confirmed(measurement, passes, comparison, progress)
        finally:
            progress.close()

    def _confirmed(
        self, measurement: Measurement, passes: Passes, comparison: Comparison | None, progress: ScriptProgress
    ) -> RangeTest:
        """The result, with the confirmation runs that the job asks for. Every rank must call this."""
        try:
            trials = measurement.confirm(passes, comparison)
        except KeyboardInterrupt as error:  # a second one, or one of the script's own
            stop = Stop(reason=StopReason.INTERRUPTED, step=0, ranks=(self.collective.rank,))
            initial_loss = math.nan if comparison is None else comparison.initial_loss
            trials = Trials(tuple(progress.trials), interruption=stop, initial_loss=initial_loss)
            raise ConfirmationInterrupted(self._result(passes, trials, progress.trial_steps)) from error
        except Exception as error:
            trials = Trials(failure_reason=f"{type(error).__name__}: {error}")
            raise ConfirmationError(error, self._result(passes, trials, progress.trial_steps)) from error
        if trials.interruption is not None:
            raise ConfirmationInterrupted(self._result(passes, trials, progress.trial_steps))
        return self._result(passes, trials, progress.trial_steps)

    def _trainable(self, loss: ObservedLoss) -> Trainable:
        objects, train = self.objects, self.job.train
        return ScriptTrainable(
            model=objects.model,
            optimizer=unwrapped(objects.optimizer),
            objective=loss,
            count_items=num_samples,
            accumulation_steps=train.accumulation_steps,
            max_grad_norm=train.max_grad_norm,
            scaler=objects.active_scaler,
            no_sync=no_sync(objects.accelerator, objects.model),
            to_device=to_device(next(objects.model.parameters()).device),
            eval_mode=train.eval_mode,
            loss_modules=loss_modules(objects.loss_fn, objects.model, objects.modules),
        )

    def _result(self, passes: Passes, trials: Trials, trial_steps: Sequence[Sequence[Step]]) -> RangeTest:
        optimizer = unwrapped(self.objects.optimizer)
        found = range_test_result(
            self.job,
            passes,
            trials,
            steps=passes.steps,
            world_size=self.collective.world_size,
            group_ratios=LearningRate(optimizer).ratios,
            lr_remark=lr_remark(optimizer),
        )
        values = {item.name: getattr(found, item.name) for item in dataclasses.fields(RangeTestResult)}
        values["suggestion"] = _in_argument_names(found.suggestion, "reason")
        if found.confirmation is not None:
            values["confirmation"] = _in_argument_names(found.confirmation, "failure_reason")
        if found.noise_scale is not None:
            values["noise_scale"] = _in_argument_names(found.noise_scale, "reason")
        kept = tuple(map(tuple, trial_steps))
        return RangeTest(**values, job=self.job, call=self.call, rank=self.collective.rank, trial_steps=kept)

    def _describe_objects(self, global_batch_size: int) -> None:
        """Fill in the parts of the configuration that describe what was swept."""
        job, objects = self.job, self.objects
        optimizer = unwrapped(objects.optimizer)
        plain = {key: value for key, value in optimizer.defaults.items() if isinstance(value, bool | int | float | str)}
        job.model = {"_target_": _qualified_name(type(innermost(objects.model)))}
        job.optimizer = {"_target_": _qualified_name(type(optimizer)), **plain, "lr": LearningRate(optimizer).base_lr}
        job.objective = {"_target_": _qualified_name(objects.loss_fn)}
        job.data.global_batch_size = global_batch_size
        job.data.train = {"_target_": _dataset_name(objects.train_loader)}
        if objects.val_loader is not None:
            job.data.val = {"_target_": _dataset_name(objects.val_loader)}
        precision = "no" if objects.accelerator is None else str(objects.accelerator.mixed_precision)
        job.train.mixed_precision = Precision.fp32 if precision == "no" else Precision(precision)


def _checked_job(objects: ScriptObjects, options: Mapping[str, Any], collective: Collective) -> Config:
    """The options as a configuration. Every rank must call this.

    Raises:
        ArgumentError: Some rank cannot sweep its arguments, or ranks have different options.
    """
    if options["accumulation_steps"] is None:
        options = {**options, "accumulation_steps": objects.accumulation_steps}
    errors: list[str] = []
    job = config_from_options(options, errors)
    world_size = collective.world_size
    errors += object_errors(objects, world_size=world_size, accumulation_steps=job.train.accumulation_steps)
    errors += option_errors(objects, job, world_size=world_size)
    plain = {**options, "val_loader": type(objects.val_loader).__name__}
    with argument_errors():
        collectives.agree(collective, errors)
        collectives.agree(collective, disagreements(collective.gather(plain)))
        with rng_restored(next(objects.model.parameters()).device):
            errors = agreement_errors(collective, objects.train_loader)
            errors += agreement_errors(collective, objects.val_loader, name="val_loader")
        collectives.agree(collective, errors)
    return job


def _in_argument_names(record: Any, name: str) -> Any:
    """A record with one of its texts in argument names."""
    return dataclasses.replace(record, **{name: in_argument_names(getattr(record, name))})


def _dataset_name(loader: Any) -> str:
    return _qualified_name(type(getattr(loader, "dataset", loader)))


def _qualified_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
