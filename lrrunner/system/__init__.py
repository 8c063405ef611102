"""Processes, signals, devices, logs, redaction: knows nothing of sweeps."""
