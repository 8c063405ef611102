"""``python -m tests.gpu.check``: the tests that need a GPU, and what they measured, as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch


class Check(NamedTuple):
    """A test that was run or skipped."""

    name: str
    outcome: str
    seconds: float
    details: str


class CsvTable:
    """Collects outcomes while pytest runs."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each test once: when it was called, or did not come to that."""
        if report.when != "call" and report.outcome == "passed":
            return
        details = ", ".join(f"{name} {value}" for name, value in report.user_properties)
        if report.skipped and isinstance(report.longrepr, tuple):
            details = report.longrepr[2].removeprefix("Skipped: ")
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        self.checks.append(Check(name, report.outcome, report.duration, details))

    def lines(self) -> Iterator[str]:
        """Markdown."""
        yield "| check | outcome | seconds | |"
        yield "|---|---|---|---|"
        for check in self.checks:
            yield f"| {check.name} | {check.outcome} | {check.seconds:.1f} | {check.details} |"


def main() -> int:
    """Run them.

    Returns:
        0 when all passed.
    """
    if not torch.cuda.is_available():
        print(f"this machine has a GPU, but torch {torch.__version__} cannot use it", file=sys.stderr)
        return 1
    table = CsvTable()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu", *sys.argv[1:]], plugins=[table])
    devices = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    print(f"\n{devices}; torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("\n".join(table.lines()), flush=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
