"""Unit tests: no processes, no mocks of our own code, seconds."""
