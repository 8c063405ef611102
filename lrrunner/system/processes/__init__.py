"""Processes: who they are, which of them ends, and the signals they get."""
