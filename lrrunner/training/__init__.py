"""What a sweep trains with: the loop, one step, its collectives, evaluation, saved state, FSDP."""
