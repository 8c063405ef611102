"""The run directory: written, read back and resumed."""
