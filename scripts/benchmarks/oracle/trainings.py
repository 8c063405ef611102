"""Trainings and sweeps of a job: what is measured, one at a time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lrrunner.core.lr_schedules import exponential_lr, training_lrs
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.engine import RankContext, run_sweep
from lrrunner.training.sweep_run import SweepPlan
from lrrunner.training.trainable import Trainable
from oracle.catalog import Job, Pretraining
from oracle.lr_free import LR_FREE, evaluation_mode, train_mode
from oracle.optimizers import make_optimizer
from oracle.splits import Split, Tensors
from oracle.store import Ladder

HOPELESS = 1e4
"""A training loss this many times its first is taken as diverged."""

BEYOND_STOPS = 20.0
"""A sweep ends at a loss this many times its first: every finder's own stop rule fires before."""

BETA = 0.9


def batches(train: Tensors, *, batch_size: int, seed: int) -> Iterator[Tensors]:
    """Endless shuffled batches; what does not fill one is dropped."""
    random = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(train[0]), generator=random)
        for indices in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield tuple(part[indices] for part in train)


class Laboratory:
    """One job with its data in memory.

    Args:
        job: The job.
        folder: The data folder, for jobs on real data.
    """

    def __init__(self, job: Job, folder: Any) -> None:
        self.job, self._folder = job, folder
        self.split: Split = job.split(folder)

    def model(self, seed: int) -> nn.Module:
        """The model before any training, and the random state of its training."""
        torch.manual_seed(seed)
        model = self.job.model()
        if self.job.pretraining is not None:
            own = model.state_dict()
            known = self._pretrained
            model.load_state_dict(
                {k: known[k] if k in known and known[k].shape == v.shape else v for k, v in own.items()}
            )
        return model

    @functools.cached_property
    def _pretrained(self) -> dict[str, Any]:
        pretraining = self.job.pretraining
        assert isinstance(pretraining, Pretraining)
        torch.manual_seed(99)
        model, split = pretraining.model(), pretraining.split(self._folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=pretraining.lr)
        stream = batches(split.train, batch_size=32, seed=99)
        for _ in range(pretraining.num_steps):
            optimizer.zero_grad()
            self.loss(model, next(stream)).backward()
            optimizer.step()
        return model.state_dict()

    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        """Mean loss of a batch."""
        return self.job.loss(model(*batch[:-1]), batch[-1])

    @torch.no_grad()
    def val_loss(self, model: nn.Module) -> float:
        """Mean loss of the validation samples, in eval mode."""
        model.eval()
        loss = self.loss(model, self.split.val).item()
        model.train()
        return loss if math.isfinite(loss) else math.inf

    def trained(self, lr: float, *, num_steps: int, schedule: str, seed: int, at: Sequence[int]) -> dict[int, float]:
        """Validation losses after ``at`` steps of a training, infinite from where it diverged."""
        model = self.model(seed)
        optimizer = make_optimizer(self.job.optimizer, **self.job.options)(model.parameters(), lr)
        stream = batches(self.split.train, batch_size=self.job.batch_size, seed=seed)
        lrs = training_lrs(lr, schedule=schedule, num_steps=num_steps, warmup_steps=self._warmup_steps(num_steps))
        losses = dict.fromkeys(at, math.inf)
        for step in self._steps(model, optimizer, lrs.tolist(), stream):
            if step in losses:
                losses[step] = self.val_loss(model)
        return losses

    def trained_without_lr(self, name: str, *, num_steps: int, schedule: str, seed: int) -> float:
        """Validation loss after a training by an optimizer that needs no LR; infinite where it diverged.

        It gets the job's own weight decay, batches, clipping and warm-up, and the same initial weights as others.
        """
        model, other = self.model(seed), LR_FREE[name]
        own = make_optimizer(self.job.optimizer, **self.job.options)(model.parameters(), other.lr)
        warmup_steps = self._warmup_steps(num_steps)
        optimizer = other.make(model.parameters(), other.lr, own.defaults.get("weight_decay", 0.0), warmup_steps)
        stream = batches(self.split.train, batch_size=self.job.batch_size, seed=seed)
        outside = 0 if other.warms_up else warmup_steps
        lrs = training_lrs(other.lr, schedule=schedule, num_steps=num_steps, warmup_steps=outside)
        train_mode(optimizer)
        num_done = sum(1 for _ in self._steps(model, optimizer, lrs.tolist(), stream))
        if num_done < num_steps:
            return math.inf
        evaluation_mode(optimizer, model, self.loss, stream)
        return self.val_loss(model)

    def _warmup_steps(self, num_steps: int) -> int:
        return int(self.job.warmup * num_steps)

    def _steps(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, lrs: Sequence[float], stream: Iterator[Tensors]
    ) -> Iterator[int]:
        """Train; the number of steps done, after each, up to where it diverged."""
        first = math.nan
        with contextlib.suppress(OverflowError):
            for step, lr in enumerate(lrs):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                loss = self.loss(model, next(stream))
                value = loss.item()
                first = value if step == 0 else first
                if not (math.isfinite(value) and value < HOPELESS * abs(first)):
                    return
                loss.backward()
                if self.job.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.job.max_grad_norm)
                optimizer.step()
                yield step + 1

    def swept(self, ladder: Ladder) -> tuple[list[float], list[float]]:
        """Losses and gradient norms of a sweep by lrrunner's own loop, far beyond where a stop rule would end it."""
        model = self.model(ladder.seed)
        optimizer = make_optimizer(self.job.optimizer, **self.job.options)(model.parameters(), 1e-3)
        lrs = exponential_lr(start_lr=ladder.start_lr, end_lr=ladder.end_lr, num_steps=ladder.num_steps)
        trainable = Trainable(
            model=model,
            optimizer=optimizer,
            objective=self.loss,
            micro_batch_size=self.job.batch_size,
            max_grad_norm=self.job.max_grad_norm,
        )
        plan = SweepPlan(lrs=lrs.tolist(), beta=BETA, new_stop_rule=_FarStop, seed=ladder.seed)
        steps = run_sweep(
            trainable,
            plan,
            lambda repeat, first_step=0: batches(self.split.train, batch_size=self.job.batch_size, seed=ladder.seed),
            context=RankContext(collective=SerialCollective()),
        ).steps
        return [step.loss for step in steps], [step.grad_norm for step in steps]

    def gradient_noise(self, seed: int, num_batches: int = 16) -> tuple[float, float]:
        """Trace of the covariance of one sample's gradient, and the squared norm of its mean, without bias."""
        model = self.model(seed)
        stream = batches(self.split.train, batch_size=self.job.batch_size, seed=seed)
        gradients = []
        for _ in range(num_batches):
            model.zero_grad()
            self.loss(model, next(stream)).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        stacked = torch.stack(gradients)
        variance = stacked.var(dim=0).sum().item()
        return variance * self.job.batch_size, stacked.mean(dim=0).square().sum().item() - variance / num_batches


class _FarStop:
    """Diverged at a loss that is BEYOND_STOPS times the first."""

    def __init__(self) -> None:
        self._first: float | None = None

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        """True once the loss is far beyond every stop rule."""
        self._first = abs(raw_loss) if self._first is None else self._first
        return raw_loss > BEYOND_STOPS * self._first
