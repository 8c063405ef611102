"""Console script ``lrrunner``, and ``python -m lrrunner``."""

from typing import NoReturn

from lrrunner.cli.interrupted_start import interrupts_end_start


def main() -> NoReturn:
    """Import and run the command line, so that Ctrl-C ends the imports without a traceback too."""
    with interrupts_end_start():
        from lrrunner.cli.main import main as run_and_exit
    run_and_exit()


if __name__ == "__main__":
    main()
