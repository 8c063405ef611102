"""Metrics reach MLflow once, whatever fails on the way."""

from __future__ import annotations

from typing import Any

import pytest

from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.names.metric_names import MetricPoint
from lrrunner.tracking.upload.uploader import MAX_POINTS_PER_BATCH, MetricUploader


class Store:
    """Takes batches; raises on the calls whose number is in ``failing``."""

    def __init__(self, *, failing: tuple[int, ...] = ()) -> None:
        self.failing = failing
        self.num_calls = 0
        self.metrics: list[tuple[str, float, int, int]] = []

    def __call__(self, metrics: list[Any]) -> None:
        self.num_calls += 1
        if self.num_calls in self.failing:
            raise RuntimeError("no answer")
        self.metrics += [(metric.key, metric.value, metric.timestamp, metric.step) for metric in metrics]


def uploader(store: Store) -> MetricUploader:
    """An uploader whose thread has ended, so that only the test flushes."""
    made = MetricUploader(store, redactor=Redactor())
    made.stop()
    return made


def point(step: int, prefix: str = "") -> MetricPoint:
    return MetricPoint({"loss": 2.0}, step, 1000 + step, prefix)


def test_points_keep_their_name_step_and_time() -> None:
    """A second upload of the same point then changes nothing."""
    store = Store()
    uploads = uploader(store)
    uploads.add(point(3, "pass_0/"))
    uploads.flush()
    assert store.metrics == [("pass_0/loss", 2.0, 1003, 3)]


def test_a_batch_that_failed_is_sent_again() -> None:
    """The server was down for a moment: nothing is lost and nothing is sent twice."""
    store = Store(failing=(2,))
    uploads = uploader(store)
    steps = range(MAX_POINTS_PER_BATCH + 1)
    for step in steps:
        uploads.add(point(step))
    with pytest.raises(RuntimeError, match="no answer"):
        uploads.flush()
    uploads.flush()
    assert sorted(step for *_, step in store.metrics) == list(steps)


def test_steps_without_metrics_send_nothing() -> None:
    """MLflow need not be called for a skipped step."""
    store = Store()
    uploads = uploader(store)
    uploads.add(MetricPoint({}, 0, 1000))
    uploads.flush()
    assert store.num_calls == 0
