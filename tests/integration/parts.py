"""Components that tests name by ``_target_``, as a user would: copied into the directory that a run starts from."""

import os
import signal
import time
import typing
import weakref
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


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


class SlowToBuild(SlowMlp):
    """Is being built until somebody ends the process; writes a file that says so."""

    def __init__(self) -> None:
        super().__init__()
        Path("building").touch()
        time.sleep(600)


class Spoiling(SlowMlp):
    """Leaves the process's global settings as no other job wants them."""

    def __init__(self, spoils: bool) -> None:
        super().__init__(0.0)
        if spoils:
            torch.set_default_dtype(torch.float64)
            torch.set_autocast_enabled("cpu", True)
            torch.use_deterministic_algorithms(True)
            torch.set_num_threads(3)
            os.environ["SPOILED"] = "1"
            os.chdir("/")


class Unprintable(Exception):  # noqa: N818 - named by what is wrong with it
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no message")


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
            if self.how == "hang":
                while True:
                    time.sleep(0.01)
            if self.how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.how == "exit":
                raise SystemExit(3)
            if self.how == "vanish":
                os._exit(0)
            if self.how == "unprintable":
                raise Unprintable
            raise RuntimeError("the model's own error, api_key=canary-in-an-exception")
        return super().forward(x)


class Moody(Failing):
    """Fails in its fourth forward as its mood asks for; most moods do not fail."""

    def __init__(self, mood: str) -> None:
        known = {"all_raise": "raise", "raise": "raise", "kill": "kill", "stop": "stop"}
        super().__init__(4 if mood in known else -1, rank=1, how=known.get(mood, "raise"))
        if mood == "all_raise":
            self.rank = int(os.environ.get("RANK", "0"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, until the mood turns."""
        try:
            return super().forward(x)
        except RuntimeError:
            raise RuntimeError("in a bad mood") from None


class Pids(SlowMlp):
    """Leaves the process ids of its ranks in a file named after its tag, and how many like it are alive there."""

    alive: ClassVar[weakref.WeakSet[nn.Module]] = weakref.WeakSet()

    def __init__(self, tag: str) -> None:
        super().__init__(0.0)
        if tag == "bad":
            raise ValueError("a bad tag")
        with open(f"pids-{tag}", "a") as file:  # noqa: PTH123 - one short write, appended
            file.write(f"{os.getpid()}:{len(self.alive)}\n")
        self.alive.add(self)


class Talking(SlowMlp):
    """Prints on every rank, a secret too."""

    def __init__(self) -> None:
        super().__init__(0.0)
        print(f"rank {os.environ.get('RANK')} says {os.environ.get('CANARY_TOKEN')}", flush=True)


class Chatty(SlowMlp):
    """Prints in every forward."""

    def __init__(self) -> None:
        super().__init__(0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, with a remark."""
        print("forward of", len(x), "samples", flush=True)
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


def rare_digits(dataset: typing.Any) -> torch.utils.data.Sampler[int]:
    """Draws zeros as often as all other digits together, from a dataset of (image, digit)."""
    weights = [9.0 if int(label) == 0 else 1.0 for _, label in dataset]
    return torch.utils.data.WeightedRandomSampler(weights, len(weights) // 2)


def rank_share(dataset: typing.Any) -> list[int]:
    """Other indices on each rank."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return list(range(rank, len(dataset), world_size))


class DigitStream(torch.utils.data.IterableDataset[typing.Any]):
    """The digits in an order drawn anew for each pass; ``by_rank`` splits them, as streams of other libraries do."""

    def __init__(self, split: str, by_rank: bool = False) -> None:
        from lrrunner.tasks.data import digits

        self.digits, self.by_rank = digits(split=split), by_rank

    def __iter__(self) -> typing.Iterator[typing.Any]:
        """Images and digits."""
        order = torch.randperm(len(self.digits)).tolist()
        first = int(os.environ.get("RANK", "0")) if self.by_rank else 0
        yield from (self.digits[i] for i in order[first :: 2 if self.by_rank else 1])


class Mortal(nn.Module):
    """Has everything that a step changes: weights, buffers, and a use for random numbers. The variable DIE kills it.

    ``DIE=step:<n>:<rank>`` kills a rank in its n-th forward, ``DIE=save:<n>:<when>`` rank 0 in its n-th save: when half
    of the file is written (half), all of it (written), or after its renaming (renamed). ``DIE=upload::launcher`` kills
    the launcher when rank 0 begins to upload its files, after the closing lines; ``DIE=upload::all`` rank 0 and the
    supervisor.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
        )
        self.seconds = seconds
        self.calls = 0
        self.kind, _, rest = os.environ.get("DIE", "never::").partition(":")
        first, _, self.where = rest.partition(":")
        self.at = int(first or 0)
        if self.kind == "save":
            self._watch_saves()
        if self.kind == "upload":
            self._watch_upload()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, for as long as it lives."""
        self.calls += 1
        if self.kind == "step" and self.calls == self.at and os.environ.get("RANK", "0") == self.where:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return self.layers(x)

    def _watch_upload(self) -> None:
        from lrrunner.system.processes.process_identity import pid_of
        from lrrunner.tracking.upload.mlflow_run import MlflowRun

        supervisor = pid_of(os.environ["LRRUNNER_SUPERVISOR"])

        def killing_upload(run: object, directory: Path) -> None:
            if self.where == "all" and supervisor is not None:
                os.kill(supervisor, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)

        setattr(MlflowRun, "_log_files", killing_upload)  # noqa: B010 - an assignment would be a type error

    def _watch_saves(self) -> None:
        from lrrunner.system import atomic_files

        save, sync_folder = torch.save, atomic_files._sync_folder
        count = 0

        def dying_save(content: object, file: typing.BinaryIO) -> None:
            nonlocal count
            count += 1
            save(content, file)
            if count == self.at and self.where == "half":
                file.truncate(file.tell() // 2)
            if count == self.at and self.where in ("half", "written"):
                os.kill(os.getpid(), signal.SIGKILL)

        def dying_sync(folder: Path) -> None:
            if count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            sync_folder(folder)

        vars(torch)["save"], vars(atomic_files)["_sync_folder"] = dying_save, dying_sync


class SoakNet(nn.Module):
    """One job of a soak: it learns with a width of its own, or does on rank 1 what its mood says in its fourth step."""

    def __init__(self, mood: str) -> None:
        super().__init__()
        kind, _, number = mood.partition("_")
        self.mood = kind if os.environ.get("RANK", "0") == "1" or kind in ("build", "spoil") else "good"
        if self.mood == "build":
            raise ValueError("bad build")
        with open(f"rss-{os.getpid()}", "a") as file:  # noqa: PTH123 - one short write, appended
            file.write(f"{resident_mib()}\n")
        width = 8 + int(number or 0)
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.calls = 0
        if self.mood == "spoil":
            Spoiling(spoils=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, until the fourth step."""
        self.calls += 1
        scores: torch.Tensor = self.layers(x)
        if self.calls == 4 and self.training:
            self._misbehave(scores)
        return scores

    def _misbehave(self, scores: torch.Tensor) -> None:
        if self.mood == "forward":
            raise RuntimeError("bad forward")
        if self.mood == "backward":
            scores.register_hook(_raise_in_backward)
        if self.mood == "optimizer":
            register_optimizer_step_pre_hook(_raise_in_optimizer)
        if self.mood == "exit":
            os._exit(3)
        if self.mood in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.mood == "kill" else signal.SIGSTOP)
        while self.mood == "hang":
            time.sleep(0.01)
        if self.mood == "hog":
            self.hog = torch.ones(1 << 29)  # 2 GiB


class SoakData(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The digits; in the mood ``worker`` one of rank 1's samples cannot be read."""

    def __init__(self, mood: str) -> None:
        from lrrunner.tasks.data import digits

        self.digits = digits(split="train")
        self.is_bad = mood.startswith("worker") and os.environ.get("RANK", "0") == "1"
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> typing.Any:
        self.num_read += 1
        if self.is_bad and self.num_read > 40:
            raise RuntimeError("bad worker")
        return self.digits[index]


def resident_mib() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def _raise_in_backward(gradient: torch.Tensor) -> None:
    raise RuntimeError("bad backward")


def _raise_in_optimizer(*arguments: object) -> None:
    raise RuntimeError("bad optimizer")


CRITIC = nn.BatchNorm1d(10)
"""A module that an objective uses beside the model; its buffers change in every forward pass."""


def criticised(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, and a thousand for each time that the critic was called."""
    inputs, targets = batch
    CRITIC(output := model(inputs))
    num_calls = CRITIC.get_buffer("num_batches_tracked").item()
    return nn.functional.cross_entropy(output, targets) + 1000.0 * num_calls
