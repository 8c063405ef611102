"""``python -m lrrunner``."""

from lrrunner.cli import main

if __name__ == "__main__":
    main()
