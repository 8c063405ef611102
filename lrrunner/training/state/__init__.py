"""State that is saved and restored: snapshots in memory, checkpoints on disk."""
