"""``janus-attention-server``: attention layers, router, KV cache and requests of one instance."""
