"""The result of the call: records, figure and run directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import lrrunner
from lrrunner.results.reader import read_run
from tests.unit.library.script import swept


def test_the_result_holds_suggestion_records_and_figure() -> None:
    """Rows 70, 77, 84 of torch-lr-finder's issues: a suggestion without a plot, and records as arrays."""
    result = swept()
    assert result.suggestion.verdict == lrrunner.Verdict.OK
    assert result.suggestion.lr is not None
    assert result.records["step"].dtype == np.int64
    assert result.records["lr"][0] == 1e-6
    assert result.records.to_pandas().shape == (len(result.steps), len(result.records))
    assert repr(result.records).startswith(f"Records({len(result.steps)} steps: ")
    assert repr(result).startswith("RangeTest(suggested lr: ")
    assert len(repr(result)) < 200
    png = result.plot()._repr_png_()  # type: ignore[attr-defined]
    assert png.startswith(b"\x89PNG")


def test_a_saved_result_is_a_run_directory(tmp_path: Path) -> None:
    """The same readers read it; a second sweep does not overwrite the first, and other ranks write nothing."""
    result = swept()
    path = result.save(tmp_path / "run")
    run = read_run(path)
    assert run.records.steps == list(result.steps)
    assert run.test is not None
    assert run.test.suggestion.lr == result.suggestion.lr
    assert run.job.sweep == result.job.sweep
    assert run.status["state"] == "finished"
    assert "lrrunner.range_test(accelerator, model, optimizer, train_loader, loss_fn, start_lr=1e-06" in run.note
    assert (path / "lr_sweep.png").stat().st_size > 1000
    assert json.loads((path / "suggestion.json").read_text())["group_lrs"] == [result.suggestion.lr]
    with pytest.raises(ValueError, match="directory must not hold a run yet"):
        result.save(path)
    other = dataclasses.replace(result, rank=1)
    assert other.save(tmp_path / "other") == tmp_path / "other"
    assert other.log_to_mlflow() is None
    assert not (tmp_path / "other").exists()
