"""The configuration: schema, validation and Hydra composition. No torch."""
