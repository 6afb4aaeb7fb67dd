"""What runs on a GPU: checked against the CPU, timed, written down. `python -m benchmarks.gpu` drives all of it."""
