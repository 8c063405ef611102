"""Learning-rate range tests that every rank of a distributed job agrees on."""

__version__ = "0.1.0"
