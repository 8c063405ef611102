"""What is sent to an MLflow run: metrics while it is live, the run directory at its end."""
