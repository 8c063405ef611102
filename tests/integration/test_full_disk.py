"""A disk that is full, or cannot be written: one message, the records so far, and the way to go on."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.launching import NO_TRACKING, launch

NUM_STEPS = 400
LONG = (f"sweep.num_steps={NUM_STEPS}", "sweep.start_lr=1e-8", "sweep.end_lr=1e-7", "sweep.auto_range=false")
PAGES_KIB = 28
"""Configuration, overrides, status twice, and room for some of the rows."""


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={PAGES_KIB}k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("supervised", [(), ("launch.num_processes=1",)], ids=["one process", "supervised"])
def test_a_disk_that_fills_up_is_one_message_and_the_run_goes_on_later(
    tmp_path: Path, disk: Path, supervised: tuple[str, ...]
) -> None:
    """It was a traceback without rank or cause, the status stayed "running", and files were left half-written."""
    done = launch(tmp_path, *LONG, f"run.dir={disk}/run", *supervised)
    assert done.code == 1, done.err
    assert not [text for text in ("Traceback", "Logging error", "Exception ignored") if text in done.err]
    (message,) = [line for line in done.err.splitlines() if "the sweep failed" in line]
    found = re.search(
        r"the sweep failed on rank 0: OSError: disk/run/records.csv cannot be written \(No space left on device\); the "
        r"(\d+) steps before are safe; see to the disk and go on with run.resume=disk/run",
        message,
    )
    assert found is not None, message
    rows = (disk / "run" / "records.csv").read_bytes().splitlines(keepends=True)
    assert len(rows) == int(found[1]) + 1
    assert all(row.endswith(b"\r\n") for row in rows)
    status = json.loads((disk / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["cause"] == found[0].removeprefix("the sweep failed on ")
    assert not [path for path in disk.rglob("*") if path.suffix in (".part", ".tmp")]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(status["mlflow_run_id"]).info.status == "FAILED"

    remount(disk, "size=4m")
    resumed = launch(tmp_path, *LONG, "run.dir=null", f"run.resume={disk}/run", *supervised)
    assert resumed.code == 0, resumed.err
    assert (disk / "run" / "records.csv").read_bytes().startswith(b"".join(rows[:2]))
    assert len((disk / "run" / "records.csv").read_bytes().splitlines()) == NUM_STEPS + 1


@pytest.mark.parametrize("supervised", [(), ("launch.num_processes=1",)], ids=["one process", "supervised"])
def test_a_disk_that_cannot_be_written_is_a_configuration_error(
    tmp_path: Path, disk: Path, supervised: tuple[str, ...]
) -> None:
    """Before anything is trained."""
    remount(disk, "ro")
    done = launch(tmp_path, *LONG, *NO_TRACKING, f"run.dir={disk}/run", *supervised)
    assert done.code == 2, done.err
    assert done.err.count("run.dir must be a writable directory") == 1
    assert "(Read-only file system); choose another directory" in done.err
    assert "Traceback" not in done.err
