"""Breaks a cluster on purpose, under load, and says what clients noticed; see docs/chaos.md."""
