"""OLMoE (``OlmoeForCausalLM``): one norm over all query heads and one over all key heads, clipped projections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import ModelConfig
from janus.model.families.base import AttentionSpec, TensorSpec
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class OlmoeFamily(DecoderFamily):
    """``intermediate_size`` is the width of an expert; every layer has experts."""

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    defaults: ClassVar = {
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "intermediate_size": 2_048,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4_096,
        "eos_token_id": 50_279,
    }

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        clip = None if read.raw.get("clip_qkv") is None else read.number("clip_qkv")
        return replace(config, moe_intermediate_size=config.intermediate_size, qk_norm=True, qkv_clip=clip)

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return {
            "intermediate_size": config.moe_intermediate_size,
            "moe_intermediate_size": None,
            "clip_qkv": config.qkv_clip,
        }

    def attention(self, config: ModelConfig, layer: int) -> AttentionSpec:
        """See ``Family.attention``."""
        prefix, head = f"model.layers.{layer}.self_attn", config.head_dim
        return replace(
            super().attention(config, layer),
            q_norm=TensorSpec(f"{prefix}.q_norm.weight", (config.num_heads * head,)),
            k_norm=TensorSpec(f"{prefix}.k_norm.weight", (config.num_kv_heads * head,)),
        )
