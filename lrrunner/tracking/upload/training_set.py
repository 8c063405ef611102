"""The training set of a run, as an input in MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lrrunner.tracking.store.connection import Connection

SOURCE_TYPE = "code"
MAX_DIGEST_LENGTH = 36


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a sweep trains on.

    Attributes:
        name: Name of the class or function that makes it.
        source: Full name of that.
        num_samples: Samples in it; None if it is iterable.
        digest: Digest of its length, first and last sample; None where these cannot be read.
    """

    name: str
    source: str
    num_samples: int | None
    digest: str | None


def log_training_set(connection: Connection, run_id: str, training_set: TrainingSet) -> None:
    """Log a training set to a run. A second time changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    redact = connection.redactor.text
    dataset = Dataset(
        name=redact(training_set.name),
        digest=(training_set.digest or "unknown")[:MAX_DIGEST_LENGTH],
        source_type=SOURCE_TYPE,
        source=redact(training_set.source),
        profile=json.dumps({"num_rows": training_set.num_samples}),
    )
    used = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])
    connection.client.log_inputs(run_id, datasets=[used])
