"""Names in MLflow: of runs, metrics and tags."""
