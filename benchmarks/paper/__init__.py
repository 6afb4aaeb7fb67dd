"""The figures of arXiv 2512.13525 beside what Janus's own policies and models say: ``python -m benchmarks.paper``."""
