"""The chaos suite's recorded runs; see docs/chaos.md."""
