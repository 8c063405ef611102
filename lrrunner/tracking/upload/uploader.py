"""Uploads metrics from a background thread, in batches and away from the step path."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.names.metric_names import STEP_METRICS, MetricPoint
from lrrunner.tracking.store.failures import upload_failure

if TYPE_CHECKING:
    from mlflow.entities import Metric

UPLOAD_INTERVAL_S = 5.0

MAX_DUTY = 0.01
"""Share of the time that uploads may take while the sweep runs: thread and loop share the interpreter lock."""

MAX_POINTS_PER_BATCH = 1000 // len(STEP_METRICS)
"""MLflow takes a thousand metrics per call."""


class MetricUploader:
    """Queues metric points and uploads them every few seconds.

    Points carry the time at which they were measured, so that an upload may be repeated: it changes nothing.

    Args:
        upload: Sends a batch of metrics; what it raises is logged, and the batch is sent again later.
        redactor: Masks secrets in what is logged.
        on_interval: Called in the thread before each upload of it.
    """

    def __init__(
        self,
        upload: Callable[[list[Metric]], object],
        *,
        redactor: Redactor,
        on_interval: Callable[[], object] = lambda: None,
    ) -> None:
        self._upload, self._redactor, self._on_interval = upload, redactor, on_interval
        self._queue: queue.SimpleQueue[MetricPoint] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, point: MetricPoint) -> None:
        """Queue a point. Does not block."""
        self._queue.put(point)

    def stop(self) -> None:
        """End the thread, after the upload that it is at; what is queued stays queued."""
        self._stopping.set()
        self._thread.join()

    def flush(self) -> None:
        """Upload what is queued. A batch that fails returns to the end of the queue, and its error is raised."""
        for _ in range(self._queue.qsize() // MAX_POINTS_PER_BATCH + 1):
            batch = list(self._take(MAX_POINTS_PER_BATCH))
            try:
                if metrics := [metric for point in batch for metric in _metrics(point)]:
                    self._upload(metrics)
            except Exception:
                for point in batch:
                    self._queue.put(point)
                raise

    def _run(self) -> None:
        pause_s = UPLOAD_INTERVAL_S
        while not self._stopping.wait(pause_s):
            started = time.perf_counter()
            try:
                self._on_interval()
                self.flush()
            except Exception as error:  # noqa: BLE001 - a store that fails now must not disturb the sweep
                upload_failure(error, self._redactor)
            pause_s = max(UPLOAD_INTERVAL_S, (time.perf_counter() - started) / MAX_DUTY)

    def _take(self, limit: int) -> Iterator[MetricPoint]:
        for _ in range(limit):
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return


def _metrics(point: MetricPoint) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for name, value in point.values.items():
        yield Metric(f"{point.prefix}{name}", value, point.timestamp_ms, point.step)
