"""What an attention instance can take in, by its options and its model."""

from __future__ import annotations

from janus.config.options import MAX_DEFAULT_KV_CACHE_BYTES, AttentionOptions
from janus.core.batcher import BatcherConfig
from janus.errors import ConfigError
from janus.model.config import ModelConfig
from janus.model.kv_cache import PagedKVCache
from janus.runtime.device import torch_dtype

_MAX_WAITING = 1024


def batcher_config(options: AttentionOptions, config: ModelConfig) -> BatcherConfig:
    """Return the batcher's limits.

    Raises:
        ConfigError: the options ask for more than the model's context, or for a KV cache without a block.
    """
    limit = config.max_position_embeddings
    if options.max_model_len > limit:
        raise ConfigError("--max-model-len", f"{options.max_model_len} exceeds the model's {limit}", "lower it")
    per_block = PagedKVCache.bytes_per_block(config, options.block_size, torch_dtype(options.dtype))
    max_model_len = options.max_model_len or limit
    enough = options.max_running * -(-max_model_len // options.block_size)
    kv_cache_bytes = options.kv_cache_bytes or min(MAX_DEFAULT_KV_CACHE_BYTES, enough * per_block)
    blocks = options.kv_blocks or kv_cache_bytes // per_block
    if blocks < 1:
        raise ConfigError(
            "--kv-cache", f"{kv_cache_bytes} bytes hold no block of {per_block}", f"give at least {per_block}"
        )
    return BatcherConfig(
        max_running=options.max_running,
        token_budget=options.token_budget,
        block_size=options.block_size,
        num_blocks=blocks,
        max_model_len=max_model_len,
        max_waiting=_MAX_WAITING,
    )
