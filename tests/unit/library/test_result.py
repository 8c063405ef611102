"""The result of the call: records, figure and run directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

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


def test_the_curve_can_be_drawn_on_axes_of_the_script() -> None:
    """Two sweeps side by side: the figure, its title and its style are the script's own."""
    result = swept()
    figure = Figure()
    first, second = figure.subplots(1, 2)
    first.set_title("mine")
    assert result.plot(ax=first) is first
    assert first.get_title() == "mine"
    assert (first.get_xscale(), first.get_xlabel(), first.get_ylabel()) == ("log", "learning rate (log scale)", "loss")
    legend = first.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert f"suggested lr {result.suggestion.lr:.1e}" in labels[-1]
    assert "smoothed loss" in labels[1]
    assert not second.lines
    with pytest.raises(TypeError, match=r"ax must be one matplotlib Axes, got ndarray; give the Axes of plt.subplots"):
        result.plot(ax=figure.subplots(1, 2))


def test_a_notebook_shows_picture_and_table() -> None:
    """Whatever a reason holds is text."""
    result = swept(confirm=60)
    odd = dataclasses.replace(result.suggestion, reason="a <script> & more")
    page = dataclasses.replace(result, suggestion=odd)._repr_html_()
    assert page.startswith('<img alt="LR sweep" src="data:image/png;base64,iVBOR')
    assert "a &lt;script&gt; &amp; more" in page
    assert "<script>" not in page
    assert f"<td>{result.suggestion.lr:.3g}</td>" in page
    assert "1 rank, global batch 48 = 1 rank x 48 x 1 accumulation step" in page
    assert page.count("<th>confirmation run ") == len(result.trials)


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
    confirmed = swept(confirm=60, training_steps=200, schedule="linear")
    run = read_run(confirmed.save(tmp_path / "confirmed"))
    assert run.records.trials == list(confirmed.trials)
    assert len(run.records.trial_steps[1]) == confirmed.trials[1].num_steps_run
    content = json.loads((tmp_path / "confirmed" / "suggestion.json").read_text())
    assert content["training"] == {"num_steps": 200, "schedule": "linear", "warmup_steps": 0, "is_assumed": False}
    assert content["confirmation"]["num_trials"] == len(confirmed.trials)
    other = dataclasses.replace(result, rank=1)
    assert other.save(tmp_path / "other") == tmp_path / "other"
    assert other.log_to_mlflow() is None
    assert not (tmp_path / "other").exists()
