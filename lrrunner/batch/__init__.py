"""A grid of jobs: points, scheduler, ledger, summary."""
