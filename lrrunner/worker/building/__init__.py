"""From a configuration to objects on this rank: parts, data, wrapped model; checked on all ranks."""
