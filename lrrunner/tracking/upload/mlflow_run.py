"""The MLflow run of one job: joined, sent metrics while the sweep runs, and the rest at its end."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrrunner.config.schema import Config, SweepConfig
from lrrunner.records import RangeTestResult, Step, Trial
from lrrunner.reporting.run_summary import link_figure
from lrrunner.results.artifacts import artifacts
from lrrunner.results.run_state import RunState
from lrrunner.system.plain_values import flattened
from lrrunner.tracking.names.metric_names import (
    MetricPoint,
    live_point,
    pass_points,
    pooled_points,
    result_metrics,
    result_tags,
    trial_point,
    trial_step_point,
)
from lrrunner.tracking.names.run_names import name_with_lr, short_labels
from lrrunner.tracking.names.tag_names import PROGRESS
from lrrunner.tracking.store.connection import Connection
from lrrunner.tracking.store.failures import UploadFailure, upload_failure
from lrrunner.tracking.store.runs import delete_tag, end_run, run_location, set_note
from lrrunner.tracking.upload.training_set import TrainingSet, log_training_set
from lrrunner.tracking.upload.uploader import MetricUploader

FIGURE_KEY = "lr_sweep"
IMAGES = "images"
"""Artifact folder of images that are logged under a key, which pins them to the run's page."""

UNLOGGED_PARAMS = ("run.dir", "run.resume")
"""They differ between any two runs, and say nothing of what these compute; a tag has the directory."""

MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_NAME_LENGTH = 250


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run has ended, and what MLflow gets to show then.

    Attributes:
        state: Finished, failed or killed.
        note: Markdown for its description.
        directory: Its run directory; the files in it become artifacts.
        test: The range test of a finished run. The result of another one may change when it is resumed, and must not
            stand under the names of final results, which MLflow cannot take back.
        figure: The figure of a finished run, to pin to its page; None to pin none.
    """

    state: RunState
    note: str
    directory: Path
    test: RangeTestResult | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        assert self.state == RunState.FINISHED or (self.test is None and self.figure is None)


def join_run(
    connection: Connection,
    run_id: str,
    *,
    job: Config,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: TrainingSet | None = None,
) -> MlflowRun:
    """Log a job's configuration to an existing run, and begin to log metrics to it.

    Args:
        connection: The experiment.
        run_id: The run; it may hold params and metrics already.
        job: The job. Unless it names its run, the suggested LR is appended to the name in the end.
        params: Resolved configuration. A param that the run has already stays: MLflow lets none change.
        tags: Tags to set.
        dataset: The training set; None logs none.
    """
    run = connection.client.get_run(run_id)
    short = short_labels(job)
    new_tags = {key: value for key, value in short.items() if key not in run.data.tags} | dict(tags)
    _log_inputs(connection, run_id, params={**short, **params}, tags=new_tags, known_params=run.data.params)
    if dataset is not None:
        log_training_set(connection, run_id, dataset)
    base_name = str(run.info.run_name) if job.tracking.run_name is None else None
    return MlflowRun(connection, run_id, sweep=job.sweep, base_name=base_name)


class MlflowRun:
    """A run that receives metrics, from :func:`join_run` to :meth:`finish`, the only method that blocks.

    Attributes:
        run_id: The run.
    """

    def __init__(self, connection: Connection, run_id: str, *, sweep: SweepConfig, base_name: str | None) -> None:
        self.run_id = run_id
        self._connection, self._sweep, self._base_name = connection, sweep, base_name
        self._held: list[Step] = []
        self._last_step: Step | None = None
        self._last_ms = 0
        self._uploader = MetricUploader(
            functools.partial(_log_metrics, connection, run_id),
            redactor=connection.redactor,
            on_interval=self._show_progress,
        )

    @property
    def location(self) -> str:
        """Where to look at the run."""
        return run_location(self._connection, self.run_id)

    def log_step(self, step: Step) -> None:
        """Queue a step of the sweep, or hold it until it is known which pass has the plain names of metrics.

        MLflow cannot take back a metric, and only the end of a sweep with auto-range shows which pass is its curve.
        """
        self._last_step = step
        if self._sweep.auto_range:
            self._held.append(step)
        else:
            self._add(live_point(step, self._sweep))

    def log_passes(self, *, curve_pass: int | None) -> None:
        """Queue what was held.

        Args:
            curve_pass: The pass with the plain names; None if the sweep has not ended.
        """
        for point in pass_points(self._held, self._sweep, curve_pass=curve_pass):
            self._add(point)
        self._held = []

    def log_trial_step(self, number: int, step: Step) -> None:
        """Queue a step of a confirmation run."""
        self._add(trial_step_point(number, step))

    def log_trial(self, trial: Trial, *, timestamp_ms: int) -> None:
        """Queue what a confirmation run has measured, at the time of its last step."""
        self._uploader.add(trial_point(trial, timestamp_ms=timestamp_ms))

    def end(self, state: RunState, *, note: str | None = None) -> None:
        """End the run and upload only a description, if there is one: the process ends within moments.

        May be called from another thread.
        """
        linked = None if note is None else link_figure(note, run_id=self.run_id)
        end_run(self._connection, self.run_id, state, note=linked)

    def finish(self, end: RunEnd) -> UploadFailure | None:
        """Upload what is left, the result, the description and the files, and end the run. Never raises.

        Returns:
            Why something is missing in MLflow; None if nothing is.
        """
        self._uploader.stop()
        failure = None
        try:
            if end.test is not None:
                self._log_result(end.test)  # first: the page lists metrics in the order of their first upload
            self._upload_points(end.test)
            delete_tag(self._connection, self.run_id, PROGRESS)
            set_note(self._connection, self.run_id, link_figure(end.note, run_id=self.run_id))
            if end.figure is not None:
                pin_image(self._connection, self.run_id, end.figure, key=FIGURE_KEY, step=0)
            self._log_files(end.directory)
        except Exception as error:  # noqa: BLE001 - the run directory holds everything; a view must not fail the run
            failure = upload_failure(error, self._connection.redactor)
        ended = end_run(self._connection, self.run_id, end.state)
        return failure or ended

    def _add(self, point: MetricPoint) -> None:
        self._last_ms = max(self._last_ms, point.timestamp_ms)
        self._uploader.add(point)

    def _upload_points(self, test: RangeTestResult | None) -> None:
        for point in pooled_points(test, self._sweep) if test is not None else ():
            self._uploader.add(point)
        self.log_passes(curve_pass=None if test is None else test.curve_number)
        self._uploader.flush()

    def _show_progress(self) -> None:
        """Say in a tag where the sweep is; called in the uploader's thread."""
        if (step := self._last_step) is not None:
            progress = f"step {step.step + 1} of {self._sweep.num_steps}, lr {step.lr:.1e}, loss {step.loss:.4g}"
            self._connection.client.set_tag(self.run_id, PROGRESS, progress)

    def _log_result(self, test: RangeTestResult) -> None:
        """Log suggested LR and verdict, with the time of the last record, so that a second upload changes nothing."""
        from mlflow.entities import Metric, RunTag

        time_ms = max(self._last_ms, test.steps[-1].timestamp_ms)
        self._connection.client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, time_ms, 0) for name, value in result_metrics(test).items()],
            tags=[RunTag(key, value) for key, value in result_tags(test).items()],
            synchronous=True,
        )
        if self._base_name is not None:
            name = name_with_lr(self._base_name, test.suggestion.lr)
            self._connection.client.update_run(self.run_id, name=self._connection.redactor.text(name))

    def _log_files(self, directory: Path) -> None:
        for file in artifacts(directory):
            folder = file.parent.relative_to(directory).as_posix()
            self._connection.client.log_artifact(self.run_id, str(file), None if folder == "." else folder)


def has_image(connection: Connection, run_id: str, *, key: str, step: int) -> bool:
    """Whether an image is pinned to a run's page."""
    pattern = re.compile(rf"/{re.escape(key)}[%+]step[%+]{step}[%+]")
    return any(pattern.search(item.path) for item in connection.client.list_artifacts(run_id, IMAGES))


def pin_image(connection: Connection, run_id: str, path: Path, *, key: str, step: int) -> None:
    """Pin a PNG to a run's page."""
    from PIL import Image

    with Image.open(path) as image:
        connection.client.log_image(run_id, image, key=key, step=step, synchronous=True)


def _log_inputs(
    connection: Connection,
    run_id: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    known_params: Mapping[str, str],
) -> None:
    from mlflow.entities import Param, RunTag

    client, redactor = connection.client, connection.redactor
    texts = {key: redactor.text(str(value)) for key, value in tags.items()}
    client.log_batch(run_id, tags=[RunTag(key, text) for key, text in texts.items()], synchronous=True)
    values = {_valid_name(key): value for key, value in flattened(redactor.tree(params)).items()}
    hidden = {*known_params, *UNLOGGED_PARAMS}
    new = [Param(key, value[:MAX_PARAM_LENGTH]) for key, value in values.items() if key not in hidden]
    for chunk in _chunks(new, MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=chunk, synchronous=True)


def _log_metrics(connection: Connection, run_id: str, metrics: Sequence[Any]) -> None:
    connection.client.log_batch(run_id, metrics=metrics, synchronous=True)


def _valid_name(key: str) -> str:
    """A key with what MLflow refuses in names replaced."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:MAX_NAME_LENGTH]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
