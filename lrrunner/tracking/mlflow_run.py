"""The MLflow view of a run directory. Rank 0 only; the one module that imports mlflow, and not before it is needed.

Nothing here runs on the step path: a thread sends records in batches, with their own timestamps, so that sending one
twice changes nothing. What a server misses stays in the run directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from lrrunner.errors import ConfigError
from lrrunner.records import RangeTestResult
from lrrunner.results.run_state import RunState
from lrrunner.results.status_file import close_abandoned
from lrrunner.system.plain_values import flattened
from lrrunner.system.process_identity import is_alive, process_identity
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.metric_names import STEP_METRICS, MetricPoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLUSH_INTERVAL_S = 5.0

MAX_DUTY = 0.01
"""Share of the time that sending may take while the sweep runs: the thread and the loop share one interpreter lock."""

MAX_STEPS_PER_BATCH = 1000 // len(STEP_METRICS)
"""MLflow takes a thousand metrics a call."""

MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_NOTE_LENGTH = 8000
SUMMARY_TABLE = "summary.json"
UNREACHABLE = ("Max retries exceeded", "database is locked", "Connection refused", "could not connect", "timed out")
SQLITE = "sqlite:///"
LOCAL_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")

logger = logging.getLogger(__name__)


def configure_mlflow(timeout_s: float) -> None:
    """Short retries for this process's calls (by default one call to a dead server blocks for minutes)."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(timeout_s))))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def absolute_uri(uri: str) -> str:
    """A sqlite URI with an absolute path, so that it stays valid when a process changes its directory.

    Raises:
        ConfigError: the database's folder does not exist.
    """
    found = anchored_uri(uri)
    if found.startswith(SQLITE) and not (folder := Path(found[len(SQLITE) :]).parent).is_dir():
        raise ConfigError([f"tracking.uri must lie in an existing directory, got {folder}; create it"])
    return found


def anchored_uri(uri: str) -> str:
    """The same without the check, for the record: a later process may look from another directory.

    >>> anchored_uri("sqlite:////data/a.db"), anchored_uri("http://host:5000")
    ('sqlite:////data/a.db', 'http://host:5000')
    """
    return f"{SQLITE}{Path(uri[len(SQLITE) :]).resolve()}" if uri.startswith(SQLITE) else uri


class ScriptTracking(NamedTuple):
    """Where the script around us logs: its store, its experiment and its active run, as far as it has any."""

    uri: str
    experiment: str | None
    run_id: str | None


def script_tracking() -> ScriptTracking:
    """What MLflow's fluent API would use in this process."""
    import mlflow

    uri, active = mlflow.get_tracking_uri(), mlflow.active_run()
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if active is None else active.info.experiment_id
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if experiment_id:
        experiment = mlflow.MlflowClient(tracking_uri=uri).get_experiment(experiment_id).name
    return ScriptTracking(uri, experiment, None if active is None else active.info.run_id)


class MlflowRun:
    """One run in MLflow, from the check that the store answers to its final status.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment; made if missing.
        redactor: Masks secrets in everything sent.

    Raises:
        ConfigError: the store refuses what is asked of it (not: it does not answer).
        ConnectionError: the store does not answer.
    """

    def __init__(self, *, uri: str, experiment: str, redactor: Redactor) -> None:
        from mlflow import MlflowClient

        # run_id stays empty until the run is started
        self.uri = absolute_uri(uri)
        self.experiment = experiment
        self.run_id = self.run_name = ""
        self.error: str | None = None
        self.refused = False
        self._redactor = redactor
        self._queue: queue.SimpleQueue[MetricPoint] = queue.SimpleQueue()
        self._sent_prefixes: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="mlflow", daemon=True)
        try:
            with _first_touch_lock(self.uri):
                self._client: MlflowClient = MlflowClient(tracking_uri=self.uri)
                self.experiment_id = _experiment_id(self._client, experiment, self.uri)
            _end_abandoned_runs(self._client, self.experiment_id)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - SQLAlchemy, drivers and MLflow raise whatever they like
            message = redactor.text((str(error).strip() or type(error).__name__).splitlines()[0])
            shown = redactor.text(self.uri)
            if _is_unreachable(error):
                raise ConnectionError(message) from None
            raise ConfigError(
                [f"tracking.uri must name a usable store, got {shown} ({message}); or set tracking.enabled=false"]
            ) from None

    def create(self, *, run_name: str, tags: Mapping[str, str]) -> str:
        """Create the run.

        Args:
            run_name: Shown name.
            tags: The user's tags and ours.

        Returns:
            The run's id.
        """
        all_tags = {
            **_context_tags(),
            "lrrunner.host": socket.gethostname(),
            "lrrunner.process": process_identity(),
            **tags,
        }
        run = self._client.create_run(
            self.experiment_id,
            run_name=self._redactor.text(run_name),
            tags={key: self._redactor.text(str(value)) for key, value in all_tags.items()},
        )
        self.run_id = run.info.run_id
        self.run_name = self._redactor.text(run_name)
        return self.run_id

    def start(
        self,
        *,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        """Create the run, or join one that a supervisor has made, and begin to send what :meth:`log` is given.

        Args:
            run_name: Shown name.
            params: Resolved configuration.
            tags: The user's tags and ours.
            run_id: The run to join.
        """
        from mlflow.entities import Param, RunTag

        has_params: Mapping[str, str] = {}
        if run_id is None:
            self.create(run_name=run_name, tags=tags)
        else:
            self.run_id, self.run_name = run_id, self._redactor.text(run_name)
            texts = [RunTag(key, self._redactor.text(str(value))) for key, value in tags.items()]
            self._client.log_batch(self.run_id, tags=texts)
            known = self._client.get_run(run_id).data
            self._sent_prefixes = {name[: name.rfind("/") + 1] for name in known.metrics}
            has_params = known.params
        flat = flattened(self._redactor.tree(params))
        entities = [Param(_valid_name(key), value[:MAX_PARAM_LENGTH]) for key, value in flat.items()]
        entities = [param for param in entities if param.key not in has_params]  # a param can never change
        for chunk in _chunks(entities, MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=chunk)
        self._thread.start()

    def log(self, point: MetricPoint) -> None:
        """Pass metrics to the sending thread."""
        self._queue.put(point)

    def finish(
        self,
        *,
        status: str,
        test: RangeTestResult | None = None,
        final: Sequence[MetricPoint] = (),
        superseded: Callable[[str], bool] = lambda prefix: False,
        note: str,
        files: Iterable[Path],
        root: Path,
        picture: Path | None = None,
    ) -> None:
        """Send what is left, the suggestion, the picture and the files, and set the final status.

        Args:
            status: FINISHED, FAILED or KILLED.
            test: The range test, if it came to one.
            final: What is only known to be final now.
            superseded: Which prefixes of live steps ``final`` makes superfluous; they are not sent unless it has begun.
            note: Markdown for the run's description.
            files: Artifacts.
            root: The folder that artifact paths are relative to.
            picture: The PNG to pin.
        """
        if not self.run_id:
            return
        self._closing.set()
        self._thread.join()
        try:
            self._drop_pending(superseded)
            for point in final:
                self._queue.put(point)
            self._send_pending()
            if test is not None:
                self._send_result(test)
            self._client.set_tag(self.run_id, "mlflow.note.content", self._redactor.text(note)[:MAX_NOTE_LENGTH])
            if picture is not None:
                self._pin(picture)
            for file in files:
                folder = file.parent.relative_to(root).as_posix()
                self._client.log_artifact(self.run_id, str(file), None if folder == "." else folder)
        except Exception as error:  # noqa: BLE001 - any failure of a view leaves the truth on disk and must not hide it
            self._note_error(error)
        finally:
            self.set_status(status)

    def set_status(self, status: str) -> None:
        """End the run, if it was started, with an explicit status."""
        if not self.run_id:
            return
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception as error:  # noqa: BLE001 - as in finish
            self._note_error(error)

    def finish_empty(self, status: str, *, note: str) -> None:
        """End a run that came to nothing, with a word about why."""
        self._client.set_tag(self.run_id, "mlflow.note.content", self._redactor.text(note)[:MAX_NOTE_LENGTH])
        self.set_status(status)

    def reopen(self, run_id: str) -> None:
        """Go on with a run that has ended, on behalf of this process."""
        self._client.update_run(run_id, status=RunState.RUNNING.mlflow_status)
        self._client.set_tag(run_id, "lrrunner.host", socket.gethostname())
        self._client.set_tag(run_id, "lrrunner.process", process_identity())

    def publish(
        self,
        run_id: str,
        *,
        status: str,
        note: str,
        table: Mapping[str, Any],
        pictures: Sequence[Path],
        picture_step: int,
        files: Iterable[Path],
        tags: Mapping[str, str],
    ) -> None:
        """Bring the page of a batch up to date. Sending twice changes nothing.

        Args:
            run_id: The batch's run.
            status: FINISHED, FAILED or KILLED.
            note: Markdown for the description.
            table: Columns and rows, for a table artifact.
            pictures: PNGs, pinned under their names.
            picture_step: Tells an earlier state of the batch from a later one.
            files: Further artifacts.
            tags: Counts.
        """
        from PIL import Image

        self.run_id = run_id
        try:
            self.run_name = self._client.get_run(run_id).info.run_name
            self._client.log_text(run_id, json.dumps(table), SUMMARY_TABLE)
            self._client.set_tag(
                run_id, "mlflow.loggedArtifacts", json.dumps([{"path": SUMMARY_TABLE, "type": "table"}])
            )
            pinned = [item.path for item in self._client.list_artifacts(run_id, "images")]
            for path in pictures:
                self._client.log_artifact(run_id, str(path))
                name = re.compile(rf"/{re.escape(path.stem)}[%+]step[%+]{picture_step}[%+]")
                if not any(map(name.search, pinned)):
                    with Image.open(path) as image:
                        self._client.log_image(run_id, image, key=path.stem, step=picture_step, synchronous=True)
            for path in files:
                self._client.log_artifact(run_id, str(path))
            all_tags = {"mlflow.note.content": note[:MAX_NOTE_LENGTH], **tags}
            for key, text in all_tags.items():
                self._client.set_tag(run_id, key, self._redactor.text(text))
        except Exception as error:  # noqa: BLE001 - as in finish
            self._note_error(error)
        finally:
            self.set_status(status)

    def status(self, run_id: str) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self._client.get_run(run_id).info.status)

    def exists(self, run_id: str) -> bool:
        """Whether the store has a run, and nobody has deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The id of a run of the experiment that has these tags."""
        wanted = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
        found = self._client.search_runs([self.experiment_id], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def has_picture(self, run_id: str) -> bool:
        """Whether the picture of a run is pinned already."""
        return any("lr_sweep" in item.path for item in self._client.list_artifacts(run_id, "images"))

    def delete(self, run_id: str) -> None:
        """Remove a run that turned out to be a mistake."""
        try:
            self._client.delete_run(run_id)
        except Exception as error:  # noqa: BLE001 - as in finish
            self._note_error(error)

    def location(self) -> str:
        """Where to look at the run, in words."""
        shown = self._redactor.text(self.uri)
        if self.uri.startswith("http"):
            return f"{shown}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"run {self.run_name} ({self.run_id}) in experiment {self.experiment} of {shown}"

    def _drop_pending(self, superseded: Callable[[str], bool]) -> None:
        """Forget live steps of a short sweep that nobody has seen, instead of showing everything twice."""
        for point in list(_taken(self._queue, self._queue.qsize())):
            if point.prefix in self._sent_prefixes or not superseded(point.prefix):
                self._queue.put(point)

    def _send_result(self, test: RangeTestResult) -> None:
        """Suggested LR and verdict."""
        for key, value in _result_metrics(test).items():
            # with the time of the last step, so that sending it twice changes nothing
            self._client.log_metric(self.run_id, key, value, timestamp=test.steps[-1].timestamp_ms, synchronous=True)
        for key, text in _result_tags(test).items():
            self._client.set_tag(self.run_id, key, text)

    def _pin(self, picture: Path) -> None:
        from PIL import Image

        with Image.open(picture) as image:
            self._client.log_image(self.run_id, image, key="lr_sweep", step=0, synchronous=True)

    def _send_until_closed(self) -> None:
        pause = FLUSH_INTERVAL_S
        while not self._closing.wait(pause):
            started = time.perf_counter()
            try:
                self._send_pending()
            except Exception as error:  # noqa: BLE001 - a server's bad moment must not touch the sweep
                self._note_error(error)
            pause = max(FLUSH_INTERVAL_S, (time.perf_counter() - started) / MAX_DUTY)

    def _send_pending(self) -> None:
        """Send what is queued; a batch that fails goes back to the end of the queue."""
        for _ in range(self._queue.qsize() // MAX_STEPS_PER_BATCH + 1):
            batch = list(_taken(self._queue, MAX_STEPS_PER_BATCH))
            try:
                if metrics := [metric for point in batch for metric in _metrics(point)]:
                    self._client.log_batch(self.run_id, metrics=metrics)
                self._sent_prefixes |= {point.prefix for point in batch}
            except Exception:
                for item in batch:
                    self._queue.put(item)
                raise

    def _note_error(self, error: Exception) -> None:
        self.refused = not _is_unreachable(error)
        self.error = self._redactor.text(str(error).splitlines()[0] if str(error) else type(error).__name__)
        logger.info("MLflow: %s", self.error)


def _metrics(point: MetricPoint) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(f"{point.prefix}{name}", value, point.timestamp_ms, point.step) for name, value in point.values.items()
    ]


def _result_metrics(test: RangeTestResult) -> dict[str, float]:
    metrics: dict[str, float | None] = {}
    suggestion, noise = test.suggestion, test.noise_scale
    if suggestion.lr is not None and suggestion.interval is not None:
        low, high = suggestion.interval
        metrics |= {"suggested_lr": suggestion.lr, "suggested_lr_low": low, "suggested_lr_high": high}
    if noise is not None:
        metrics |= {
            "critical_batch_size": noise.critical_batch_size,
            "critical_batch_size_low": noise.low,
            "critical_batch_size_high": noise.high,
        }
    return {key: value for key, value in metrics.items() if value is not None}


def _result_tags(test: RangeTestResult) -> dict[str, str]:
    tags = {"lrrunner.verdict": str(test.suggestion.verdict), "lrrunner.stop_reason": str(test.stop.reason)}
    non_finite = [step.step for step in test.curve_steps if not step.is_finite]
    if non_finite:
        tags["lrrunner.first_nonfinite_step"] = str(min(non_finite))
    return tags


def _context_tags() -> dict[str, str]:
    """The user, source and commit tags that MLflow's fluent API would set."""
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = resolve_tags()
    return tags


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        local = uri.partition(":")[0].partition("+")[0] in LOCAL_SCHEMES
        # the tag makes the UI show metrics and charts first, not traces and prompts
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(
                client.create_experiment(
                    name,
                    artifact_location=Path("mlartifacts").resolve().as_uri() if local else None,
                    tags=tags,
                )
            )
        except MlflowException:
            found = client.get_experiment_by_name(name)  # somebody else was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            [f"tracking.experiment must not be a deleted one, got {name}; restore it or choose another name"]
        )
    return str(found.experiment_id)


def _end_abandoned_runs(client: MlflowClient, experiment_id: str) -> None:
    """Runs of this machine whose process is gone, after a crash of it or a SIGKILL, end as KILLED."""
    host = socket.gethostname()
    for run in client.search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' and tags.`lrrunner.host` = '{host}'", max_results=100
    ):
        identity = run.data.tags.get("lrrunner.process", "")
        if identity and not is_alive(identity):
            client.set_terminated(run.info.run_id, RunState.KILLED.mlflow_status)
            close_abandoned(Path(run.data.tags.get("lrrunner.run_dir", "")))


def _is_unreachable(error: Exception) -> bool:
    """Connection trouble, as opposed to a store that answers with a refusal."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(type(cause).__module__.partition(".")[0])
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    return "requests" in causes or "urllib3" in causes or any(mark in text for mark in UNREACHABLE)


def _quoted(value: str) -> str:
    """For a search; MLflow knows no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _first_touch_lock(uri: str) -> FileLock:
    """Two processes that create one database's schema at once crash each other."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"lrrunner-mlflow-{os.getuid()}-{name}.lock")


def _valid_name(key: str) -> str:
    """A key with what MLflow refuses in names replaced."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _taken(source: queue.SimpleQueue[MetricPoint], limit: int) -> Iterator[MetricPoint]:
    for _ in range(limit):
        try:
            yield source.get_nowait()
        except queue.Empty:
            return
