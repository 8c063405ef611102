"""Ready models, datasets and objectives, for the packaged experiments. Anything else comes by its ``_target_``."""
