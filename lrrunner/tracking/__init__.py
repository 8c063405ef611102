"""MLflow: connection, upload, metric names."""
