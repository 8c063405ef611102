"""What a process prints and logs, without secrets."""
