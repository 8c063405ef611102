"""Figures, summary text and progress of one run."""
