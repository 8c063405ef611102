"""The figure shows what the suggestion says, and no sweep, however broken, prevents it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from lrrunner.core.suggestion_rules import suggest
from lrrunner.records import (
    Step,
    Stop,
    StopReason,
    Suggestion,
    Verdict,
)
from lrrunner.reporting.sweep_figure import save_png
from tests.unit.reporting.figures import (
    NOTHING,
    SUGGESTION,
    curve_axes,
    png_size,
    records,
    sweep_figure,
    texts,
    u_curve,
    with_gid,
)


def test_the_suggestion_is_a_line_through_every_panel_with_its_value() -> None:
    """The number that a reader looks for."""
    figure = sweep_figure(records(u_curve))
    lines = with_gid(figure, "suggestion")
    assert len(figure.axes) == 2
    assert {artist.axes for artist in lines} == set(figure.axes)
    assert all(list(artist.get_xdata()) == [1.2e-3, 1.2e-3] for artist in lines)
    assert "suggested lr 1.2e-03   [6.1e-04, 2.4e-03]" in texts(figure)


def test_the_interval_is_shaded() -> None:
    """How certain the number is, at both of its ends."""
    spans = with_gid(sweep_figure(records(u_curve)), "interval")
    assert len(spans) == 2
    for span in spans:
        assert isinstance(span, Rectangle)
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((6.1e-4, 2.4e-3))


def test_a_real_suggestion_is_drawn_where_it_is() -> None:
    """The figure and `suggest` read the same records."""
    steps = records(u_curve)
    stops = [Stop(reason=StopReason.DIVERGED, step=99)]
    suggestion = suggest(steps, stops, beta=0.9)
    figure = sweep_figure(steps, stops=stops, suggestion=suggestion)
    assert suggestion.lr == pytest.approx(1.5e-2, rel=0.1)
    assert with_gid(figure, "suggestion")[0].get_xdata()[0] == suggestion.lr
    assert len(suggestion.candidates) == 6
    assert set(suggestion.candidates) <= set(texts(figure))


@pytest.mark.parametrize("lr", [1e-7, 1e-3, 10.0])
def test_no_texts_overlap_or_leave_the_figure(lr: float) -> None:
    """Wherever the suggestion is, and with anything that a title may hold."""
    suggestion = dataclasses.replace(
        SUGGESTION, lr=lr, interval=(lr / 2, lr * 2), candidates={"auto": lr, "largest_drop": lr}
    )
    stop = Stop(reason=StopReason.NON_FINITE, step=99, ranks=tuple(range(64)))
    figure = sweep_figure(records(u_curve), stops=[stop], suggestion=suggestion, title="Net($x^{) " * 40)
    figure.canvas.draw()
    axes = curve_axes(figure)
    legend = axes.get_legend()
    assert legend is not None
    texts = [*figure.texts, *figure.axes[1].texts, *figure.axes[1].get_yticklabels(), *axes.texts]
    texts += [axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(box.x0 >= 0 and box.x1 <= 900 and box.y0 >= 0 and box.y1 <= 560 for box in boxes)
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_letters_are_at_least_nine_points() -> None:
    """The MLflow UI shows the figure at its own size or smaller."""
    found: list[Any] = sweep_figure(records(u_curve)).findobj(Text)
    assert min(text.get_fontsize() for text in found) >= 9


def test_without_a_suggestion_the_verdict_is_written_out() -> None:
    """What to change next, instead of an empty place where a line would be."""
    figure = sweep_figure(records(lambda lr: 2.3), suggestion=NOTHING)
    shown = " ".join(texts(figure))
    assert "no suggested lr" in shown
    assert "flat: the loss does not respond to the learning rate; raise sweep.end_lr" in shown
    assert not with_gid(figure, "suggestion")
    assert not with_gid(figure, "interval")


def test_a_long_reason_is_wrapped_not_cut() -> None:
    """A reason ends with what to change."""
    reason = "the loss " + "does not respond and " * 12 + "ends here"
    shown = texts(sweep_figure(records(u_curve), suggestion=dataclasses.replace(NOTHING, reason=reason)))
    assert any("ends here" in text for text in shown)


def test_a_suggestion_with_a_caveat_shows_both() -> None:
    """A learning rate without its caveat would be taken for a sure one."""
    caveat = dataclasses.replace(SUGGESTION, verdict=Verdict.NO_DIVERGENCE, reason="raise sweep.end_lr")
    shown = texts(sweep_figure(records(u_curve), suggestion=caveat))
    assert "verdict no_divergence: raise sweep.end_lr" in shown
    assert "suggested lr 1.2e-03   [6.1e-04, 2.4e-03]" in shown


DEGENERATE: dict[str, list[Step]] = {
    "no point": [],
    "only skipped": [Step(step=0, lr=1e-7, loss=math.nan, skipped=True)],
    "only non-finite": [Step(step=0, lr=1e-7, loss=math.inf)],
    "non-finite last pass": [*records(u_curve), Step(sweep_pass=1, step=0, lr=1e-8, loss=math.nan)],
    "one point": records(u_curve, num_steps=1),
    "two points": records(u_curve, num_steps=2),
    "two points and nan": [*records(u_curve)[:2], Step(step=2, lr=2e-7, loss=math.nan)],
    "zero": [Step(step=i, lr=10.0 ** (i - 9), loss=0.0) for i in range(9)],
    "constant": [Step(step=i, lr=10.0 ** (i - 9), loss=1e6) for i in range(9)],
    "constant and negative": [Step(step=i, lr=10.0 ** (i - 9), loss=-3.0) for i in range(9)],
    "linear schedule": [Step(step=i, lr=1e-7 + i / 100, loss=1 / (1 + i)) for i in range(100)],
    "long schedule": records(u_curve, num_steps=1000),
    "half a decade": records(u_curve)[40:46],
    "down to the floor": [Step(step=i, lr=10.0 ** (i - 9), loss=-1e38 * (i > 7)) for i in range(9)],
}


@pytest.mark.parametrize("steps", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("suggestion", [SUGGESTION, NOTHING], ids=["lr", "none"])
def test_degenerate_sweeps_are_drawn_without_a_warning(
    steps: list[Step], suggestion: Suggestion, tmp_path: Path
) -> None:
    """A figure that fails would fail a sweep that has ended; pytest turns each warning into an error."""
    figure = sweep_figure(steps, suggestion=suggestion)
    assert all(math.isfinite(limit) for limit in (*figure.axes[0].get_xlim(), *figure.axes[0].get_ylim()))
    save_png(figure, tmp_path / "lr_sweep.png")
    assert (tmp_path / "lr_sweep.png").stat().st_size > 1000


def test_the_png_is_900_pixels_wide_and_white(tmp_path: Path) -> None:
    """Whatever style and saving settings the user's script has set."""
    dark: dict[Any, Any] = {
        "savefig.bbox": "tight",
        "savefig.dpi": 33,
        "axes.facecolor": "black",
        "savefig.facecolor": "black",
    }
    with matplotlib.rc_context({**dark, "text.color": "white", "figure.dpi": 50, "font.size": 30}):
        figure = sweep_figure(records(u_curve))
        save_png(figure, tmp_path / "lr_sweep.png")
    assert png_size(tmp_path / "lr_sweep.png") == (900, 560)
    assert [path.name for path in tmp_path.iterdir()] == ["lr_sweep.png"]
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert pixels[0, 0].tolist() == [255, 255, 255, 255]
    assert (pixels[:, :, :3] == 255).all(axis=2).mean() > 0.8


def test_the_users_settings_are_left_as_they_were() -> None:
    """The library call draws inside someone else's process."""
    with matplotlib.rc_context({"axes.facecolor": "black"}):
        sweep_figure(records(u_curve))
        assert matplotlib.rcParams["axes.facecolor"] == "black"


def test_pyplot_and_torch_are_never_imported(tmp_path: Path) -> None:
    """pyplot picks a backend, keeps every figure alive, and belongs to the user's script."""
    program = f"""
import sys
from pathlib import Path
from lrrunner.reporting.sweep_figure import lr_sweep_figure, save_png
from lrrunner.records import (
    Confirmation,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    Trial,
    TrialOutcome,
    Verdict,
)
test = RangeTestResult(
    steps=tuple(Step(step=i, lr=10.0 ** (i - 7), loss=2.0 - i / 10) for i in range(8)),
    stops=(Stop(reason=StopReason.END_OF_SCHEDULE, step=7),),
    suggestion=Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="flat"),
    world_size=1,
    global_batch_size=8,
)
save_png(lr_sweep_figure(test, beta=0.9, title="t"), Path({str(tmp_path / "a.png")!r}))
print(sorted({{"matplotlib.pyplot", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "a.png").exists()
