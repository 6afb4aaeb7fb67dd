"""Load on any OpenAI-compatible endpoint: a client that costs little, and the soak that drives a cluster with it."""
