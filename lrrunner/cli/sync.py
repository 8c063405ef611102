"""``lrrunner-sync``: upload to MLflow what an unreachable server missed, exactly once. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lrrunner.batch.directory import is_batch
from lrrunner.batch.sync_batch import sync_batch
from lrrunner.errors import ConfigError
from lrrunner.results.reader import read_run
from lrrunner.system import exit_codes
from lrrunner.system.output_streams import forgive_closed_output
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.failures import failure_reason, is_unreachable
from lrrunner.tracking.sync_run import sync_run


def main() -> NoReturn:
    """Console script ``lrrunner-sync``."""
    forgive_closed_output()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Upload run and batch directories to MLflow.

    Returns:
        Exit code: 0 all is uploaded, 1 a store does not answer or a run has not ended, 2 a directory holds no run and
        no batch.
    """
    parser = argparse.ArgumentParser(prog="lrrunner-sync", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="directory", help="a run or batch directory")
    parser.add_argument("--uri", help="tracking URI, instead of the one that the run was given, or to confirm that")
    parsed = parser.parse_args(arguments)
    code = exit_codes.OK
    for directory in parsed.directories:
        try:
            for line in _sync(directory, parsed.uri):
                print(line, flush=True)
        except ConfigError as error:
            print(error, file=sys.stderr)
            code = max(code, exit_codes.CONFIG_ERROR)
        except ConnectionError as error:
            print(f"lrrunner-sync: {directory}: MLflow does not answer ({error}); try again later", file=sys.stderr)
            code = max(code, exit_codes.FAILED)
        except BlockingIOError as error:
            print(f"lrrunner-sync: {error}", file=sys.stderr)
            code = max(code, exit_codes.FAILED)
        except Exception as error:  # a store that fails in the middle raises what its libraries do
            if not is_unreachable(error):
                raise
            reason = failure_reason(error, Redactor.for_run({}, os.environ))
            print(f"lrrunner-sync: {directory}: MLflow does not answer ({reason}); try again later", file=sys.stderr)
            code = max(code, exit_codes.FAILED)
    return code


def _sync(directory: Path, uri: str | None) -> list[str]:
    """Upload one directory.

    Returns:
        What was uploaded, a line for each run.
    """
    if is_batch(directory):
        return sync_batch(directory, uri=uri)
    files = read_run(directory)
    if not files.status or not files.config:
        raise ConfigError([f"the directory must hold a run or a batch, got {directory}; name one below runs/"])
    return [sync_run(files, uri=uri)]


if __name__ == "__main__":
    main()
