"""MLflow: what a supervisor, a resumed run and ``lrrunner-sync`` do with names, store and upload."""
