"""From a job to running ranks: commands, supervision, job mailbox."""
