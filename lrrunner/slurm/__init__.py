"""Submission to Slurm: checks, array jobs, submitit."""
