"""MLflow runs whose process died without ending them, by SIGKILL or with the machine."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from lrrunner.results.run_state import RunState
from lrrunner.results.status_file import close_abandoned
from lrrunner.system.process_identity import is_alive, process_identity
from lrrunner.tracking.tag_names import HOST, PROCESS, RUN_DIR

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_RUNS = 100


def owner_tags() -> dict[str, str]:
    """Tags that name this process as the one that ends a run."""
    return {HOST: socket.gethostname(), PROCESS: process_identity()}


def end_abandoned_runs(client: MlflowClient, experiment_id: str) -> None:
    """End runs of this machine whose process is gone: as their run directories say, and else as killed, there too."""
    running = RunState.RUNNING.mlflow_status
    runs = client.search_runs(
        [experiment_id],
        f"attributes.status = '{running}' and tags.`{HOST}` = '{socket.gethostname()}'",
        max_results=MAX_RUNS,
    )
    for run in runs:
        identity = run.data.tags.get(PROCESS, "")
        if identity and not is_alive(identity):
            state = close_abandoned(Path(run.data.tags.get(RUN_DIR, "")))
            client.set_terminated(run.info.run_id, state.mlflow_status)
