"""One place holds what a run has measured, as it is on disk."""

from __future__ import annotations

from pathlib import Path

from lrrunner.records import Step, Trial
from lrrunner.results.recorder import Recorder, RunRecords
from lrrunner.results.writer import RunDirectory
from lrrunner.system.output.redaction import Redactor

TRIAL = Trial(trial=1, lr=0.5, num_steps=1, num_steps_run=1, loss=1.5)


def test_records_are_kept_and_written(tmp_path: Path) -> None:
    """The figure and MLflow must show what is in the files."""
    with RunDirectory(tmp_path, Redactor()) as directory:
        recorder = Recorder(directory, schedule="cosine")
        recorder.record(Step(step=0, lr=0.1, loss=2.0))
        recorder.record_trial_step(1, Step(step=0, lr=0.5, loss=1.75, timestamp_ms=7))
        recorder.record_trial(TRIAL)
    assert recorder.records == RunRecords(
        steps=[Step(step=0, lr=0.1, loss=2.0)],
        trial_steps={1: [Step(step=0, lr=0.5, loss=1.75, timestamp_ms=7)]},
        trials=[TRIAL],
    )
    assert (tmp_path / "records.csv").read_text().splitlines()[1:] == ["0,0,0,0.1,2.0,nan,nan,nan,0,0.0,0"]
    assert (tmp_path / "trials.csv").read_text().splitlines()[1:] == ["1,cosine,0.5,1,1,1.5,finished,0.0,"]


def test_a_resumed_run_keeps_the_times_of_its_first_attempt(tmp_path: Path) -> None:
    """MLflow stores a point under its time: with another one it would be stored twice."""
    first = Step(step=0, lr=0.1, loss=2.0, elapsed_s=0.5, timestamp_ms=1000)
    with RunDirectory(tmp_path, Redactor()) as directory:
        Recorder(directory, schedule="cosine").record(first)
    again = Step(step=0, lr=0.1, loss=2.0, elapsed_s=9.0, timestamp_ms=9000)
    with RunDirectory(tmp_path, Redactor(), resumed=True) as directory:
        recorder = Recorder(directory, schedule="cosine")
        assert recorder.record(again) == first
    assert recorder.records.steps == [first]


def test_times_and_numbers_of_the_last_records() -> None:
    """Before the first record there are none."""
    records = RunRecords()
    assert (records.last_step, records.trial_end_ms(1)) == (None, 0)
    records.steps.append(Step(step=4, lr=0.1, loss=2.0))
    records.trial_steps[1] = [Step(step=0, lr=0.5, loss=1.75, timestamp_ms=7)]
    assert (records.last_step, records.trial_end_ms(1)) == (4, 7)
