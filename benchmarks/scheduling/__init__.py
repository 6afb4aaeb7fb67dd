"""How well each scheduler balances activated experts, and what it costs: ``python -m benchmarks.scheduling``."""
