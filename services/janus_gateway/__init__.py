"""``janus-gateway``: the OpenAI-compatible HTTP endpoint in front of the attention instances."""
