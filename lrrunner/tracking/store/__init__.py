"""The MLflow store: connecting to it, bounded calls, why one failed, and the runs in it."""
