"""Whatever is typed ends with exit code 0 or 2 and one message: no traceback, no hang, and nothing is executed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lrrunner.cli.main import run
from lrrunner.config.key_names import known_keys

DIGITS = "1" * 400
NAME = "k" * 5000

LINES = [
    *([f"{group}=null"] for group in ("model", "data", "loss", "objective", "optimizer", "experiment", "hydra")),
    *(
        [f"~{section}"]
        for section in ("run", "tracking", "sweep", "launch", "model", "loss", "hydra", "data.dataloader")
    ),
    *(["--cfg", "job", override] for override in ("model=null", "hydra=null", "+model=-1", "=1", "sweep.seed=x", NAME)),
    *(["--help", override] for override in ("model=null", "sweep.num_steps=many")),
    *(["+model=-1"], ["=1"], ["~"], ["+"], ["--resolve"], ["--cfg"], ["--cfg", "all", "--info", "config"], ["--nope"]),
    *([f"{key}={DIGITS}"] for key in ("optimizer.lr", "sweep.end_lr", "launch.timeout_s", "sweep.seed", "x")),
    *(["sweep.num_steps=" + "1" * count] for count in (20, 5000)),
    *(
        [f"{'k' * 30_000}=1"],
        [f"+{'k' * 9_000}=1"],
        ["a=" + "[" * 3_000],
        ["+tracking.tags.a=" + "{b:" * 800 + "}" * 800],
    ),
    *([f"{key}={NAME}"] for key in ("run.dir", "run.resume", "launch.config_file", "model", "data.root", "experiment")),
    *(
        ["--config-dir", NAME],
        ["--config-name", NAME],
        [f"tracking.uri=sqlite:///{NAME}"],
        ["run.dir='~nobody-here/x'"],
    ),
    *(["sweep.mode=linear", "sweep.end_lr=1e300"], ["optimizer.lr=1e300"], ["sweep.start_lr=1e-200"]),
    *([f"launch.config_file={file}"] for file in ("/etc/passwd", "-", "/dev/zero", ".")),
    *(["launch.num_processes=1", f"launch.config_file={file}"] for file in ("/etc/passwd", "-", "/dev/zero", ".")),
    *([f"sweep.repeats={count}"] for count in ("1e12", "1000000000000")),
    *(["-m", f"sweep.seed=range({ends})"] for ends in ("1000000000", "0,1,0.0", "0,1e308,1e-300", "10,0", "nan,1")),
    *(["-m", "model=null,mlp"], ["-m", "~run"], ["-m", "sweep.seed=choice()"], ["-m", "a=glob(*)"], ["-m", "=1"]),
    ["-m", *(f"+tracking.tags.t{number}=1,2,3,4,5,6,7,8,9" for number in range(9))],
]
"""What has ended with a traceback, or never."""

EXECUTED = "executed"
VALUES = [
    *(
        "null",
        "",
        "1",
        "-1",
        "0",
        "1e12",
        "nan",
        "inf",
        "-inf",
        "1e400",
        DIGITS,
        "true",
        "x",
        "mlp",
        "[]",
        "{}",
        "[1,2]",
    ),
    *("{a:1}", "'", '"', "\\", "${", "${x}", "${oc.env:HOME}", "${oc.env:NOPE}", "${sweep}", "${oc.decode:1+1}", "???"),
    *(
        "/etc/passwd",
        "..",
        "/",
        "~",
        "~nobody-here",
        "-",
        "a b",
        "é",
        "\udcff",
        "\t",
        "1,2",
        "range(3)",
        "glob(*)",
        "@",
    ),
    *(f"{{_target_: os.mkdir, path: {EXECUTED}}}", "sqlite:///x", "http://", "[" * 50, "a:b", "0x10", "1_000", "::"),
]


def random_line(rng: random.Random) -> list[str]:
    """One to five overrides, some of Hydra's flags among them."""
    groups = ["model", "data", "loss", "objective", "optimizer", "experiment", "hydra", "hydra/launcher", "data@x", ""]
    keys = [
        *known_keys(),
        *groups,
        "+hydra.callbacks.x",
        "model._target_",
        "optimizer._partial_",
        "a.b",
        "tracking.tags.a",
    ]
    line = [
        "".join(map(rng.choice, (["", "", "", "+", "++", "~"], keys, ["=", "=", "=", ""], VALUES)))
        for _ in range(rng.randint(1, 5))
    ]
    return [*rng.choice([[]] * 6 + [["-m"], ["--cfg", "job"], ["--resolve"], ["--info", "defaults"]]), *line]


class Started(Exception):  # noqa: N818 - no error
    """The configuration is right: something would be started now."""


@pytest.fixture
def outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Sequence[str]], tuple[int, str]]:
    """Calls the command line, up to where it would start something; its exit code and what it printed."""

    def start(*arguments: object) -> None:
        raise Started

    monkeypatch.setattr("lrrunner.worker.run_job.run_in_new_world", start)
    monkeypatch.setattr("lrrunner.launch.supervise._run", start)
    monkeypatch.setattr("lrrunner.batch.run_batch.batch_directory", start)
    monkeypatch.chdir(tmp_path)

    def call(line: Sequence[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lrrunner", *line])
        try:
            code = run(line)
        except Started:
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except Exception as error:
            raise AssertionError(f"{line} raised {type(error).__name__}: {str(error)[:300]}") from error
        return code, capfd.readouterr().err

    return call


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[pytest.mark.long] if number % 3 else []) for number, line in enumerate(LINES)],
    ids=lambda line: " ".join(line)[:60],
)
def test_an_override_that_cannot_be_used_is_one_message(
    line: list[str], outcome: Callable[[Sequence[str]], tuple[int, str]]
) -> None:
    """Found by attack: each of them gave a traceback and code 1, or did not end."""
    code, shown = outcome(line)
    assert code == 2, shown
    assert "Traceback" not in shown
    assert shown.startswith(("lrrunner: the configuration is wrong (", "usage: "))
    assert len(shown) < 5000


@pytest.mark.parametrize(("seed", "num_lines"), [(1, 30), pytest.param(2, 1000, marks=pytest.mark.soak)])
def test_fuzzed_command_lines_end_with_a_message_or_start(
    seed: int, num_lines: int, outcome: Callable[[Sequence[str]], tuple[int, str]], tmp_path: Path
) -> None:
    """Lines of keys and values that do not belong together; the seed repeats them."""
    rng = random.Random(seed)
    started = 0
    for line in (random_line(rng) for _ in range(num_lines)):
        code, shown = outcome(line)
        assert code in (0, 2), f"{line} ended with {code}: {shown}"
        assert "Traceback" not in shown, line
        assert (code == 2) == (shown != ""), f"{line} ended with {code}: {shown}"
        started += code == 0
    assert 0 < started < num_lines
    assert list(tmp_path.iterdir()) == [], "something was executed or written"
