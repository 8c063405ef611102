"""Fails a test that leaks environment variables, a process group, processes, threads or files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrrunner.system.output.job_log import package_logger, wake_loggers

ROOT = Path(__file__).resolve().parent.parent

ALLOWED_ENVIRONMENT = {"PYTEST_CURRENT_TEST", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR"}
ALLOWED_ENVIRONMENT |= {"CUDA_MODULE_LOADING"}  # torch sets it when it first meets a GPU

LONGER = {
    "long": "a variation that takes its time; run it with scripts/test --long",
    "soak": "a long repetition; run it with scripts/test --soak",
}
"""Why a test with this mark is skipped, unless the option of that name is given."""


LONGEST_FIRST = ("tests/integration/test_slurm.py", "tests/integration/", "tests/multiprocess/", "tests/")
"""Order of the files that the workers of pytest-xdist share: short ones come last and fill what is left."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run variations that take their time, as CI does")
    parser.addoption("--soak", action="store_true", help="also run long repetitions")


def pytest_configure() -> None:
    """Signals as a terminal leaves them: a shell ignores SIGINT for what runs in its background, nohup SIGHUP.

    Processes of the tests would inherit that, and not notice what the tests send.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, reason in LONGER.items():
        if not config.getoption(f"--{name}"):
            for item in items:
                if name in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=reason))
    if hasattr(config, "workerinput"):  # in a worker of pytest-xdist
        items.sort(key=_place_in_queue)


def _place_in_queue(item: pytest.Item) -> int:
    """For a stable sort: the first of LONGEST_FIRST that the test belongs to."""
    places = (i for i, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start))
    return next(places, len(LONGEST_FIRST))


@pytest.fixture(autouse=True)
def awake_loggers() -> None:
    """Undo what Hydra's logging setup in one test does to the loggers of the next ones."""
    wake_loggers()
    package_logger.propagate = True
    logging.root.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves something that could change the next one."""
    environment = dict(os.environ)
    threads = set(threading.enumerate())
    files = {path.name for path in ROOT.iterdir()}
    yield
    changed = {
        key
        for key in environment.keys() | os.environ.keys()
        if environment.get(key) != os.environ.get(key) and key not in ALLOWED_ENVIRONMENT
    }
    assert not changed, f"environment variables leaked: {changed}"
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left, f"processes leaked: {left}"
    leaked = [t for t in set(threading.enumerate()) - threads if t.is_alive() and not t.daemon]
    assert not leaked, f"threads leaked: {leaked}"
    ignored = {".pytest_cache", ".hypothesis", "__pycache__"}
    assert {path.name for path in ROOT.iterdir()} - files <= ignored, "files leaked into the repository"
    dist = sys.modules.get("torch.distributed")
    assert dist is None or not dist.is_initialized(), "a process group leaked"
