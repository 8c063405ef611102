"""Records of real sweeps, kept: what the rules make of them changes only on purpose."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.suggestion_rules import suggest
from lrrunner.records import Step, Stop, StopReason

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def recorded(name: str) -> list[Step]:
    """The steps of a records.csv."""
    with (GOLDEN / name).open() as file:
        return [
            Step(
                step=int(row["step"]),
                lr=float(row["lr"]),
                loss=float(row["loss"]),
                grad_norm=float(row["grad_norm"]),
                skipped=row["skipped"] == "1",
            )
            for row in csv.DictReader(file)
        ]


def test_char_gpt_is_not_told_to_train_on_its_blow_up() -> None:
    """`experiment=char_gpt`, two ranks: 3.2 up to 1.0e-2, then 4.6 and 6.7, then 3.4 again up to 3e-1.

    Steepest and minimum lie on either side of the blow-up; their geometric mean, an earlier `auto`, was right on it.
    The small transformers of the regret benchmark train best between 2e-3 and 2e-2.
    """
    steps = recorded("char_gpt_records.csv")
    assert max(step.loss for step in steps if 1.2e-2 < step.lr < 1.6e-2) > 6
    suggestion = suggest(
        steps, [Stop(reason=StopReason.DIVERGED, step=steps[-1].step)], optimizer=OptimizerClass.ADAPTIVE
    )
    assert suggestion.lr == pytest.approx(2.3e-3, rel=0.05)
    assert suggestion.interval is not None
    assert suggestion.interval[1] < 1.2e-2
