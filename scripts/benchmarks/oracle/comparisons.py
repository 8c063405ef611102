"""Regrets of rules side by side: paired by job, by class of optimizer, by kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oracle.bowls import interval_of_mean
from oracle.catalog import Job
from oracle.optimizers import CLASSES

Regrets = Mapping[str, Mapping[str, Any]]
"""Rule -> job -> regrets, shape (1 + resamples,): as measured, and resampled."""

KINDS_OF_DATA = {
    "images": ("mnist", "signs", "nuclei", "digits", "mislabelled", "moved", "photograph", "patches"),
    "text and code": ("shakespeare", "warpeace", "pycode", "intents"),
    "sound": ("spoken", "speaker", "waves"),
    "tables": ("adult", "protein"),
    "molecules": ("solubility", "toxicity"),
    "time series": ("beijing",),
    "ratings": ("movielens",),
    "synthetic": ("teacher", "chains", "pairs"),
}
"""Kind of data -> the first words of the names of its jobs."""


def kinds(job: Job) -> list[str]:
    """What a job counts as: class of optimizer, kind of data, from scratch or not."""
    data = [kind for kind, words in KINDS_OF_DATA.items() if job.name.split("_")[0] in words]
    return [
        f"optimizer: {CLASSES[job.optimizer].value}",
        *(f"data: {kind}" for kind in data),
        "fine-tuning" if job.pretraining else "from scratch",
    ]


def paired_difference(regrets: Regrets, rule: str, reference: str) -> tuple[float, float, float]:
    """How much more a rule loses than another one on the jobs of both: mean, and its 95 % bootstrap interval."""
    both = [job for job in regrets[rule] if job in regrets[reference]]
    differences = {job: regrets[rule][job] - regrets[reference][job] for job in both}
    mean = float(np.mean([values[0] for values in differences.values()]))
    return mean, *interval_of_mean(differences)


def regrets_by_kind(regrets: Regrets, jobs: Sequence[Job], rules: Sequence[str]) -> dict[str, tuple[int, list[float]]]:
    """Kind -> number of jobs, and mean regret of each rule over those that have it."""
    members: dict[str, list[str]] = {}
    for job in jobs:
        for kind in kinds(job):
            members.setdefault(kind, []).append(job.name)
    order = sorted(members, key=lambda kind: (kind.split(":")[0] != "optimizer", not kind.startswith("data"), kind))
    return {
        kind: (len(members[kind]), [_mean(regrets.get(rule, {}), members[kind]) for rule in rules]) for kind in order
    }


def _mean(by_job: Mapping[str, Any], names: Sequence[str]) -> float:
    values = [by_job[name][0] for name in names if name in by_job]
    return float(np.mean(values)) if values else float("nan")
