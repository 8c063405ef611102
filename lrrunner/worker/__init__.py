"""What one rank runs: join the world, build a job, measure, report."""
