"""Names of the tags that runs in MLflow carry."""

from __future__ import annotations

VERSION = "lrrunner.version"
RUN_DIR = "lrrunner.run_dir"
WORLD_SIZE = "lrrunner.world_size"

HOST = "lrrunner.host"
PROCESS = "lrrunner.process"
"""Identity of the process that ends the run; another one ends it if that process is gone."""

MODEL, OPTIMIZER, GLOBAL_BATCH_SIZE = "model", "optimizer", "global_batch_size"
"""Short names of what the runs table is sorted and filtered by, as tags and params."""

PROGRESS = "lrrunner.progress"
"""Where a running sweep is; absent once it has ended."""

VERDICT = "lrrunner.verdict"
SHORT_VERDICT = "verdict"
STOP_REASON = "lrrunner.stop_reason"
FIRST_NONFINITE_STEP = "lrrunner.first_nonfinite_step"

BATCH = "lrrunner.batch"
"""On the summary run of a batch."""

JOB = "lrrunner.job"
"""Number of the job, on each run of a batch."""

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"
"""Artifacts that the run's page shows as tables."""
