"""Other finders' rules by their own packages, which smooth, stop and suggest on the losses of a recorded sweep.

The LRs are those that the sweep trained with. What a package makes of a NaN is not held against it: it sees the losses
before the first one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Rule = Callable[[Any, Any], float | None]


class Package(NamedTuple):
    """A package and the rule that it applies.

    Attributes:
        name: What to install.
        module: What is imported.
        rule: (LRs, losses) -> LR, or None where the package says that it has none.
    """

    name: str
    module: str
    rule: Rule

    @property
    def version(self) -> str | None:
        """The version that is installed, if it can be imported."""
        try:
            with _quietly():
                importlib.import_module(self.module)
            return importlib.metadata.version(self.name)
        except ImportError:
            return None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """They print, show progress bars and warn."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _finite_part(lrs: Any, losses: Any) -> tuple[list[float], list[float]]:
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if len(bad) else len(losses)
    return np.asarray(lrs, dtype=float)[:end].tolist(), np.asarray(losses, dtype=float)[:end].tolist()


def _parameter_and_optimizer(lr: float) -> tuple[Any, Any]:
    """What a finder asks for; nothing is trained."""
    import torch

    model = torch.nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def torch_lr_finder(lrs: Any, losses: Any) -> float | None:
    """``range_test`` over the recorded losses, then the suggestion that ``plot`` returns."""
    import torch
    from matplotlib.figure import Figure

    package = importlib.import_module("torch_lr_finder")
    lrs, losses = _finite_part(lrs, losses)

    class Replayed(package.LRFinder):  # type: ignore[misc, name-defined]
        def _train_batch(self, *arguments: Any, **options: Any) -> float:
            loss: float = losses[len(self.history["loss"])]
            return loss

    if len(lrs) < 2:
        return None
    finder = Replayed(*_parameter_and_optimizer(lrs[0]), torch.nn.MSELoss(), device="cpu")
    with _quietly():
        finder.range_test(torch.utils.data.DataLoader([0]), end_lr=lrs[-1], num_iter=len(lrs))  # type: ignore[arg-type]
        finder.history["lr"] = lrs[: len(finder.history["loss"])]
        try:
            return float(finder.plot(ax=Figure().add_subplot())[1])
        except RuntimeError:  # too few points
            return None


def ignite(lrs: Any, losses: Any) -> float | None:
    """``FastaiLRFinder``, attached to an engine whose steps return the recorded losses.

    Its own LR scheduler records the LR of the next step beside each loss; it gets the LR of the step.
    """
    engine, handlers = importlib.import_module("ignite.engine"), importlib.import_module("ignite.handlers")
    lrs, losses = _finite_part(lrs, losses)
    if len(lrs) < 2:
        return None
    trainer, finder = engine.Engine(lambda _, loss: loss), handlers.FastaiLRFinder()
    _, optimizer = _parameter_and_optimizer(lrs[0])
    with _quietly(), finder.attach(trainer, {"optimizer": optimizer}, end_lr=lrs[-1]) as attached:
        attached.run(losses, max_epochs=1)
    finder.get_results()["lr"] = lrs[: len(finder.get_results()["loss"])]
    try:
        return float(finder.lr_suggestion())
    except RuntimeError:  # no fall
        return None


def lightning(lrs: Any, losses: Any) -> float | None:
    """Its callback smooths and stops, its ``_LRFinder`` suggests."""
    import torch

    package = importlib.import_module("lightning.pytorch.tuner.lr_finder")
    lrs, losses = _finite_part(lrs, losses)
    callback = package._LRCallback(num_training=len(lrs))
    trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(batch_idx=0),
        accumulate_grad_batches=1,
        global_step=0,
        should_stop=False,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    for loss in losses:
        trainer.global_step += 1  # the optimizer has stepped when a batch ends
        callback.on_train_batch_end(trainer, None, torch.tensor(loss, dtype=torch.float64), None, 0)
        if trainer.should_stop:
            break
    finder = package._LRFinder("exponential", lrs[0], lrs[-1], len(lrs))
    finder.results = {"lr": lrs[: len(callback.losses)], "loss": callback.losses}
    with _quietly():
        lr: float | None = finder.suggestion()
    return lr


def _fastai(name: str) -> Rule:
    """A suggestion function of fastai, on the losses that its recorder smooths."""

    def rule(lrs: Any, losses: Any) -> float | None:
        import torch

        schedule, learner = (importlib.import_module(f"fastai.{part}") for part in ("callback.schedule", "learner"))
        num_steps = len(lrs)
        lrs, losses = _finite_part(lrs, losses)
        average, smoothed = learner.AvgSmoothLoss(), []
        for loss in losses:
            average.accumulate(SimpleNamespace(loss=torch.tensor(loss)))
            smoothed.append(float(average.value))
            if smoothed[-1] > 4 * min(smoothed):  # as LRFinder.after_batch
                break
        kept = slice(max(num_steps, 100) // 10, len(smoothed) - 5)  # as Learner.lr_find
        try:
            return float(getattr(schedule, name)(torch.tensor(lrs)[kept], torch.tensor(smoothed)[kept], num_steps)[0])
        except (IndexError, RuntimeError, ValueError):  # too few points
            return None

    return rule


PACKAGES = {
    "torch_lr_finder": Package("torch-lr-finder", "torch_lr_finder", torch_lr_finder),
    "ignite": Package("pytorch-ignite", "ignite.handlers", ignite),
    "lightning": Package("lightning", "lightning.pytorch.tuner.lr_finder", lightning),
    **{
        f"fastai_{name}": Package("fastai", "fastai.callback.schedule", _fastai(name))
        for name in ("valley", "slide", "minimum", "steep")
    },
}
"""By the names that ``regret_peers`` has for the same rules."""


@functools.cache
def preferred(peer: Rule) -> Rule:
    """The rule by its own package where that is installed, else the re-implementation that is given."""
    package = PACKAGES.get(peer.__name__)
    return package.rule if package is not None and package.version is not None else peer


def sources(peers: Sequence[Rule]) -> str:
    """Which rules come from their own packages, and which are re-implemented."""
    packages = {PACKAGES[peer.__name__] for peer in peers if preferred(peer) is not peer}
    versions = sorted({f"{package.name} {package.version}" for package in packages})
    others = sorted(peer.__name__ for peer in peers if preferred(peer) is peer)
    found = {"by their own packages": versions, "re-implemented": others}
    return "peers " + "; ".join(f"{title}: {', '.join(names)}" for title, names in found.items() if names)
