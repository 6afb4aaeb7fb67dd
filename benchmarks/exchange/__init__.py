"""What the ways to exchange cost, on a testbed of several nodes: ``python -m benchmarks.exchange``."""
