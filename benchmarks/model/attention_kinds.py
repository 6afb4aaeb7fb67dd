"""``python -m benchmarks.model.attention_kinds``: a decode step's attention, by kind, batch and context.

Three shapes of one layer, random weights, one process: grouped-query attention, latent attention of the same size (as
many heads, as wide), and latent attention with the heads of DeepSeek-V2-Lite. Beside the time of one layer stands what
a token takes in the KV cache of that layer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from janus.model.attention_model import AttentionModel
from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.families import FAMILIES
from janus.model.kernels import configure_threads
from janus.model.kv_cache import PagedKVCache
from janus.model.random_model import write_random_model

_LAYERS = 4
_BLOCK_SIZE = 16
_COMMON = {
    "vocab_size": 512,
    "hidden_size": 512,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 8,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
_LATENT = {"model_type": "deepseek_v2", "n_routed_experts": 4, "q_lora_rank": None}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped-query, 8 heads of 64 over 4": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "latent, 8 heads, 128 + 32": _LATENT
    | {"kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    "latent, 16 heads, 512 + 64": _LATENT
    | {
        "num_attention_heads": 16,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, nargs="+", default=[48, 1024], help="tokens of context per sequence")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--torch", action="store_true", help="measure the torch path instead of the CPU kernels")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    if given.torch:
        torch.set_num_threads(given.threads)
    else:
        configure_threads(given.threads)
    cells = [(context, batch) for context in given.context for batch in given.batch]
    print(f"{given.dtype}, {given.threads} threads; microseconds per layer, median of {given.steps} steps")
    print(f"{'context x batch':36s} {'bytes per token':>16s}" + "".join(f"{c:>7d} x{b:<4d}" for c, b in cells))
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
            config = FAMILIES[shape["model_type"]].parse_config(_COMMON | shape, {}, "benchmark")
            checkpoint = Checkpoint.open(write_random_model(Path(directory), config))
            model = AttentionModel.load(checkpoint, config, dtype, kernels=not given.torch)
            times = [_layer_us(model, context, batch, given.steps) for context, batch in cells]
        per_token = PagedKVCache.bytes_per_token(config, dtype) // _LAYERS
        print(f"{name:36s} {per_token:16d}" + "".join(f"{each:13.0f}" for each in times))


def _layer_us(model: AttentionModel, context: int, size: int, steps: int) -> float:
    blocks = -(-context // _BLOCK_SIZE)
    kv = PagedKVCache(model.config, size * blocks, _BLOCK_SIZE, model.dtype)
    tables = np.arange(size * blocks).reshape(size, blocks)
    position = np.full(size, context - 1)
    batch = StepBatch(
        token_ids=np.arange(size),
        positions=position,
        slot_mapping=tables[:, -1] * _BLOCK_SIZE + position % _BLOCK_SIZE,
        query_start=np.arange(size + 1),
        context_len=np.full(size, context),
        block_tables=tables,
        sample_rows=np.arange(size),
    )
    taken = []
    for _ in range(steps):
        h = model.embed(batch)
        started = time.perf_counter()
        for layer in range(_LAYERS):
            h, _x = model.attention(layer, h, batch, kv)
        taken.append((time.perf_counter() - started) / _LAYERS * 1e6)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
