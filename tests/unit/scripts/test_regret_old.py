"""scripts/benchmarks/regret.py: the benchmark on 19 jobs scores what is kept, also after a rule has changed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "scripts/benchmarks"


@pytest.fixture(scope="module")
def regret() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("regret")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.startswith(("regret", "peer_packages"))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """Two jobs without their trials."""
    measured = json.loads((BENCHMARKS / "regret_data.json").read_text())
    return {name: measured[name] | {"trials": {}} for name in ("linear_sgd", "mlp_adamw")}


def test_trials_that_were_not_measured_leave_a_gap_and_a_sentence(
    regret: Any, kept: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Once --fast ended with "not measured before", and all that had been measured was not shown."""
    jobs = {name: regret.Known(name, job) for name, job in kept.items()}
    regret.report_confirmation(jobs, "peer: valley", {"peer: valley": np.full((2, 3), 0.2)})
    regret.report_lengths(jobs)
    printed = capsys.readouterr().out
    assert "| 0x | 2 | 0.0" in printed
    assert "| 5x | 0 |  |  |  |  |  |" in printed
    assert "trials that were not measured on all jobs; run it without --fast" in printed
    assert "nan" not in printed


def test_a_job_whose_sweeps_were_not_measured_is_left_out(
    regret: Any, kept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it leaves nothing to score, which ends in one sentence."""
    (tmp_path / "data.json").write_text(json.dumps({"linear_sgd": kept["linear_sgd"] | {"sweeps": {}}}))
    monkeypatch.setattr(regret, "DATA", tmp_path / "data.json")
    monkeypatch.setattr(sys, "argv", ["regret.py", "--fast"])
    with pytest.raises(SystemExit, match="no job has been measured; run it without --fast"):
        regret.main()
