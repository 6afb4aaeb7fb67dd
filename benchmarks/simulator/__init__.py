"""The simulator against the real cluster on this machine, and how fast it is: ``python -m benchmarks.simulator``."""
