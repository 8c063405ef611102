"""What sums up a batch: the table, files and figures, the best job, and its run in MLflow. No torch."""
