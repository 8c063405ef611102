"""The data set of a run is an input in MLflow, so that runs on other data are not compared by mistake."""

from __future__ import annotations

from lrrunner.tracking.upload.training_set import MAX_DIGEST_LENGTH, TrainingSet, log_training_set
from tests.unit.tracking.store.fake_store import FakeClient, connected


def test_name_size_and_digest_are_logged() -> None:
    """MLflow takes digests of at most 36 characters."""
    client = FakeClient()
    log_training_set(
        connected(client), "a1", TrainingSet(name="digits", source="mine.digits", num_samples=1437, digest="f" * 64)
    )
    assert client.datasets == [("digits", "f" * MAX_DIGEST_LENGTH, '{"num_rows": 1437}')]


def test_data_that_cannot_be_read_twice_has_no_digest() -> None:
    """Iterable data, say, whose length is not known either."""
    client = FakeClient()
    log_training_set(connected(client), "a1", TrainingSet(name="s", source="m.s", num_samples=None, digest=None))
    assert client.datasets == [("s", "unknown", '{"num_rows": null}')]
