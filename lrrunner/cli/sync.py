"""``lrrunner-sync``: upload to MLflow what an unreachable server missed, exactly once. No torch."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lrrunner.batch.directory import is_batch
from lrrunner.batch.sync_batch import sync_batch
from lrrunner.errors import ConfigError
from lrrunner.results.reader import read_run
from lrrunner.system import exit_codes
from lrrunner.system.output.output_streams import forgive_closed_output
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.output.terminal import labelled_line, write_error, write_line
from lrrunner.system.processes.start_signals import signals_end_start
from lrrunner.tracking.store.failures import failure_reason, is_unreachable
from lrrunner.tracking.sync_run import sync_run

DESCRIPTION = """\
Upload to MLflow what an unreachable server missed, exactly once: a second
upload changes nothing."""

EXAMPLE = """\
example:
  lrrunner-sync runs/20261122-043345-f5433c runs/batch-20261122-050112-0a1b2c

exit code:
  0 everything is uploaded, 1 a store does not answer or a run has not ended,
  2 a directory holds no run and no batch
"""


def main() -> NoReturn:
    """Console script ``lrrunner-sync``."""
    forgive_closed_output()
    with signals_end_start(_report_interruption):
        code = run(sys.argv[1:])
    sys.exit(code)


def _report_interruption() -> None:
    """A run that was uploaded in part is completed by the same command."""
    command = Redactor.for_run({}, os.environ).text(shlex.join(["lrrunner-sync", *sys.argv[1:]]))
    write_line(labelled_line("interrupted", "the upload is not complete"))
    write_line(labelled_line("go on with", command))


def run(arguments: Sequence[str]) -> int:
    """Upload run and batch directories to MLflow.

    Returns:
        Exit code: 0 all is uploaded, 1 a store does not answer or a run has not ended, 2 a directory holds no run and
        no batch.
    """
    parsed = _parser().parse_args(arguments)
    code = exit_codes.OK
    for directory in parsed.directories:
        try:
            for line in _sync(directory, parsed.uri):
                print(line, flush=True)
        except ConfigError as error:
            write_error(str(error))
            code = max(code, exit_codes.CONFIG_ERROR)
        except ConnectionError as error:
            write_error(f"lrrunner-sync: {directory}: MLflow does not answer ({error}); try again later")
            code = max(code, exit_codes.FAILED)
        except BlockingIOError as error:
            write_error(f"lrrunner-sync: {error}")
            code = max(code, exit_codes.FAILED)
        except Exception as error:  # a store that fails in the middle raises what its libraries do
            if not is_unreachable(error):
                raise
            reason = failure_reason(error, Redactor.for_run({}, os.environ))
            write_error(f"lrrunner-sync: {directory}: MLflow does not answer ({reason}); try again later")
            code = max(code, exit_codes.FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lrrunner-sync",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="directory", help="a run or batch directory")
    parser.add_argument(
        "--uri", help="tracking URI, in place of the one that the run was given, or to confirm that one"
    )
    return parser


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
