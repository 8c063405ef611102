"""A store in memory with the part of MLflow's client that lrrunner uses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.store.connection import Connection


class FakeClient:
    """Keeps what is logged to its only run.

    Args:
        params: Params that the run has already.
        metrics: Metrics that the run has already.
        failing: Names of methods, each of which raises once for each time it is listed.
    """

    def __init__(
        self,
        *,
        params: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        failing: tuple[str, ...] = (),
    ) -> None:
        self.failing = list(failing)
        self._data = SimpleNamespace(params=params or {}, metrics=metrics or {})
        self.params: list[dict[str, str]] = []
        """Params of each call."""
        self.metrics: list[tuple[str, float, int, int]] = []
        self.tags: dict[str, str] = {}
        self.artifacts: list[tuple[str, str | None]] = []
        self.images: list[tuple[str, int]] = []
        self.datasets: list[tuple[str, str, str]] = []
        self.status = "RUNNING"
        self.name = "my run"
        self.filter_string = ""

    def get_run(self, run_id: str) -> Any:
        data = SimpleNamespace(**vars(self._data), tags=dict(self.tags))
        info = SimpleNamespace(run_name=self.name, status=self.status, lifecycle_stage="active")
        return SimpleNamespace(info=info, data=data)

    def update_run(self, run_id: str, *, name: str | None = None, status: str | None = None) -> None:
        self.name = name or self.name
        self.status = status or self.status

    def delete_run(self, run_id: str) -> None:
        self.status = "DELETED"

    def delete_tag(self, run_id: str, key: str) -> None:
        del self.tags[key]

    def log_batch(
        self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), *, synchronous: bool = False
    ) -> None:
        assert synchronous, "an asynchronous call may be lost at exit"
        if metrics:
            self._fail("log_metrics")
        self.metrics += [(item.key, item.value, item.timestamp, item.step) for item in metrics]
        if params:
            self.params.append({item.key: item.value for item in params})
        self.tags |= {item.key: item.value for item in tags}

    def log_inputs(self, run_id: str, *, datasets: Any) -> None:
        self.datasets += [(item.dataset.name, item.dataset.digest, item.dataset.profile) for item in datasets]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self.artifacts.append((path, None))

    def log_artifact(self, run_id: str, path: str, folder: str | None = None) -> None:
        self._fail("log_artifact")
        self.artifacts.append((path.rpartition("/")[2], folder))

    def log_image(self, run_id: str, image: Any, *, key: str, step: int, synchronous: bool) -> None:
        self.images.append((key, step))

    def list_artifacts(self, run_id: str, folder: str) -> list[Any]:
        return [SimpleNamespace(path=f"{folder}/{key}%step%{step}%timestamp%1.png") for key, step in self.images]

    def set_terminated(self, run_id: str, status: str) -> None:
        self._fail("set_terminated")
        self.status = status

    def search_runs(self, experiment_ids: list[str], filter_string: str, *, max_results: int) -> list[Any]:
        self.filter_string = filter_string
        return []

    def _fail(self, name: str) -> None:
        if name in self.failing:
            self.failing.remove(name)
            raise RuntimeError(f"{name} failed for http://ann:secret@host")


def connected(client: FakeClient, *, uri: str = "http://host:5000") -> Connection:
    """A connection to the store."""
    stand_in: Any = client
    return Connection(client=stand_in, uri=uri, experiment="lrrunner", experiment_id="7", redactor=Redactor(["secret"]))
