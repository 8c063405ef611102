"""A range test as HTML, as a notebook shows it."""

from __future__ import annotations

import base64
import io

from lrrunner.config.schema import Config, batch_summary
from lrrunner.record_display import html_table
from lrrunner.records import RangeTestResult, TrialOutcome
from lrrunner.reporting.figure_style import DPI
from lrrunner.reporting.sweep_figure import job_figure


def notebook_html(test: RangeTestResult, job: Config) -> str:
    """The figure, a table of the suggestion, and one of the confirmation runs if there were any."""
    content = io.BytesIO()
    job_figure(test, job).savefig(content, format="png", dpi=DPI)
    picture = base64.b64encode(content.getvalue()).decode("ascii")
    summary = {"measured with": batch_summary(job, world_size=test.world_size)}
    if test.noise_scale is not None:
        summary["noise"] = str(test.noise_scale)
    tables = [test.suggestion._repr_html_(), html_table(summary)]
    if test.trials:
        tables.append(html_table(_trial_rows(test)))
    return f'<img alt="LR sweep" src="data:image/png;base64,{picture}">{"".join(tables)}'


def _trial_rows(test: RangeTestResult) -> dict[str, str]:
    monitored = "loss" if test.confirmation is None else test.confirmation.monitored
    return {
        f"confirmation run {trial.trial}": f"LR {trial.lr:.1e}, {trial.num_steps} steps, "
        + (f"{monitored} {trial.loss:.4g}" if trial.outcome == TrialOutcome.FINISHED else str(trial.outcome))
        for trial in test.trials
    }
