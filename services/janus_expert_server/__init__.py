"""``janus-expert-server``: experts, and nothing else."""
