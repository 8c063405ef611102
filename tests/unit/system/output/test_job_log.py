"""Warnings on the terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from lrrunner.records import Progress
from lrrunner.reporting.progress_display import BarDisplay
from lrrunner.system.output.job_log import JobLog
from lrrunner.system.output.redaction import Redactor

WARNING = "MLflow does not answer (connection refused); the run directory keeps everything, as it always does"


class Terminal(io.StringIO):
    """Text that counts as a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_warning_does_not_run_into_the_bar_and_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisors warn while they wait for ranks; a terminal breaks words where its width ends."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    display = BarDisplay(stream)
    display.announce("starting 2 ranks ...")
    with JobLog(Redactor()):
        logging.getLogger("lrrunner.test").warning(WARNING)
    display.show(Progress(label="LR sweep", step=1, num_steps=9))
    display.clear()
    lines = [line.rpartition("\r")[2] for line in stream.getvalue().split("\n")]
    assert lines[0] == "lrrunner: MLflow does not answer (connection refused); the run directory keeps"
    assert lines[1] == "everything, as it always does"


def test_a_warning_in_a_log_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can be searched."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with JobLog(Redactor()):
        logging.getLogger("lrrunner.test").warning(WARNING)
    assert stream.getvalue() == f"lrrunner: {WARNING}\n"
