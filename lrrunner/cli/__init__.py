"""Entry points: ``lrrunner`` and ``lrrunner-sync``."""
