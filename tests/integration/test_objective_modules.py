"""An objective that uses a module beside the model: every pass, repeat and run begins with it as it was."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.integration.launching import NO_TRACKING, launch


def test_every_repeat_and_confirmation_run_begins_with_the_same_buffers(tmp_path: Path) -> None:
    """Otherwise the second repeat would go on with the statistics that the first one left."""
    done = launch(
        tmp_path, *NO_TRACKING, "objective=custom", "objective._target_=parts.criticised", "+objective._partial_=true",
        "sweep.num_steps=12", "sweep.repeats=2", "sweep.auto_range=false", "sweep.end_lr=1e-3", "confirm.enabled=true",
    )  # fmt: skip
    assert done.code == 0, done.err
    calls: dict[tuple[str, str | None], list[int]] = {}
    for name in ("records.csv", "trial_records.csv"):
        if not (done.run / name).exists():  # nothing to confirm
            continue
        with (done.run / name).open() as file:
            for row in csv.DictReader(file):
                key = (name, row.get("repeat", row.get("trial")))
                calls.setdefault(key, []).append(int(float(row["loss"]) // 1000))
    assert len(calls) >= 2
    assert all(counts == list(range(1, len(counts) + 1)) for counts in calls.values()), calls
