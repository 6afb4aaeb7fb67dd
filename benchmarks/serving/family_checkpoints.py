"""One random checkpoint of every family, of about one size: what differs is what the family does its own way."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.serving.checkpoints import CACHE, BenchCheckpoint, write_tokenizer

from janus.model.config import ModelConfig
from janus.model.families import family_named

#: Raised when the files are written differently.
_VERSION = 1

#: Hidden 512, 6 layers, 32 experts of width 256, 4 of them chosen: about 170 MB in bf16.
_SHAPE: dict[str, Any] = {
    "vocab_size": 8_000,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 4_096,
    "rope_theta": 10_000.0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
_EXPERTS, _WIDTH = 32, 256
_LATENT = {"kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "head_dim": None}
_AFTER_DENSE = {
    "n_routed_experts": _EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": _WIDTH,
    "intermediate_size": 1_024,
    "routed_scaling_factor": 1.5,
}
#: Keys of ``config.json`` beside the common ones, by ``model_type``.
SETTINGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**_LATENT, **_AFTER_DENSE, "q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v3": {**_LATENT, **_AFTER_DENSE, "q_lora_rank": 192, "n_group": 4, "topk_group": 2},
    "glm4_moe": {**_AFTER_DENSE, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": {
        "num_local_experts": _EXPERTS,
        "intermediate_size": _WIDTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "mixtral": {"num_local_experts": _EXPERTS, "intermediate_size": _WIDTH},
    "olmoe": {"num_experts": _EXPERTS, "intermediate_size": _WIDTH},
    "qwen2_moe": {
        "num_experts": _EXPERTS,
        "moe_intermediate_size": _WIDTH,
        "shared_expert_intermediate_size": 512,
        "intermediate_size": 1_024,
    },
    "qwen3_moe": {"num_experts": _EXPERTS, "moe_intermediate_size": _WIDTH, "norm_topk_prob": True},
}


def family_config(family: str) -> ModelConfig:
    """Return the config of its checkpoint."""
    raw = {"model_type": family, **_SHAPE, **SETTINGS[family]}
    return family_named(family).parse_config(raw, {}, family)


def family_checkpoint(family: str) -> BenchCheckpoint:
    """Return the checkpoint of ``family``; it is written into the cache when it is not there."""
    from janus.model.random_model import write_random_model

    config = family_config(family)
    path = CACHE / f"{family}-{_VERSION}"
    if not path.is_dir():
        part = path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_random_model(part, config, std=0.04)
        write_tokenizer(part, config.vocab_size)
        part.rename(path)
    return BenchCheckpoint(name=family, path=path, vocab_size=config.vocab_size)
