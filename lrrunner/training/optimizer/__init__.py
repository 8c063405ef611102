"""Optimizers: their LR, what it does to a step, and which can be swept."""
