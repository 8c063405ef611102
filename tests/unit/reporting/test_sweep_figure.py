"""The picture says what the suggestion says, and no sweep, however broken, ruins or prevents it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from lrrunner.core.suggestion_rules import suggest
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
from lrrunner.reporting.curve_panel import repeat_range
from lrrunner.reporting.sweep_figure import lr_sweep_figure, save_png

SUGGESTION = Suggestion(
    lr=1.2e-3,
    method="auto",
    verdict=Verdict.OK,
    reason="the loss falls, and diverges at a larger learning rate",
    interval=(6.1e-4, 2.4e-3),
    candidates={"auto": 1.2e-3, "steepest": 1.1e-3, "minimum": 1.3e-3, "valley": 1.2e-3, "slide": None},
)
NOTHING = Suggestion(
    lr=None,
    method="auto",
    verdict=Verdict.FLAT,
    reason="the loss does not respond to the learning rate; raise sweep.end_lr",
    candidates={"auto": None, "steepest": None},
)
END = Stop(reason=StopReason.END_OF_SCHEDULE, step=99)


def u_curve(lr: float) -> float:
    """2.3 at the start, 0.3 around 1e-1, steep beyond 1."""
    x = math.log10(lr)
    return 2.3 - 2 / (1 + math.exp(-3 * (x + 2.5))) + math.exp(5 * x)


def records(
    loss: Callable[[float], float], *, num_steps: int = 100, repeat: int = 0, sweep_pass: int = 0
) -> list[Step]:
    """One ladder from 1e-7 to 10, with a little noise."""
    noise = np.random.default_rng(repeat).normal(scale=0.02, size=num_steps)
    lrs = np.geomspace(1e-7, 10, num_steps) if num_steps > 1 else [1e-7]
    return [
        Step(sweep_pass=sweep_pass, repeat=repeat, step=i, lr=float(lr), loss=loss(float(lr)) + float(noise[i]))
        for i, lr in enumerate(lrs)
    ]


def picture(
    steps: Sequence[Step],
    *,
    stops: Sequence[Stop] = (END,),
    suggestion: Suggestion = SUGGESTION,
    title: str = "MLP, AdamW",
) -> Figure:
    """The figure of a sweep with a suggestion at 1.2e-3, unless told otherwise."""
    test = RangeTestResult(
        steps=tuple(steps), stops=tuple(stops), suggestion=suggestion, world_size=2, global_batch_size=64
    )
    return lr_sweep_figure(test, beta=0.9, title=title, subtitle="global batch 64, 2 ranks, 100 steps")


def curve_axes(figure: Figure) -> Axes:
    """The panel of the loss."""
    return next(axes for axes in figure.axes if axes.get_ylabel() == "loss")


def with_gid(figure: Figure, gid: str) -> list[Artist]:
    """Artists of one meaning, over all panels."""
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def words(figure: Figure) -> list[str]:
    """Everything written in the picture."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def line(figure: Figure, label: str) -> Line2D:
    """A curve by its name in the legend."""
    return next(line for line in curve_axes(figure).lines if line.get_label() == label)


@pytest.mark.parametrize("tail", [1e6, 3e38, 1e300])
def test_a_divergence_leaves_the_picture_instead_of_flattening_it(tail: float) -> None:
    """One loss of 1e6 on the axis would turn the fall of 2 into a straight line."""
    figure = picture(records(lambda lr: u_curve(lr) + tail * (lr > 0.5)))
    bottom, top = curve_axes(figure).get_ylim()
    assert -0.5 < bottom < 0.3
    assert 2.4 < top < 3.5
    assert max(line(figure, "raw loss").get_ydata()) > top


def test_the_loss_axis_holds_the_whole_fall_of_negative_losses() -> None:
    """A log-likelihood may be anywhere below zero; ratios to the minimum mean nothing there."""
    figure = picture(records(lambda lr: u_curve(lr) - 500))
    bottom, top = curve_axes(figure).get_ylim()
    assert -500.5 < bottom < -499.7
    assert -497.6 < top < -496


def test_the_first_loss_is_in_the_picture_on_a_linear_ladder() -> None:
    """There the initial level lasts one step, and no median of the first tenth knows it."""
    steps = [Step(step=i, lr=1e-5 + 0.001 * i, loss=5.0 if i == 0 else 1.0) for i in range(100)]
    assert curve_axes(picture(steps)).get_ylim()[1] > 5


def test_one_outlier_below_does_not_set_the_axis() -> None:
    """It may pull the smoothed curve, but not the axis down to itself."""
    steps = records(u_curve)
    steps[50] = dataclasses.replace(steps[50], loss=-40.0)
    bottom, top = curve_axes(picture(steps)).get_ylim()
    assert bottom > -30
    assert top < 8


def test_the_suggestion_is_a_line_through_every_panel_with_its_value() -> None:
    """The one number a reader came for."""
    figure = picture(records(u_curve))
    lines = with_gid(figure, "suggestion")
    assert len(figure.axes) == 2
    assert {artist.axes for artist in lines} == set(figure.axes)
    assert all(list(artist.get_xdata()) == [1.2e-3, 1.2e-3] for artist in lines)
    assert "suggested lr 1.2e-03   [6.1e-04, 2.4e-03]" in words(figure)


def test_the_interval_is_shaded() -> None:
    """How sure the number is, at both of its ends."""
    spans = with_gid(picture(records(u_curve)), "interval")
    assert len(spans) == 2
    for span in spans:
        assert isinstance(span, Rectangle)
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((6.1e-4, 2.4e-3))


def test_a_real_suggestion_is_drawn_where_it_is() -> None:
    """The picture and `suggest` read the same records."""
    steps = records(u_curve)
    stops = [Stop(reason=StopReason.DIVERGED, step=99)]
    suggestion = suggest(steps, stops, beta=0.9)
    figure = picture(steps, stops=stops, suggestion=suggestion)
    assert suggestion.lr == pytest.approx(9.8e-3, rel=0.1)
    assert with_gid(figure, "suggestion")[0].get_xdata()[0] == suggestion.lr
    assert len(suggestion.candidates) == 6
    assert set(suggestion.candidates) <= set(words(figure))


def test_every_candidate_has_a_name_a_dot_and_figures() -> None:
    """Four rules within a tenth of a decade stay legible, and a rule that found nothing says so."""
    figure = picture(records(u_curve))
    strip = figure.axes[1]
    assert [label.get_text() for label in strip.get_yticklabels()] == list(SUGGESTION.candidates)
    dots = {(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in strip.lines if dot.get_marker() == "o"}
    assert dots == {(1.2e-3, 0), (1.1e-3, 1), (1.3e-3, 2), (1.2e-3, 3)}
    figures = [text.get_text() for text in strip.texts]
    assert figures[:5] == ["1.2e-03", "1.1e-03", "1.3e-03", "1.2e-03", "none"]


def test_rules_beyond_the_ladder_are_within_the_picture() -> None:
    """`minimum` divides by ten and may land below the first rung."""
    outside = dataclasses.replace(SUGGESTION, lr=2e-8, interval=(1e-8, 4e-8), candidates={"minimum": 2e-8})
    left, right = curve_axes(picture(records(u_curve), suggestion=outside)).get_xlim()
    assert left < 2e-8
    assert right > 10


@pytest.mark.parametrize("lr", [1e-7, 1e-3, 10.0])
def test_no_words_overlap_or_leave_the_picture(lr: float) -> None:
    """Wherever the suggestion lies, and with all that a title may hold."""
    suggestion = dataclasses.replace(
        SUGGESTION, lr=lr, interval=(lr / 2, lr * 2), candidates={"auto": lr, "largest_drop": lr}
    )
    stop = Stop(reason=StopReason.NON_FINITE, step=99, ranks=tuple(range(64)))
    figure = picture(records(u_curve), stops=[stop], suggestion=suggestion, title="Net($x^{) " * 40)
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
    """The MLflow UI shows the picture at its own size or smaller."""
    assert min(text.get_fontsize() for text in picture(records(u_curve)).findobj(Text)) >= 9


def test_without_a_suggestion_the_verdict_is_in_words() -> None:
    """What to change next, instead of an empty space where a line would be."""
    figure = picture(records(lambda lr: 2.3), suggestion=NOTHING)
    said = " ".join(words(figure))
    assert "no suggested lr" in said
    assert "flat: the loss does not respond to the learning rate; raise sweep.end_lr" in said
    assert not with_gid(figure, "suggestion")
    assert not with_gid(figure, "interval")


def test_a_long_reason_is_wrapped_not_cut() -> None:
    """What to change comes last in a reason."""
    reason = "the loss " + "does not respond and " * 12 + "ends here"
    said = words(picture(records(u_curve), suggestion=dataclasses.replace(NOTHING, reason=reason)))
    assert any("ends here" in one for one in said)


def test_a_suggestion_with_a_caveat_shows_both() -> None:
    """A learning rate without its caveat would be taken for a sure one."""
    caveat = dataclasses.replace(SUGGESTION, verdict=Verdict.NO_DIVERGENCE, reason="raise sweep.end_lr")
    said = words(picture(records(u_curve), suggestion=caveat))
    assert "verdict no_divergence: raise sweep.end_lr" in said
    assert "suggested lr 1.2e-03   [6.1e-04, 2.4e-03]" in said


def test_the_stop_is_marked_at_its_rung_with_its_reason() -> None:
    """The earliest stop of the repeats, at the learning rate of its step."""
    steps = records(u_curve)[:90] + records(u_curve, repeat=1)
    figure = picture(steps, stops=[Stop(reason=StopReason.DIVERGED, step=89), END])
    (mark,) = with_gid(figure, "stop")
    assert mark.get_xdata()[0] == steps[89].lr
    assert "diverged at step 89" in words(figure)


def test_a_non_finite_stop_names_its_rank() -> None:
    """The point itself cannot be drawn; its rung and its rank can."""
    steps = records(u_curve)[:81]
    steps[80] = dataclasses.replace(steps[80], loss=math.nan)
    figure = picture(steps, stops=[Stop(reason=StopReason.NON_FINITE, step=80, ranks=(1,))])
    assert "non_finite at step 80 on rank 1" in words(figure)
    assert curve_axes(figure).get_xlim()[1] > steps[80].lr
    assert len(line(figure, "raw loss").get_xdata()) == 80


def test_repeats_are_a_band_around_their_mean() -> None:
    """Minimum, maximum and mean of each rung."""
    steps = [
        Step(repeat=repeat, step=i, lr=10.0 ** (i - 6), loss=3.0 - i / 10 + repeat)
        for repeat in range(3)
        for i in range(6)
    ]
    figure = picture(steps)
    (band,) = curve_axes(figure).collections
    assert band.get_label() == "range over 3 repeats"
    vertices = band.get_paths()[0].vertices
    at_first_rung = vertices[np.isclose(vertices[:, 0], 1e-6), 1]
    assert (at_first_rung.min(), at_first_rung.max()) == (3.0, 5.0)
    mean = line(figure, "mean raw loss").get_ydata()
    assert list(mean) == pytest.approx([4.0, 3.9, 3.8, 3.7, 3.6, 3.5])


def test_a_repeat_that_stopped_early_stays_in_the_band() -> None:
    """Else the band would jump down to the survivors where a repeat diverged."""
    steps = [Step(step=0, lr=1e-3, loss=1.0), Step(step=1, lr=1e-2, loss=9.0)]
    steps += [Step(repeat=1, step=i, lr=10.0 ** (i - 3), loss=2.0) for i in range(3)]
    lr, low, high = repeat_range(steps)
    assert lr.tolist() == [1e-3, 1e-2, 1e-1]
    assert low.tolist() == [1.0, 2.0, 2.0]
    assert high.tolist() == [2.0, 9.0, 9.0]


def test_only_the_last_pass_is_the_curve() -> None:
    """Auto-range repeats the ladder with other ends; what it tried before is background."""
    before = [*records(lambda lr: 7.0)[:40], *records(lambda lr: 7.0, repeat=1)[:40]]
    steps = before + records(u_curve, sweep_pass=1)
    figure = picture(steps)
    assert len(line(figure, "raw loss").get_xdata()) == 100
    assert len(line(figure, "earlier passes").get_xdata()) == 40
    assert curve_axes(figure).get_ylim()[1] < 4


def test_the_pass_that_was_believed_is_the_curve() -> None:
    """An extension that went wrong is background, like the passes before it, and its stop is not the curve's."""
    steps = records(u_curve) + records(lambda lr: 7.0, sweep_pass=1)[:30]
    stops = (END, Stop(reason=StopReason.INTERRUPTED, step=29, sweep_pass=1))
    test = RangeTestResult(
        steps=tuple(steps), stops=stops, suggestion=SUGGESTION, world_size=2, global_batch_size=64, curve_pass=0
    )
    figure = lr_sweep_figure(test, beta=0.9, title="t")
    assert len(line(figure, "raw loss").get_xdata()) == 100
    assert len(line(figure, "other passes").get_xdata()) == 30
    assert "end_of_ladder at step 99" in words(figure)


def trial(number: int, lr: float, loss: float, *, num_steps: int = 100, outcome: str = "finished") -> Trial:
    return Trial(
        trial=number, lr=lr, num_steps=num_steps, num_steps_run=num_steps, loss=loss, outcome=TrialOutcome(outcome)
    )


FINISHED = (trial(0, 1.2e-3, 0.4), trial(1, 3.8e-4, 0.9), trial(2, 3.8e-3, 0.3), trial(3, 3.8e-3, 0.2, num_steps=300))
DIVERGED = trial(4, 4e-2, math.inf, outcome="diverged")
INTERRUPTED = trial(5, 2e-2, math.nan, outcome="interrupted")


def confirmed_picture(*trials: Trial, measured_steps: int | None = 100) -> Figure:
    """The figure of a confirmed sweep: 1.2e-3 became 3.1e-3."""
    found = dataclasses.replace(SUGGESTION, lr=3.1e-3, interval=(2e-3, 5e-3))
    compared = Confirmation(
        schedule="cosine",
        monitored="validation loss",
        horizon=10_000,
        budget_steps=500,
        sweep=SUGGESTION,
        measured_steps=measured_steps,
    )
    test = RangeTestResult(
        steps=tuple(records(u_curve)), stops=(END,), suggestion=found, world_size=2, global_batch_size=64,
        trials=trials, confirmation=compared,
    )  # fmt: skip
    return lr_sweep_figure(test, beta=0.9, title="MLP, AdamW")


def trial_axes(figure: Figure) -> Axes:
    """The panel of the confirmation runs."""
    return next(axes for axes in figure.axes if axes.get_ylabel() == "validation loss")


def test_confirmation_runs_have_a_panel_with_one_curve_a_length(tmp_path: Path) -> None:
    """A run of 300 steps is lower than one of 100 for another reason than its learning rate."""
    figure = confirmed_picture(*FINISHED, INTERRUPTED)
    lines = {line.get_label(): line for line in trial_axes(figure).lines}
    assert list(lines["100 steps"].get_xdata()) == [3.8e-4, 1.2e-3, 3.8e-3]
    assert list(lines["100 steps"].get_ydata()) == [0.9, 0.4, 0.3]
    assert list(lines["300 steps"].get_xdata()) == [3.8e-3]
    assert "confirmation runs: validation loss at the end of a cosine schedule" in words(figure)
    save_png(figure, tmp_path / "lr_sweep.png")
    assert png_size(tmp_path / "lr_sweep.png") == (900, 860)


def test_runs_that_confirmed_nothing_have_no_row_among_the_rules() -> None:
    """The chosen LR is the sweep's own rule's then."""
    names = {
        label.get_text()
        for figure in (confirmed_picture(*FINISHED, measured_steps=None),)
        for axes in figure.axes
        for label in axes.get_yticklabels()
    }
    assert SUGGESTION.method in names
    assert "confirmed" not in names


def test_the_panel_of_runs_shows_what_was_chosen_and_what_the_sweep_said() -> None:
    """How far confirmation has moved the answer."""
    figure = confirmed_picture(*FINISHED)
    axes = trial_axes(figure)
    assert axes in {artist.axes for artist in with_gid(figure, "suggestion")}
    assert axes in {artist.axes for artist in with_gid(figure, "interval")}
    (alone,) = with_gid(figure, "sweep alone")
    assert alone.get_xdata()[0] == 1.2e-3


def test_the_confirmed_lr_stands_above_the_rules_of_the_sweep() -> None:
    """Else the row in bold would be the one that the runs have just replaced."""
    figure = confirmed_picture(trial(0, 1e-2, 0.5), trial(1, 3e-2, 0.4))
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()] + words(figure)
    assert "confirmed" in names


def test_a_diverged_run_is_marked_at_the_top_and_one_far_above_too() -> None:
    """Neither has a place on an axis that shows the differences that matter."""
    figure = confirmed_picture(*FINISHED, DIVERGED, trial(6, 2e-2, 1e7))
    (mark,) = with_gid(figure, "diverged")
    assert list(mark.get_xdata()) == [4e-2]
    (above,) = with_gid(figure, "far above")
    assert list(above.get_xdata()) == [2e-2]
    assert trial_axes(figure).get_ylim()[1] < 3
    assert trial_axes(figure).get_xlim()[1] > 4e-2


@pytest.mark.parametrize(
    "trials",
    [(DIVERGED,), (INTERRUPTED,), FINISHED[:1], FINISHED[:2], (trial(0, 1e-3, 0.0), trial(1, 2e-3, 0.0))],
    ids=["diverged", "interrupted", "one", "two", "zero"],
)
def test_degenerate_runs_are_drawn_without_a_warning(trials: tuple[Trial, ...], tmp_path: Path) -> None:
    """pytest turns each warning into an error."""
    save_png(confirmed_picture(*trials), tmp_path / "lr_sweep.png")
    assert (tmp_path / "lr_sweep.png").stat().st_size > 1000


def test_no_words_of_the_panel_of_runs_overlap() -> None:
    """Heading, axis labels and legend stand below the sweep's own legend."""
    figure = confirmed_picture(*FINISHED, DIVERGED)
    figure.canvas.draw()
    axes = trial_axes(figure)
    legends = [panel.get_legend() for panel in (axes, curve_axes(figure))]
    texts = [axes.xaxis.label, axes.yaxis.label, curve_axes(figure).xaxis.label, *figure.texts]
    texts += [text for legend in legends if legend is not None for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(box.x0 >= 0 and box.x1 <= 900 and box.y0 >= 0 and box.y1 <= 860 for box in boxes)


def test_skipped_steps_are_no_points() -> None:
    """An overflowed fp16 step is tried again on the same rung."""
    steps = [*records(u_curve), Step(step=50, lr=1e-3, loss=1e9, skipped=True)]
    assert len(line(picture(steps), "raw loss").get_xdata()) == 100
    assert repeat_range(steps)[2].max() < 1e9


def test_a_capped_divergence_is_named_in_the_legend() -> None:
    """The smoothed curve levels off where the loss does not: the rules read it so."""
    assert "smoothed loss, divergence capped" in words(picture(records(u_curve)))
    assert "smoothed loss" in words(picture(records(lambda lr: min(u_curve(lr), 2.3))))


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
    "linear ladder": [Step(step=i, lr=1e-7 + i / 100, loss=1 / (1 + i)) for i in range(100)],
    "long ladder": records(u_curve, num_steps=1000),
    "half a decade": records(u_curve)[40:46],
    "down to the floor": [Step(step=i, lr=10.0 ** (i - 9), loss=-1e38 * (i > 7)) for i in range(9)],
}


@pytest.mark.parametrize("steps", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("suggestion", [SUGGESTION, NOTHING], ids=["lr", "none"])
def test_degenerate_sweeps_are_drawn_without_a_warning(
    steps: list[Step], suggestion: Suggestion, tmp_path: Path
) -> None:
    """A picture that fails would fail a sweep that has ended; pytest turns each warning into an error."""
    figure = picture(steps, suggestion=suggestion)
    assert all(math.isfinite(limit) for limit in (*figure.axes[0].get_xlim(), *figure.axes[0].get_ylim()))
    save_png(figure, tmp_path / "lr_sweep.png")
    assert (tmp_path / "lr_sweep.png").stat().st_size > 1000


def test_a_sweep_without_finite_loss_says_so() -> None:
    """Empty axes look like a broken picture."""
    assert "no finite loss to draw" in words(picture(DEGENERATE["only non-finite"]))


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the header (IHDR) of a PNG."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


def test_the_png_is_900_pixels_wide_and_white(tmp_path: Path) -> None:
    """Whatever style and saving settings the user's script has set."""
    dark = {"savefig.bbox": "tight", "savefig.dpi": 33, "axes.facecolor": "black", "savefig.facecolor": "black"}
    with matplotlib.rc_context({**dark, "text.color": "white", "figure.dpi": 50, "font.size": 30}):
        figure = picture(records(u_curve))
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
        picture(records(u_curve))
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
