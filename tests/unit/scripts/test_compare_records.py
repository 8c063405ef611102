"""scripts/compare_records.py: what differs from run to run is masked, everything else is compared."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/compare_records.py"


@pytest.fixture(scope="module")
def compare_records() -> ModuleType:
    """The script as a module; scripts are no package."""
    spec = importlib.util.spec_from_file_location("compare_records", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_times_and_run_ids_are_masked(compare_records: ModuleType) -> None:
    """Two runs of the same code must compare equal; columns and empty cells stay visible."""
    assert compare_records.masked_table("step,loss,elapsed_s\n0,2.5,0.31\n1,2.25,\n") == (
        "step,loss,elapsed_s\n0,2.5,(masked)\n1,2.25,\n"
    )
    entry = '{"key": "k", "job": 1, "run_id": "5f0f", "seconds": 2.0}\n{"key": "l", "job": 0, "run_id": null}'
    assert compare_records.masked_ledger(entry) == (
        '{\n "key": "l",\n "job": 0,\n "run_id": null\n}\n'
        '{\n "key": "k",\n "job": 1,\n "run_id": "(masked)",\n "seconds": "(masked)"\n}\n'
    )


@pytest.mark.parametrize(
    ("after", "code", "shown"),
    [
        ({"run/records.csv": "step\n0\n"}, 0, "no differences"),
        ({"run/records.csv": "step\n1\n"}, 1, "-0\n+1"),
        ({}, 1, "-step\n-0"),
        ({"run/records.csv": "step\n0\n", "run/trials.csv": "trial\n"}, 1, "+trial"),
    ],
)
def test_a_difference_is_shown_and_fails(after: dict[str, str], code: int, shown: str, tmp_path: Path) -> None:
    """Changed lines, and files that only one of the recordings has."""
    for folder, files in (("before", {"run/records.csv": "step\n0\n"}), ("after", after)):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    command = [sys.executable, str(SCRIPT), "compare", "before", "after"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert shown in done.stdout
