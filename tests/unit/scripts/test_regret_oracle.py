"""scripts/benchmarks/oracle: what is measured next, what a file keeps, and what regret is."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "scripts/benchmarks"


@pytest.fixture(scope="module")
def oracle() -> Iterator[Callable[[str], Any]]:
    """Imports a module of the benchmark, which lies beside its scripts."""
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(BENCHMARKS))
    yield lambda name: importlib.import_module(f"oracle.{name}")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.partition(".")[0] == "oracle"]:
        del sys.modules[name]


def filled(oracle: Callable[[str], Any], path: Path, loss: Callable[[int, int], float], *, start: int = -12) -> Any:
    """The store after everything that a plan asks for, with the loss of each position and seed."""
    plan, store = oracle("plan"), oracle("store").Store(path)
    store.add("initial", 0, 2.0)
    bowl = plan.Bowl(400, "constant", {0: 4, 1: 4, -1: 4, 2: 2, -2: 2, 4: 1, -4: 1}, (0, 1, 2, 3))
    for _ in range(200):
        training = plan.next_training(store, bowl, start=start)
        if training is None:
            return store
        value = loss(training.position, training.seed)
        store.add("train", 400, "constant", training.position, training.seed, value if math.isfinite(value) else None)
    raise AssertionError("the plan does not end")


@pytest.mark.parametrize("best", [-20, -13, -12, -5, 1])
def test_the_plan_finds_the_lowest_loss_and_measures_it_with_every_seed(
    oracle: Callable[[str], Any], tmp_path: Path, best: int
) -> None:
    """Wherever it lies from the usual LR, also short of a divergence two positions above it."""
    store = filled(
        oracle,
        tmp_path / "job.jsonl",
        lambda position, seed: math.inf if position > best + 2 else 1.0 + 0.02 * (position - best) ** 2,
    )
    by_position = store.trainings[400, "constant"]
    assert {position: len(by_position[position]) for position in (best - 1, best, best + 1)} == dict.fromkeys(
        (best - 1, best, best + 1), 4
    )
    assert oracle("bowls").bowl(store, 400, "constant").best_position == best


@pytest.mark.parametrize("level", [1.99999, 2.0, math.inf])
def test_the_plan_ends_where_nothing_is_learnt(oracle: Callable[[str], Any], tmp_path: Path, level: float) -> None:
    """25 steps of a slow job end where they began, at any LR: one search went down to 1e-490."""
    store = filled(oracle, tmp_path / "job.jsonl", lambda position, seed: level)
    assert min(store.trainings[400, "constant"]) >= -12 - 16
    assert max(store.trainings[400, "constant"]) <= -12 + 16


def test_a_killed_measurement_loses_its_last_line_alone(oracle: Callable[[str], Any], tmp_path: Path) -> None:
    """The line that was being written is not read, and the next one does not follow on it."""
    path = tmp_path / "job.jsonl"
    path.write_text('["initial",0,2.0]\n["train",400,"cons')
    store = oracle("store").Store(path)
    assert store.initial == {0: 2.0}
    store.add("train", 400, "constant", -12, 0, 1.5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        ["initial", 0, 2.0],
        ["train", 400, "constant", -12, 0, 1.5],
    ]


def test_regret_is_the_share_of_the_fall_that_is_lost(oracle: Callable[[str], Any]) -> None:
    """From 2.0 to 1.0 at best; one collapsed seed of four does not count; between LRs it is linear in the log."""
    found = oracle("bowls").Bowl([-8, -4, 0, 4], [[1.5] * 4, [1, 1, 1, math.inf], [1.25] * 4, [math.inf] * 4], 2.0)
    regret = found.regret([1e-2, 0.1, 1.0, 10.0, 10**-0.5, None])
    assert regret.tolist() == pytest.approx([0.5, 0.0, 0.25, 1.0, 0.125, 1.0])


@pytest.mark.parametrize("losses", [[0.9, 1.1], [1.0, 1.0, 1.0, math.inf]])
def test_an_optimizer_without_an_lr_may_beat_the_best_lr(oracle: Callable[[str], Any], losses: list[float]) -> None:
    """From 2.0 to 1.2 at the best LR: its regret is negative then; one collapsed seed of four does not count."""
    found = oracle("bowls").Bowl(np.array([-8, -4, 0]), np.array([[1.5], [1.2], [1.25]]), 2.0)
    assert found.share_lost(losses) == pytest.approx(-0.25)
    assert found.share_lost([math.inf]) == 1.0


@pytest.mark.parametrize("total_steps", [300, 600, 1200])
@pytest.mark.parametrize("name", ["successive_halving", "random_search", "coarse_grid"])
def test_an_alternative_spends_the_steps_that_it_is_compared_at(
    oracle: Callable[[str], Any], name: str, total_steps: int
) -> None:
    """Ours has no more; its LR is the best of those tried, within two decades of the usual one."""
    spent, tried = [], []

    class Table:
        def loss(self, lr: float, num_steps: int) -> float:
            spent.append(num_steps)
            tried.append(lr)
            return abs(math.log10(lr) + 2.0)

    lr = getattr(oracle("alternatives"), name)(Table(), 1e-3, np.random.default_rng(0), total_steps=total_steps)
    assert sum(spent) == total_steps
    assert lr == min(tried, key=lambda lr: abs(math.log10(lr) + 2.0))
    assert 1e-5 <= min(tried) <= max(tried) <= 1e-1


def test_differences_are_paired_by_job(oracle: Callable[[str], Any]) -> None:
    """Over the jobs that both rules have; a constant difference has no spread, however different the jobs are."""
    columns = {"a": [0.1] * 201, "b": [0.5] * 201, "c": [0.9] * 201}
    ours = {job: np.array(values) for job, values in columns.items()}
    theirs = {job: np.array(values) + 0.02 for job, values in columns.items() if job != "c"}
    difference = oracle("comparisons").paired_difference({"ours": ours, "theirs": theirs}, "theirs", "ours")
    assert difference == pytest.approx((0.02, 0.02, 0.02))


def test_every_job_counts_as_one_kind_of_data(oracle: Callable[[str], Any]) -> None:
    """A job of a new kind would be missing from the table."""
    kinds = oracle("comparisons").kinds
    assert {len([kind for kind in kinds(job) if kind.startswith("data: ")]) for job in oracle("catalog").jobs()} == {1}


def test_an_averaged_model_is_evaluated_with_its_own_batch_statistics(oracle: Callable[[str], Any]) -> None:
    """As schedulefree's documentation asks for: 50 more batches, which move no weight; others see none."""
    torch = pytest.importorskip("torch")
    lr_free = oracle("lr_free")
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))

    class Averaging(torch.optim.SGD):  # type: ignore[name-defined, misc]
        def eval(self) -> None:
            model[0].weight.data.fill_(2.0)

    batches = iter([torch.zeros(4, 1)] * 60)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    lr_free.evaluation_mode(plain, model, lambda model, batch: model(batch), batches)
    assert model[1].num_batches_tracked == 0
    averaging = Averaging(model.parameters(), lr=0.1)
    lr_free.evaluation_mode(averaging, model, lambda model, batch: model(batch), batches)
    assert model[1].num_batches_tracked == 50
    assert model[0].weight.item() == 2.0


@pytest.mark.parametrize(
    ("name", "package"), [("Prodigy", "prodigyopt"), ("schedule-free AdamW", "schedulefree")], ids=lambda value: value
)
def test_an_optimizer_without_an_lr_learns_in_place_of_the_jobs_own(
    oracle: Callable[[str], Any], name: str, package: str
) -> None:
    """From the same initial weights; its validation loss falls below a third of the initial one on digits."""
    pytest.importorskip(package)
    job = next(job for job in oracle("catalog").jobs() if job.name == "digits_mlp_adamw")
    laboratory = oracle("trainings").Laboratory(job, None)
    initial = laboratory.val_loss(laboratory.model(0))
    assert laboratory.trained_without_lr(name, num_steps=150, schedule="constant", seed=0) < initial / 3


def test_test_jobs_are_chosen_by_their_names_alone(oracle: Callable[[str], Any]) -> None:
    """A third, the same in every version, by a rule that knows nothing of results."""
    catalog = oracle("catalog")
    groups: dict[str, list[str]] = {}
    for job in catalog.jobs():
        adam = "adam real" if job.real else "adam embedded"
        kinds = {"momentum": "momentum", "nesterov": "momentum", "adam": adam, "adamw": adam}
        groups.setdefault(kinds.get(job.optimizer, "other"), []).append(job.name)
    ordered = [sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()) for names in groups.values()]
    assert {name for names in ordered for name in names[::3]} == catalog.TEST_JOBS
    assert len(catalog.jobs()) == 50
    assert sum(job.real for job in catalog.jobs()) == 38


def test_every_line_of_the_measurements_is_read(oracle: Callable[[str], Any]) -> None:
    """Each job has a file, its trainings and what optimizers without an LR reach; a merge once kept two forms."""
    store = oracle("store")
    for job in oracle("catalog").jobs():
        found = store.Store(BENCHMARKS / f"oracle/measurements/{job.name}.jsonl")
        assert found.initial.keys() == {0, 1, 2, 3}
        assert {(name, len(by_training)) for name, by_training in found.lr_free.items()} == {
            ("Prodigy", 2),
            ("schedule-free AdamW", 1),
        }
