"""Models, datasets and objectives of the packaged experiments."""
