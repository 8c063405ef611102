"""A script's loaders: restarted, compared between ranks, read for training and evaluation."""
