"""Set the learning rate of an optimizer, keeping the ratios between its parameter groups."""

from __future__ import annotations

import torch


class LearningRate:
    """A multiplier on every parameter group's own base learning rate.

    Written straight to the groups before each step: no scheduler, whose first step, last step and multiplication by the
    world size are where other finders lose the link between a loss and its LR.

    Attributes:
        base_lr: The optimizer's default LR, which recorded LRs stand for; other groups keep their ratio to it.

    Raises:
        ValueError: the optimizer has no positive LR to keep ratios to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # a scheduler that has moved the LRs keeps what they were before in initial_lr
        group_lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.base_lr = float(optimizer.defaults.get("lr", group_lrs[0]))
        if not self.base_lr > 0:
            raise ValueError(f"optimizer.lr must be above 0, got {self.base_lr}; the sweep keeps group ratios to it")
        self._ratios = [lr / self.base_lr for lr in group_lrs]

    def set(self, lr: float) -> None:
        """Make ``lr`` the base learning rate of the next step."""
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr * ratio)
            else:
                group["lr"] = lr * ratio
