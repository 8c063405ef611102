"""What each rule suggests on the measurements of a job, and what that loses."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from peer_packages import Rule, preferred
from regret_peers import PEER_RANGES, PEERS, ignite

from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.core.suggestion_rules import RULES
from lrrunner.records import Training
from oracle.alternatives import ALTERNATIVES
from oracle.bowls import NUM_RESAMPLES, Bowl, TrialTable, bowl, noise_floor
from oracle.catalog import Job
from oracle.confirmation import confirmed_suggestion
from oracle.lr_free import LR_FREE
from oracle.optimizers import CLASSES, USUAL_LR
from oracle.replay import END_LR, START_LR, MissingError, RangeTest, range_test
from oracle.store import Ladder, Store

SWEEP_SEEDS = (10, 11, 12)
TRIAL_SEEDS = (4, 5)
NUM_DRAWS = 8
"""Random choices of an alternative, for each seed of its trials."""

Lrs = dict[str, list[float | None]]


class Measured(NamedTuple):
    """A job and what was measured of it."""

    job: Job
    store: Store


def rule_lrs(store: Store, job: Job, training: Training) -> Lrs:
    """LR of every rule that reads a sweep of 100 steps, by sweep seed; peers with their own range, smoothing and stop.

    Raises:
        MissingError: A sweep was not measured.
    """
    found: Lrs = {}
    for seed in SWEEP_SEEDS:
        candidates = told_range_test(store, job, 100, seed, training).suggestion.candidates
        for name in RULES:
            found.setdefault(name, []).append(candidates[name])
        for peer in PEERS:
            ladder = Ladder(*PEER_RANGES.get(peer.__name__, (START_LR, END_LR)), 100, seed)
            found.setdefault(f"peer: {peer.__name__}", []).append(_peer_lr(peer, store, ladder))
        own = Ladder(START_LR, END_LR, 100, seed)
        found.setdefault("peer: ignite from 1e-7", []).append(_peer_lr(ignite, store, own))
    return found | {"the optimizer's usual LR": [USUAL_LR[job.optimizer]], "0.01 always": [0.01]}


@functools.cache
def _peer_lr(peer: Rule, store: Store, ladder: Ladder) -> float | None:
    """By the peer's own package where it is installed."""
    if ladder not in store.sweeps:
        raise MissingError(ladder)
    losses = store.sweeps[ladder].losses
    lrs = exponential_lr(start_lr=ladder.start_lr, end_lr=ladder.end_lr, num_steps=ladder.num_steps)[: len(losses)]
    return preferred(peer)(lrs, losses)


def alternative_lrs(store: Store, job: Job, training: Training, *, total_steps: int = 600) -> Lrs:
    """LR of each way to spend so many steps on trials; empty where these were not measured."""
    tables = [TrialTable(store, training.schedule, seed) for seed in TRIAL_SEEDS]
    if any(set(table.lengths) < {25, 50, 100, 200} for table in tables):
        return {}
    found: Lrs = {
        f"{total_steps} steps of {alternative.__name__.replace('_', ' ')}": [
            alternative(table, USUAL_LR[job.optimizer], np.random.default_rng(draw), total_steps=total_steps)
            for table in tables
            for draw in range(NUM_DRAWS)
        ]
        for alternative in ALTERNATIVES
    }
    budget_steps = total_steps - 100
    sweeps = [told_range_test(store, job, 100, seed, training) for seed in SWEEP_SEEDS]
    return found | {
        f"auto, confirmed with {budget_steps} steps": [
            confirmed_suggestion(
                table,
                sweep,
                optimizer=CLASSES[job.optimizer],
                budget_steps=budget_steps,
                training=training,
                initial_loss=store.start,
            ).lr
            for table in tables
            for sweep in sweeps
        ]
    }


def told_range_test(store: Store, job: Job, num_steps: int, seed: int, training: Training) -> RangeTest:
    """What lrrunner suggests for a job that is told its length and schedule."""
    return range_test(store, num_steps, seed, optimizer=CLASSES[job.optimizer], training=training)


def resampled_regrets(found: Bowl, lrs: Lrs, final_losses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Rule -> mean regret, shape (1 + resamples,): as measured, and with oracle seeds drawn anew.

    Args:
        found: The bowl.
        lrs: LRs of each rule.
        final_losses: Losses of each optimizer that needs no LR, one a seed.
    """
    random = np.random.default_rng(0)
    bowls = [found, *(found.resampled(random) for _ in range(NUM_RESAMPLES))]
    names, counts = list(lrs), [len(group) for group in lrs.values()]
    flat = [lr for group in lrs.values() for lr in group]
    values = np.array([each.regret(flat) for each in bowls])
    parts = np.split(values, np.cumsum(counts)[:-1], axis=1)
    by_rule = {name: part.mean(axis=1) for name, part in zip(names, parts, strict=True)}
    for name, losses in final_losses.items():
        drawn: list[Any] = [losses, *(random.choice(losses, len(losses)) for _ in range(NUM_RESAMPLES))]
        by_rule[name] = np.array([each.share_lost(some) for each, some in zip(bowls, drawn, strict=True)])
    return by_rule


class Scores(NamedTuple):
    """What each rule loses on some jobs, at one length and schedule of the training.

    Attributes:
        regrets: Rule -> job -> regrets, shape (1 + resamples,): as measured, and resampled.
        floors: Noise floor of each job.
    """

    regrets: dict[str, dict[str, Any]]
    floors: list[float]


def scores(group: Sequence[Measured], num_steps: int, schedule: str) -> Scores:
    """What each rule loses on the jobs that have what it takes."""
    found = Scores({}, [])
    for job, store in group:
        oracle = bowl(store, num_steps, schedule)
        if oracle is None:
            continue
        try:
            training = Training(num_steps=num_steps, schedule=schedule)
            lrs = rule_lrs(store, job, training) | alternative_lrs(store, job, training)
        except MissingError:
            continue
        found.floors.append(noise_floor(oracle))
        for rule, values in resampled_regrets(oracle, lrs, lr_free_losses(store, num_steps, schedule)).items():
            found.regrets.setdefault(rule, {})[job.name] = values
    return found


def lr_free_losses(store: Store, num_steps: int, schedule: str) -> dict[str, list[float]]:
    """Final losses of optimizers that need no LR, by seed."""
    known = {
        name: store.lr_free.get(name, {}).get((num_steps, optimizer.schedule_for(schedule)), {})
        for name, optimizer in LR_FREE.items()
    }
    return {name: list(by_seed.values()) for name, by_seed in known.items() if by_seed}
