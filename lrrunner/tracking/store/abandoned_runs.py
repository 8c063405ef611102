"""MLflow runs whose process died without ending them, by SIGKILL or with the machine."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from lrrunner.results.run_state import ENDED, RunState, state_in
from lrrunner.results.status_file import close_abandoned, read_status
from lrrunner.system.processes.process_identity import is_gone, process_identity
from lrrunner.tracking.names.tag_names import HOST, PROCESS, RUN_DIR

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_RUNS = 100

logger = logging.getLogger(__name__)


def owner_tags() -> dict[str, str]:
    """Tags that name this process as the one that ends a run."""
    return {HOST: socket.gethostname(), PROCESS: process_identity()}


def end_abandoned_runs(client: MlflowClient, experiment_id: str) -> None:
    """End runs whose process is gone: as their run directories say, and else as killed, there too.

    Only runs that provably were this user's on this machine are touched. Everybody can write to the store: what is odd
    in it is ignored, and a run that it does not let us end stays as it is.
    """
    running = RunState.RUNNING.mlflow_status
    runs = client.search_runs(
        [experiment_id],
        f"attributes.status = '{running}' and tags.`{HOST}` = '{socket.gethostname()}'",
        max_results=MAX_RUNS,
    )
    for run in runs:
        tags = run.data.tags
        if not is_gone(tags.get(PROCESS)):
            continue
        state = _closed_state(tags.get(RUN_DIR, ""))
        try:
            client.set_terminated(run.info.run_id, state.mlflow_status)
        except Exception as error:  # noqa: BLE001 - the store may refuse; the sweep that starts now must not fail
            logger.info("the abandoned run %s stays as it is: %s", run.info.run_id, type(error).__name__)


def _closed_state(run_dir: str) -> RunState:
    """How the run in a directory ended; one that was running, and whose process is gone as well, is closed."""
    directory = Path(run_dir)
    if not directory.is_absolute():
        return RunState.KILLED
    status = read_status(directory)
    state = state_in(status)
    if state == RunState.RUNNING and is_gone(status.get("process")):
        return close_abandoned(directory)
    return state if state in ENDED else RunState.KILLED
