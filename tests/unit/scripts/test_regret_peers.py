"""scripts/benchmarks: the rules of other finders, re-implemented and by their own packages, on measured sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "scripts/benchmarks"

RULE_PACKAGES = {
    "torch_lr_finder": "torch_lr_finder",
    "ignite": "ignite",
    "lightning": "lightning",
    "fastai_valley": "fastai",
    "fastai_slide": "fastai",
    "fastai_minimum": "fastai",
    "fastai_steep": "fastai",
}

COMPARISON = """
import json, sys
from pathlib import Path
from lrrunner.core.lr_schedules import exponential_lr
from oracle.store import Store
from peer_packages import PACKAGES
from regret_peers import PEERS

rules = {rule.__name__: rule for rule in PEERS}
found = {}
for job in ("mnist_mlp_adam", "signs_resnet_nesterov", "beijing_gru_adam", "teacher_mlp_momentum"):
    for ladder, sweep in Store(Path("oracle/measurements") / f"{job}.jsonl").sweeps.items():
        if ladder.num_steps != 100 or ladder.seed != 10:
            continue
        lrs = exponential_lr(start_lr=ladder.start_lr, end_lr=ladder.end_lr, num_steps=100)[: len(sweep.losses)]
        for name in sys.argv[1:]:
            package = PACKAGES[name]
            pair = [rules[name](lrs, sweep.losses), package.rule(lrs, sweep.losses)] if package.version else None
            found.setdefault(name, []).append(pair)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Any]]:
    """Rule -> what the re-implementation and the package suggest on each sweep; in a process of its own, as fastai
    changes torch and matplotlib when it is imported."""
    installed = [rule for rule, package in RULE_PACKAGES.items() if find_spec(package)]
    if not installed:
        return {}
    command = [sys.executable, "-c", COMPARISON, *installed]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return {rule: each for rule, each in found.items() if None not in each}


@pytest.mark.parametrize("rule", RULE_PACKAGES)
def test_a_reimplemented_rule_suggests_what_its_package_does(pairs: dict[str, list[Any]], rule: str) -> None:
    """Its smoothing, stop, cut and choice of a point: once ignite's memory was 0.05 instead of 0.95."""
    if rule not in pairs:
        pytest.skip(f"{RULE_PACKAGES[rule]} is not installed, or cannot be imported")
    ours, theirs = zip(*pairs[rule], strict=True)
    assert len(ours) >= 16
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_rules_without_their_packages_keep_what_the_packages_suggested() -> None:
    """On a sweep of mnist_mlp_adam: torch-lr-finder 0.2.2, ignite 0.5.5, lightning 2.6.6 and fastai 2.8.12."""
    code = """
import json
from pathlib import Path
from lrrunner.core.lr_schedules import exponential_lr
from oracle.store import Ladder, Store
from regret_peers import PEERS
sweep = Store(Path("oracle/measurements/mnist_mlp_adam.jsonl")).sweeps[Ladder(1e-7, 10.0, 100, 10)]
lrs = exponential_lr(start_lr=1e-7, end_lr=10.0, num_steps=100)
print(json.dumps({rule.__name__: rule(lrs, sweep.losses) for rule in PEERS}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "torch_lr_finder": pytest.approx(0.01024, rel=1e-3),
        "fastai_minimum": pytest.approx(0.003126, rel=1e-3),
        "fastai_slide": pytest.approx(0.04535, rel=1e-3),
        "fastai_steep": pytest.approx(0.01024, rel=1e-3),
        "fastai_valley": pytest.approx(0.0004329, rel=1e-3),
        "luz_gugger": pytest.approx(0.003126, rel=1e-3),
        "lightning": pytest.approx(0.0002057, rel=1e-3),
        "ignite": pytest.approx(0.01024, rel=1e-3),
        "tf2_article": pytest.approx(0.01233, rel=1e-3),
    }
