"""scripts/gpu_check: a machine without a GPU is no failure, and a table says what was found on one with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.check import CsvTable

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_says_so() -> None:
    """Also where there is one that is hidden; nothing is installed for that."""
    done = subprocess.run(
        [ROOT / "scripts/gpu_check"],
        env=dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no GPU was found (nvidia-smi -L, CUDA_VISIBLE_DEVICES); nothing was checked\n"


def report(name: str, when: Any, outcome: Any, reason: Any = None) -> pytest.TestReport:
    """What pytest says of a part of a test."""
    made = pytest.TestReport(name, ("t.py", 1, name), {}, outcome, reason, when)
    made.user_properties = [("steps ahead", "19 of 19")] if when == "call" else []
    return made


def test_the_table_has_a_row_for_each_test() -> None:
    """Passed, failed where it was set up, or skipped with a reason: none is missing, none stands there twice."""
    table = CsvTable()
    for part in (
        report("t.py::test_the_host[cuda]", "setup", "passed"),
        report("t.py::test_the_host[cuda]", "call", "passed"),
        report("t.py::test_the_host[cuda]", "teardown", "passed"),
        report("t.py::test_two_gpus", "setup", "skipped", ("t.py", 1, "Skipped: needs two GPUs")),
        report("t.py::test_bf16", "setup", "failed", "Traceback"),
    ):
        table.pytest_runtest_logreport(part)
    assert list(table.lines())[2:] == [
        "| the host[cuda] | passed | 0.0 | steps ahead 19 of 19 |",
        "| two gpus | skipped | 0.0 | needs two GPUs |",
        "| bf16 | failed | 0.0 |  |",
    ]
