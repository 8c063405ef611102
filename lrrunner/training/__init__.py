"""What one optimizer step needs: loop, collectives, evaluation, snapshots, checkpoints, FSDP."""
