"""Parts that tests name by ``_target_``, as a user would: copied into the directory that a run starts from."""

import os
import signal
import time

import torch
from torch import nn


class SlowMlp(nn.Module):
    """A step takes ``seconds``, so that a test can interfere."""

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, slowly."""
        time.sleep(self.seconds)
        return self.layer(x)


class Failing(SlowMlp):
    """Fails in forward number ``at`` on ``rank``: with an exception, or killed by the system."""

    def __init__(self, at: int, rank: int, how: str = "raise") -> None:
        super().__init__(0.0)
        self.at, self.rank, self.how, self.calls = at, rank, how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, until it fails."""
        self.calls += 1
        if self.calls == self.at and int(os.environ.get("RANK", "0")) == self.rank:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "exit":
                raise SystemExit(3)
            raise RuntimeError("the culprit's own words, api_key=canary-in-an-exception")
        return super().forward(x)


class Net(nn.Module):
    """The README's own model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        return self.layers(x)


class FailsInEval(Net):
    """Trains well, and breaks in the first evaluation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, in training only."""
        if not self.training:
            raise RuntimeError("no evaluation with me")
        return super().forward(x)
