"""Configuration groups, shipped in the wheel as ``lrrunner.conf``."""
